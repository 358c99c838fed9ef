//! The folder of a run: resolved recipe, metrics, curve, checkpoints, and which of them a run starts from.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoints;
use crate::error::TrainError;
use crate::guard::SkippedStep;
use crate::lock::FolderLock;
use crate::metrics::StepMetrics;
use crate::plot::loss_svg;
use crate::recipe::{NonFinitePolicy, Recipe};
use crate::samples::SampleAnswers;
use crate::step_log::StepLog;

/// Whether a run continues another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// A new run; its folder must not hold one yet.
    #[default]
    Fresh,
    /// From the newest checkpoint of the run folder; from the start if there is none.
    Auto,
    /// From this checkpoint: the newest of the run folder, or one of another folder.
    From(PathBuf),
}

impl Resume {
    /// The value of `--resume`: `auto` or a path.
    pub fn from_flag(value: Option<&str>) -> Self {
        match value {
            None => Self::Fresh,
            Some("auto") => Self::Auto,
            Some(path) => Self::From(PathBuf::from(path)),
        }
    }
}

/// What a run leaves step by step.
pub(crate) struct RunLogs {
    /// `metrics.jsonl`
    pub(crate) metrics: StepLog<StepMetrics>,
    /// `skipped.jsonl`, where steps may be left out.
    pub(crate) skipped: Option<StepLog<SkippedStep>>,
    /// `answers.jsonl`, where questions are asked.
    pub(crate) answers: Option<StepLog<SampleAnswers>>,
}

/// The run folder of a recipe.
pub(crate) struct RunFolder {
    path: PathBuf,
    pub(crate) checkpoints: Checkpoints,
}

impl RunFolder {
    pub(crate) fn new(recipe: &Recipe) -> Self {
        let path = recipe.output().to_owned();
        Self { checkpoints: Checkpoints::new(&path, recipe.settings().checkpoint.keep), path }
    }

    /// Keeps other processes out of the folder.
    pub(crate) fn lock(&self) -> Result<FolderLock, TrainError> {
        FolderLock::within(&self.path)
    }

    /// The checkpoint to start from, if any; refuses to overwrite another run.
    pub(crate) fn starting_point(&self, resume: &Resume) -> Result<Option<PathBuf>, TrainError> {
        let newest = self.checkpoints.newest()?;
        match resume {
            Resume::Fresh if newest.is_some() || self.has_metrics() => {
                Err(TrainError::RunFolderTaken { path: self.path.clone() })
            }
            Resume::Fresh => Ok(None),
            Resume::Auto => Ok(newest),
            Resume::From(path) => {
                let asked = fs::canonicalize(path).map_err(|fault| TrainError::Checkpoint {
                    path: path.clone(),
                    what: "not there".to_owned(),
                    expected: "a folder `step-N`".to_owned(),
                    found: fault.to_string(),
                })?;
                match newest.map(|newest| fs::canonicalize(&newest).unwrap_or(newest)) {
                    Some(newest) if newest != asked => Err(TrainError::Checkpoint {
                        path: path.clone(),
                        what: "this run folder has gone on from elsewhere".to_owned(),
                        expected: format!("its newest checkpoint `{}`, or another `run.output`", newest.display()),
                        found: format!("`{}`", asked.display()),
                    }),
                    _ => Ok(Some(asked)),
                }
            }
        }
    }

    /// Writes `recipe.toml` and opens the logs of a run that stands after `step` steps.
    pub(crate) fn open(&self, recipe: &Recipe, step: u64) -> Result<RunLogs, TrainError> {
        fs::create_dir_all(&self.path).map_err(TrainError::io("create", &self.path))?;
        let text = toml::to_string(&recipe.resolved()).expect("a checked recipe always has a TOML form");
        write_whole(&self.path.join("recipe.toml"), &text)?;
        let settings = recipe.settings();
        let skips = settings.guard.non_finite == NonFinitePolicy::Skip;
        Ok(RunLogs {
            metrics: StepLog::open(self.metrics_path(), step)?,
            skipped: skips.then(|| StepLog::open(self.path_of("skipped.jsonl"), step)).transpose()?,
            answers: settings
                .samples
                .is_some()
                .then(|| StepLog::open(self.path_of("answers.jsonl"), step))
                .transpose()?,
        })
    }

    /// Draws `loss.svg` anew.
    pub(crate) fn write_plot(&self, lines: &[StepMetrics]) -> Result<(), TrainError> {
        let name = self.path.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy());
        write_whole(&self.path.join("loss.svg"), &loss_svg(&name, lines))
    }

    /// Whether a step was made here; a run that failed before its first leaves an empty file.
    fn has_metrics(&self) -> bool {
        self.metrics_path().metadata().is_ok_and(|file| file.len() > 0)
    }

    /// A file or folder of the run.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file of the run; readers see the old one or the new one.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), TrainError> {
        write_whole(&self.path_of(name), text)
    }

    fn metrics_path(&self) -> PathBuf {
        self.path_of("metrics.jsonl")
    }
}

/// Readers see the old file or the new one.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), TrainError> {
    let partial = path.with_extension("partial");
    fs::write(&partial, text).map_err(TrainError::io("write", &partial))?;
    fs::rename(&partial, path).map_err(TrainError::io("replace", path))
}
