//! Checkpoints: whole or absent, the newest and the best kept, another run's refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vela_models::Vlm;
use vela_processor::Processor;
use vela_types::{Cursor, Fingerprint};

use crate::error::TrainError;
use crate::optimizer::{Optimizer, Slot};

/// The version this build writes and accepts.
const STATE_VERSION: u32 = 4;
const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const PREFIX: &str = "step-";

/// Recipe keys that may differ between a checkpoint and the run that resumes it, because they change no sample, no
/// weight and no learning rate of the steps already made: where results go, how batches travel (the data's fingerprint
/// is compared instead), how a step is cut into micro-batches (sums are then rounded in another order), and the length
/// of the run (the schedule is that of the new length from the next step on).
const FREE_KEYS: [&str; 16] = [
    "run.output",
    "run.epochs",
    "run.max_steps",
    "data.shards",
    "data.loader",
    "data.dataset",
    "data.token_file",
    "data.authority",
    "data.certificate",
    "data.key",
    "data.allow_remote_plaintext",
    "data.prefetch",
    "data.max_batch_bytes",
    "data.validation",
    "batch.micro",
    "batch.recompute",
];
const FREE_TABLES: [&str; 5] = ["logging.", "checkpoint.", "guard.", "samples.", "ranks."];

/// What the best checkpoint has least of, in nats per label token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Score {
    /// Mean loss of the steps since the checkpoint before.
    Training { value: f64 },
    /// Loss over validation data of that fingerprint.
    Validation { value: f64, data: Fingerprint },
}

impl Score {
    pub(crate) fn value(self) -> f64 {
        match self {
            Self::Training { value } | Self::Validation { value, .. } => value,
        }
    }

    /// Whether both are losses over the same.
    fn is_like(self, other: Self) -> bool {
        match (self, other) {
            (Self::Training { .. }, Self::Training { .. }) => true,
            (Self::Validation { data, .. }, Self::Validation { data: other, .. }) => data == other,
            _ => false,
        }
    }
}

/// All the state there is besides weights and moments. No random stream is held: every draw is a pure function of the
/// seed and the place, so the recipe's seed and the cursor stand for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainerState {
    /// [`STATE_VERSION`] of the writer.
    pub(crate) version: u32,
    /// Optimizer steps made.
    pub(crate) step: u64,
    /// Where the data goes on.
    pub(crate) cursor: Cursor,
    /// Fingerprint of the processor.
    pub(crate) processor: Fingerprint,
    /// None where it was not measured: such a checkpoint is kept for its age alone.
    pub(crate) score: Option<Score>,
    /// Seconds trained.
    pub(crate) seconds: f64,
    /// Steps whose update was left out.
    pub(crate) skipped: u64,
    /// The resolved recipe.
    pub(crate) recipe: Value,
    /// blake3 of each file beside this one; compared before a run goes on from them.
    pub(crate) files: BTreeMap<String, Fingerprint>,
}

impl TrainerState {
    pub(crate) fn new(step: u64, cursor: Cursor, processor: Fingerprint, recipe: Value) -> Self {
        Self {
            version: STATE_VERSION,
            step,
            cursor,
            processor,
            score: None,
            seconds: 0.0,
            skipped: 0,
            recipe,
            files: BTreeMap::new(),
        }
    }

    /// Reads the state of the checkpoint in `folder`.
    pub(crate) fn load(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(STATE_FILE);
        let text = fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
        let fault = |fault: serde_json::Error| TrainError::Checkpoint {
            path: folder.to_owned(),
            what: STATE_FILE.to_owned(),
            expected: format!("the state of a checkpoint of version {STATE_VERSION}"),
            found: fault.to_string(),
        };
        let state: Self = serde_json::from_str(&text).map_err(fault)?;
        match state.version {
            STATE_VERSION => Ok(state),
            other => Err(TrainError::Checkpoint {
                path: folder.to_owned(),
                what: "version".to_owned(),
                expected: STATE_VERSION.to_string(),
                found: other.to_string(),
            }),
        }
    }

