//! `run.json`: what a run was made of, for whoever looks at it later.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vela_models::Vlm;
use vela_types::DatasetInfo;

use crate::error::TrainError;
use crate::memory::{MemoryEstimate, machine_memory};
use crate::recipe::Recipe;
use crate::watch::Peak;

/// The name of the file in a run folder.
pub(crate) const RUN_CARD: &str = "run.json";

/// Data, model and machine of a run, as the process that was last at it found them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunCard {
    /// Of the program.
    pub(crate) version: String,
    /// Steps of the run, and of a pass over the data.
    pub(crate) total_steps: u64,
    pub(crate) steps_per_epoch: u64,
    /// Fingerprint of the data.
    pub(crate) data: String,
    pub(crate) samples: u64,
    pub(crate) images: u64,
    /// Images counted as one.
    pub(crate) tokens: u64,
    /// Fingerprint of the processor.
    pub(crate) processor: String,
    pub(crate) image_mode: String,
    /// Weights, all and trained.
    pub(crate) weights: u64,
    pub(crate) trained: u64,
    pub(crate) image_tokens: u64,
    /// Processes that shared each step; older cards are of one.
    #[serde(default = "one")]
    pub(crate) ranks: u64,
    /// Of rank 0.
    pub(crate) machine: Machine,
    pub(crate) peak: Peak,
    /// Bytes, estimated before the first step.
    pub(crate) estimated_memory: u64,
}

/// What the run was made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) system: String,
    /// As the processor calls itself; empty where the system does not tell.
    pub(crate) cpu: String,
    /// Threads that run at once.
    pub(crate) cores: u64,
    /// Bytes; absent where the system does not tell.
    pub(crate) memory: Option<u64>,
}

impl Machine {
    fn here() -> Self {
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: model.map_or_else(String::new, |(_, name)| name.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            memory: machine_memory(),
        }
    }
}

fn one() -> u64 {
    1
}

impl RunCard {
    /// The card of a run; `steps` are those of the run and of an epoch.
    pub(crate) fn new(
        steps: (u64, u64),
        data: &DatasetInfo,
        model: &Vlm,
        peak: Peak,
        estimate: &MemoryEstimate,
    ) -> Self {
        let (weights, trained) = model.params().num_values();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            total_steps: steps.0,
            steps_per_epoch: steps.1,
            data: data.fingerprint.to_string(),
            samples: data.num_samples,
            images: data.num_images,
            tokens: data.num_tokens,
            processor: data.processor.fingerprint.to_string(),
            image_mode: data.processor.image_mode.clone(),
            weights: weights as u64,
            trained: trained as u64,
            image_tokens: model.image_tokens() as u64,
            ranks: one(),
            machine: Machine::here(),
            peak,
            estimated_memory: estimate.total(),
        }
    }

    /// The card of a run of so many ranks.
    pub(crate) fn of_ranks(self, world: usize) -> Self {
        Self { ranks: world as u64, ..self }
    }

    /// The file's text.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain fields always have a JSON form") + "\n"
    }

    /// Reads the card of the run in `folder`.
    pub(crate) fn load(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(RUN_CARD);
        let text = std::fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
        serde_json::from_str(&text).map_err(|fault| TrainError::RunFile { path, fault: fault.to_string() })
    }
}

/// The resolved recipe of the run in `folder`: its text, and the recipe.
pub(crate) fn load_recipe(folder: &Path) -> Result<(String, Recipe), TrainError> {
    let path = folder.join("recipe.toml");
    if !path.exists() {
        let fault = "it holds no `recipe.toml`; name a folder that `trainer train` wrote".to_owned();
        return Err(TrainError::RunFile { path: folder.to_owned(), fault });
    }
    let text = std::fs::read_to_string(&path).map_err(TrainError::io("read", &path))?;
    Ok((text, Recipe::load(&path, &[])?))
}
