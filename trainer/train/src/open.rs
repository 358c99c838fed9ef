//! What a run is made of, opened as its recipe says.

use std::path::{Path, PathBuf};

use candle_core::Device;
use vela_models::{Fresh, Layout, ModelPreset, Vlm, VlmConfig};
use vela_processor::{Processor, ProcessorOptions};
use vela_types::{BatchSource, ProcessorSummary};

use crate::checkpoint::{Checkpoints, TrainerState, load_moments};
use crate::error::TrainError;
use crate::groups::Component;
use crate::optimizer::Optimizer;
use crate::recipe::{Recipe, WeightOrigin};

/// The folder of a model: `path`, or the newest checkpoint if `path` is a run folder.
fn model_folder(path: &Path) -> Result<PathBuf, TrainError> {
    let is_run = path.join("checkpoints").is_dir() && !path.join("config.json").is_file();
    let newest = if is_run { Checkpoints::new(path, 1).newest()? } else { None };
    Ok(newest.unwrap_or_else(|| path.to_owned()))
}

/// Opens the processor of a processor's, model's or run's folder.
pub(crate) fn open_processor(path: &Path) -> Result<Processor, TrainError> {
    let path = &model_folder(path)?;
    Processor::load(path, &ProcessorOptions::default())
        .map_err(|source| TrainError::Processor { path: path.to_owned(), source: Box::new(source) })
}

/// The weights: a checkpoint's if there is one, else what the recipe says. The groups of the recipe must fit them.
pub(crate) fn open_model(
    recipe: &Recipe,
    checkpoint: Option<&Path>,
    data: &ProcessorSummary,
) -> Result<Vlm, TrainError> {
    refuse_adapters(recipe)?;
    let place = &model_folder(checkpoint.unwrap_or_else(|| recipe.weights().path()))?;
    let fault = |source| TrainError::ModelFolder { path: place.to_owned(), source: Box::new(source) };
    let config = match (checkpoint, recipe.weights()) {
        (None, WeightOrigin::Preset(path)) => {
            ModelPreset::load(path).and_then(|preset| preset.config(data.vocab_size, data.image_token_id))
        }
        _ => VlmConfig::load(place),
    };
    let config = config.map_err(fault)?;
    let num_blocks = config.language.num_layers;
    let trains = |name: &str| recipe.groups().of(name, num_blocks).is_some();
    let in_projector = |name: &str| Component::of(name) == Some(Component::Projector);
    let (device, folders) = (&Device::Cpu, [(Layout::Joined, place.as_path())]);
    let model = match (checkpoint, recipe.weights()) {
        (None, WeightOrigin::Preset(_)) => Vlm::init(config, recipe.seed(), &trains, device),
        (None, WeightOrigin::Folder { fresh_projector: true, .. }) => {
            let fresh = Fresh { names: &in_projector, seed: recipe.seed() };
            Vlm::from_folders(config, &folders, fresh, &trains, device)
        }
        _ => Vlm::from_folders(config, &folders, Fresh::NONE, &trains, device),
    };
    let model = model.map_err(fault)?;
    recipe.groups().check_names(model.params().iter().map(|(name, _, _)| name), num_blocks)?;
    Ok(model)
}

/// A model of which nothing learns.
pub(crate) fn open_frozen(path: &Path) -> Result<Vlm, TrainError> {
    let folder = model_folder(path)?;
    Vlm::load(&folder, &|_| false, &Device::Cpu)
        .map_err(|source| TrainError::ModelFolder { path: folder, source: Box::new(source) })
}

/// The language models of this build have no place for adapters yet.
fn refuse_adapters(recipe: &Recipe) -> Result<(), TrainError> {
    match recipe.settings().lora {
        None => Ok(()),
        Some(_) => Err(TrainError::Recipe {
            key: "train_type".to_owned(),
            expected: "another than `lora`, whose adapters this build cannot train".to_owned(),
            found: "lora".to_owned(),
        }),
    }
}

pub(crate) fn open_optimizer(recipe: &Recipe, model: &Vlm) -> Optimizer {
    let num_blocks = model.config().language.num_layers;
    let trained = model.params().trainable().filter_map(|(name, var)| {
        let group = recipe.groups().of(name, num_blocks)?;
        Some((name.to_owned(), var.clone(), group))
    });
    Optimizer::new(trained, recipe.settings().optimizer, recipe.groups().clone())
}

/// The state of the checkpoint in `folder`, whose files are all as they were written.
pub(crate) fn open_saved(folder: &Path) -> Result<(&Path, TrainerState), TrainError> {
    let saved = TrainerState::load(folder)?;
    saved.check_files(folder)?;
    Ok((folder, saved))
}

/// The state of a new run, or the `saved` one with its moments put back and the source moved to its cursor.
pub(crate) fn open_state(
    recipe: &Recipe,
    processor: &Processor,
    source: &mut dyn BatchSource,
    optimizer: &mut Optimizer,
    saved: Option<(&Path, TrainerState)>,
) -> Result<TrainerState, TrainError> {
    let resolved = serde_json::to_value(recipe.resolved()).expect("a checked recipe always has a JSON form");
    let start = TrainerState::new(0, source.start_cursor(), processor.summary().fingerprint, resolved);
    let Some((folder, saved)) = saved else { return Ok(start) };
    saved.check_belongs_to(&start, folder)?;
    load_moments(optimizer.slots_mut(), folder)?;
    source.seek(&saved.cursor).map_err(TrainError::Seek)?;
    Ok(TrainerState { recipe: start.recipe, ..saved })
}