    /// Refuses a checkpoint in `folder` of which a file is gone or not as it was written.
    pub(crate) fn check_files(&self, folder: &Path) -> Result<(), TrainError> {
        for (name, expected) in &self.files {
            let found = checksum(&folder.join(name))?;
            if found != *expected {
                return Err(TrainError::Checkpoint {
                    path: folder.to_owned(),
                    what: format!("`{name}` is damaged"),
                    expected: format!("checksum {}", expected.short()),
                    found: found.short(),
                });
            }
        }
        Ok(())
    }

    /// Refuses a state whose recipe, data or processor are not this run's, by the field that differs.
    pub(crate) fn check_belongs_to(&self, run: &Self, folder: &Path) -> Result<(), TrainError> {
        let (ours, theirs) = (run.compared_fields(), self.compared_fields());
        let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let text = |value: Option<&String>| value.map_or("nothing".to_owned(), |value| format!("`{value}`"));
        match keys.into_iter().find(|key| ours.get(*key) != theirs.get(*key)) {
            None => Ok(()),
            Some(key) => Err(TrainError::Checkpoint {
                path: folder.to_owned(),
                what: format!("`{key}` is another run's"),
                expected: text(ours.get(key)),
                found: text(theirs.get(key)),
            }),
        }
    }

    fn compared_fields(&self) -> BTreeMap<String, String> {
        let mut fields = self.all_fields();
        fields.retain(|key, _| {
            !FREE_KEYS.contains(&key.as_str()) && !FREE_TABLES.iter().any(|table| key.starts_with(table))
        });
        fields
    }

    /// Every key of the recipe with its value, and what the data and the processor are.
    pub(crate) fn all_fields(&self) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        flatten("", &self.recipe, &mut fields);
        fields.insert("data fingerprint".to_owned(), self.cursor.fingerprint.to_string());
        fields.insert("batch spec".to_owned(), self.cursor.spec.to_string());
        fields.insert("processor fingerprint".to_owned(), self.processor.to_string());
        fields
    }
}

/// `{"a": {"b": 1}}` as `a.b` = `1`.
fn flatten(key: &str, value: &Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(table) => {
            for (name, value) in table {
                let dot = if key.is_empty() { "" } else { "." };
                flatten(&format!("{key}{dot}{name}"), value, fields);
            }
        }
        leaf => {
            fields.insert(key.to_owned(), leaf.to_string());
        }
    }
}

/// The `checkpoints` folder of a run. Each checkpoint appears in it whole, by a rename.
pub(crate) struct Checkpoints {
    root: PathBuf,
    keep: usize,
}

impl Checkpoints {
    pub(crate) fn new(run_folder: &Path, keep: usize) -> Self {
        Self { root: run_folder.join("checkpoints"), keep }
    }

    /// Every checkpoint by ascending step.
    pub(crate) fn list(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(fault) if fault.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(fault) => return Err(TrainError::io("list", &self.root)(fault)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(TrainError::io("list", &self.root))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(step) = name.and_then(|name| name.strip_prefix(PREFIX)?.parse().ok()) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The checkpoint of the most steps.
    pub(crate) fn newest(&self) -> Result<Option<PathBuf>, TrainError> {
        Ok(self.list()?.pop().map(|(_, path)| path))
    }

    /// Writes one checkpoint: all files into a hidden folder, flushed to disk, then renamed; then drops the old ones.
    pub(crate) fn save(
        &self,
        state: &TrainerState,
        model: &Vlm,
        processor: &Processor,
        optimizer: &Optimizer,
    ) -> Result<PathBuf, TrainError> {
        self.sweep()?;
        let partial = self.root.join(format!(".{PREFIX}{}.partial", state.step));
        fs::create_dir_all(&partial).map_err(TrainError::io("create", &partial))?;
        model.save(&partial).map_err(|source| unsaved(&partial, source))?;
        processor.save(&partial).map_err(|source| unsaved(&partial, source))?;
        save_moments(optimizer.slots(), &partial.join(OPTIMIZER_FILE))?;
        let state = TrainerState { files: checksums(&partial)?, ..state.clone() };
        let json = serde_json::to_string_pretty(&state).expect("a state of plain fields always has a JSON form");
        let state_path = partial.join(STATE_FILE);
        fs::write(&state_path, json).map_err(TrainError::io("write", &state_path))?;
        flush_folder(&partial)?;
        let path = self.root.join(format!("{PREFIX}{}", state.step));
        self.discard(&path)?;
        fs::rename(&partial, &path).map_err(TrainError::io("rename to", &path))?;
        flush(&self.root)?;
        self.prune()?;
        Ok(path)
    }

    /// Keeps the newest `keep` and the one with the least score (the newest of equals) among those with a score of the newest's
    /// kind: a run that is resumed with other validation data, or the first, begins to compare anew.
    fn prune(&self) -> Result<(), TrainError> {
        let found = self.list()?;
        // A damaged old checkpoint is never the best, and must not stop a run that has just written a sound one.
        let score = |(step, path): &(u64, PathBuf)| Some((TrainerState::load(path).ok()?.score?, *step));
        let scored: Vec<(Score, u64)> = found.iter().rev().filter_map(score).collect();
        let comparable = scored.iter().filter(|(score, _)| score.is_like(scored[0].0));
        let best = comparable.min_by(|(a, _), (b, _)| a.value().total_cmp(&b.value())).map(|(_, step)| *step);
        let num_old = found.len().saturating_sub(self.keep);
        for (step, path) in &found[..num_old] {
            if best != Some(*step) {
                self.discard(path)?;
            }
        }
        Ok(())
    }

    /// Removes a checkpoint. It loses its name first: a kill in between must not leave half of it under that name.
    fn discard(&self, path: &Path) -> Result<(), TrainError> {
        let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy().into_owned());
        let hidden = self.root.join(format!(".{name}.discarded"));
        match fs::rename(path, &hidden) {
            Ok(()) => fs::remove_dir_all(&hidden).map_err(TrainError::io("remove", &hidden)),
            Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(()),
            Err(fault) => Err(TrainError::io("rename", path)(fault)),
        }
    }

    /// Removes what a killed run was writing or discarding.
    fn sweep(&self) -> Result<(), TrainError> {
        fs::create_dir_all(&self.root).map_err(TrainError::io("create", &self.root))?;
        for entry in fs::read_dir(&self.root).map_err(TrainError::io("list", &self.root))? {
            let path = entry.map_err(TrainError::io("list", &self.root))?.path();
            let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
            if name.strip_prefix('.').is_some_and(|rest| rest.starts_with(PREFIX)) {
                fs::remove_dir_all(&path).map_err(TrainError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Puts the moments saved in `folder` back; each trained parameter must be there with its length, and nothing else.
pub(crate) fn load_moments(slots: &mut [Slot], folder: &Path) -> Result<(), TrainError> {
    let path = folder.join(OPTIMIZER_FILE);
    let bytes = fs::read(&path).map_err(TrainError::io("read", &path))?;
    let fault = |what: String, expected: String, found: String| TrainError::Checkpoint {
        path: folder.to_owned(),
        what,
        expected,
        found,
    };
    let whole = || "a whole safetensors file".to_owned();
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|cause| fault(OPTIMIZER_FILE.to_owned(), whole(), cause.to_string()))?;
    if file.len() != 3 * slots.len() {
        let expected = format!("{} tensors, three for each trained parameter", 3 * slots.len());
        return Err(fault(OPTIMIZER_FILE.to_owned(), expected, file.len().to_string()));
    }
    for slot in slots {
        let key = format!("step.{}", slot.name);
        let steps = file.tensor(&key).ok().and_then(|view| view.data().try_into().ok());
        let count = || fault(key, "a count of steps as one u64".to_owned(), "none".to_owned());
        slot.steps = u64::from_le_bytes(steps.ok_or_else(count)?);
        for (key, moment) in moments_mut(slot) {
            let expected = format!("{} f32 values", moment.len());
            let view = file.tensor(&key).map_err(|cause| fault(key.clone(), expected.clone(), cause.to_string()))?;
            if view.dtype() != Dtype::F32 || view.data().len() != 4 * moment.len() {
                return Err(fault(key, expected, format!("{:?} {:?}", view.dtype(), view.shape())));
            }
            for (value, word) in moment.iter_mut().zip(view.data().chunks_exact(4)) {
                *value = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            }
        }
    }
    Ok(())
}

fn moments_mut(slot: &mut Slot) -> [(String, &mut Vec<f32>); 2] {
    let key = |kind: &str| format!("{kind}.{}", slot.name);
    [(key("exp_avg"), &mut slot.exp_avg), (key("exp_avg_sq"), &mut slot.exp_avg_sq)]
}

fn save_moments(slots: &[Slot], path: &Path) -> Result<(), TrainError> {
    let mut views = Vec::with_capacity(3 * slots.len());
    let steps: Vec<[u8; 8]> = slots.iter().map(|slot| slot.steps.to_le_bytes()).collect();
    for (slot, steps) in slots.iter().zip(&steps) {
        let view = TensorView::new(Dtype::U64, Vec::new(), steps).expect("eight bytes are one u64");
        views.push((format!("step.{}", slot.name), view));
        for (kind, moment) in [("exp_avg", &slot.exp_avg), ("exp_avg_sq", &slot.exp_avg_sq)] {
            let bytes: &[u8] = bytemuck::cast_slice(moment);
            let view = TensorView::new(Dtype::F32, slot.var.dims().to_vec(), bytes)
                .expect("a moment has as many values as its parameter");
            views.push((format!("{kind}.{}", slot.name), view));
        }
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|source| unsaved(path, source))
}

fn unsaved(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> TrainError {
    TrainError::Save { path: path.to_owned(), source: Box::new(source) }
}

/// blake3 of the state of the checkpoint in `folder`, which holds those of its other files.
pub(crate) fn state_fingerprint(folder: &Path) -> Result<Fingerprint, TrainError> {
    checksum(&folder.join(STATE_FILE))
}

fn checksum(path: &Path) -> Result<Fingerprint, TrainError> {
    let mut hasher = blake3::Hasher::new();
    let read = File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    read.map_err(TrainError::io("read", path))?;
    Ok(Fingerprint(*hasher.finalize().as_bytes()))
}

/// Of every file in `folder`, by name.
fn checksums(folder: &Path) -> Result<BTreeMap<String, Fingerprint>, TrainError> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(TrainError::io("list", folder))? {
        let path = entry.map_err(TrainError::io("list", folder))?.path();
        let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy().into_owned());
        found.insert(name, checksum(&path)?);
    }
    Ok(found)
}

/// Makes a file or folder survive a power cut.
pub(crate) fn flush(path: &Path) -> Result<(), TrainError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(TrainError::io("flush", path))
}

/// A folder and every file in it.
pub(crate) fn flush_folder(folder: &Path) -> Result<(), TrainError> {
    for entry in fs::read_dir(folder).map_err(TrainError::io("list", folder))? {
        let path = entry.map_err(TrainError::io("list", folder))?.path();
        flush(&path)?;
    }
    flush(folder)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(recipe: Value) -> TrainerState {
        let cursor = Cursor::start(Fingerprint([1; 32]), Fingerprint([2; 32]));
        TrainerState::new(7, cursor, Fingerprint([3; 32]), recipe)
    }

    fn refusal(ours: &TrainerState, theirs: &TrainerState) -> Option<String> {
        theirs.check_belongs_to(ours, Path::new("step-7")).err().map(|fault| fault.to_string())
    }

    #[test]
    fn a_state_of_another_run_is_refused_by_the_field_that_differs() {
        let ours = state(json!({"optimizer": {"eps": 1e-8, "betas": [0.9, 0.999]}}));
        let other = state(json!({"optimizer": {"eps": 1e-6, "betas": [0.9, 0.999]}}));
        let told = refusal(&ours, &other).expect("another eps");
        assert!(told.contains("`optimizer.eps` is another run's: expected `1e-8`, found `1e-6`"), "{told}");
        let mut other_data = ours.clone();
        other_data.cursor.fingerprint = Fingerprint([9; 32]);
        assert!(refusal(&ours, &other_data).expect("other data").contains("`data fingerprint`"));
    }

    #[test]
    fn length_transport_and_logging_may_differ() {
        let ours =
            state(json!({"run": {"seed": 1, "max_steps": 20}, "data": {"shards": "a"}, "logging": {"every": 1}}));
        let other = state(json!({"run": {"seed": 1, "epochs": 2}, "data": {"loader": "b"}, "logging": {"every": 9}}));
        assert_eq!(refusal(&ours, &other), None);
        let reseeded = state(json!({"run": {"seed": 2, "max_steps": 20}}));
        assert!(refusal(&ours, &reseeded).expect("another seed").contains("`run.seed`"));
    }

    #[test]
    fn a_state_that_is_damaged_or_newer_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(STATE_FILE);
        let newer = TrainerState { version: STATE_VERSION + 1, ..state(json!({})) };
        for (text, part) in [("{", "trainer_state.json"), (&serde_json::to_string(&newer).expect("json"), "version")] {
            fs::write(&path, text).expect("written");
            let told = TrainerState::load(folder.path()).expect_err("refused").to_string();
            assert!(told.contains(part), "{told}");
        }
    }

    fn write_state(checkpoints: &Checkpoints, step: u64, score: Option<Score>) {
        let path = checkpoints.root.join(format!("{PREFIX}{step}"));
        fs::create_dir_all(&path).expect("created");
        let json = serde_json::to_string(&TrainerState { step, score, ..state(json!({})) }).expect("json");
        fs::write(path.join(STATE_FILE), json).expect("written");
    }

    #[test]
    fn a_checkpoint_without_a_score_is_never_the_best_and_kinds_are_not_mixed() {
        let held_out = |value, data| Some(Score::Validation { value, data: Fingerprint([data; 32]) });
        for (scores, kept) in [
            (vec![Some(Score::Training { value: 3.0 }), None, None], vec![1, 3]),
            (vec![None, None, None], vec![3]),
            // Validation data came on resume: their losses are compared among themselves, though training's was less.
            (vec![Some(Score::Training { value: 0.1 }), held_out(2.0, 1), held_out(3.0, 1)], vec![2, 3]),
            (vec![held_out(0.1, 1), held_out(2.0, 2), None, held_out(3.0, 2)], vec![2, 4]),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let checkpoints = Checkpoints::new(folder.path(), 1);
            (1..).zip(&scores).for_each(|(step, score)| write_state(&checkpoints, step, *score));
            checkpoints.prune().expect("pruned");
            let steps: Vec<u64> = checkpoints.list().expect("listed").into_iter().map(|(step, _)| step).collect();
            assert_eq!(steps, kept, "{scores:?}");
        }
    }

    #[test]
    fn pruning_keeps_the_newest_and_the_best() {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoints = Checkpoints::new(folder.path(), 2);
        for (step, value) in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0), (10, 2.5)] {
            write_state(&checkpoints, step, Some(Score::Training { value }));
        }
        let damaged = checkpoints.root.join(format!("{PREFIX}0"));
        fs::create_dir_all(&damaged).expect("created");
        fs::write(damaged.join(STATE_FILE), "{").expect("written");
        fs::create_dir(checkpoints.root.join(".step-11.partial")).expect("created");
        checkpoints.prune().expect("pruned");
        let steps: Vec<u64> = checkpoints.list().expect("listed").into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [2, 4, 10]);
        assert!(checkpoints.newest().expect("listed").expect("some").ends_with("step-10"));
        checkpoints.sweep().expect("swept");
        assert_eq!(fs::read_dir(&checkpoints.root).expect("listed").count(), 3);
    }
}
