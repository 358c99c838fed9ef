//! What a run is made of, opened as its recipe says.

use std::path::{Path, PathBuf};

use candle_core::Device;
use vela_models::{Fresh, Layout, LoraConfig, ModelError, ModelPreset, Vlm, VlmConfig};
use vela_processor::{Processor, ProcessorOptions};
use vela_types::{BatchSource, ProcessorSummary};

use crate::checkpoint::{Checkpoints, TrainerState, load_moments};
use crate::error::TrainError;
use crate::groups::Component;
use crate::optimizer::Optimizer;
use crate::recipe::{RawLora, Recipe, WeightOrigin, refuse};

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
    let place = &model_folder(checkpoint.unwrap_or_else(|| recipe.weights().path()))?;
    let fault = |source| TrainError::ModelFolder { path: place.to_owned(), source: Box::new(source) };
    let config = match (checkpoint, recipe.weights()) {
        (None, WeightOrigin::Preset(path)) => {
            ModelPreset::load(path).and_then(|preset| preset.config(data.vocab_size, data.image_token_id))
        }
        _ => VlmConfig::load(place),
    };
    let found = config.map_err(fault)?;
    let has_adapters = found.language.lora.is_some();
    let config = with_adapters(found, recipe).map_err(fault)?;
    let num_blocks = config.language.num_layers;
    let trains = |name: &str| recipe.groups().of(name, num_blocks).is_some();
    let fresh_projector = matches!(recipe.weights(), WeightOrigin::Folder { fresh_projector: true, .. });
    let is_fresh = |name: &str| {
        let is_new = match Component::of(name) {
            Some(Component::Projector) => fresh_projector,
            Some(Component::Lora) => !has_adapters,
            _ => false,
        };
        checkpoint.is_none() && is_new
    };
    let (device, folders) = (&Device::Cpu, [(Layout::Joined, place.as_path())]);
    let model = match (checkpoint, recipe.weights()) {
        (None, WeightOrigin::Preset(_)) => Vlm::init(config, recipe.seed(), &trains, device),
        _ => Vlm::from_folders(config, &folders, Fresh { names: &is_fresh, seed: recipe.seed() }, &trains, device),
    };
    let mut model = model.map_err(fault)?;
    model.set_recompute(recipe.recompute());
    recipe.groups().check_names(model.params().iter().map(|(name, _, _)| name), num_blocks)?;
    if has_adapters {
        check_base(recipe, &model)?
    }
    Ok(model)
}

/// Refuses to train what the adapters of a folder adapt: an export of the adapters alone would lose it.
fn check_base(recipe: &Recipe, model: &Vlm) -> Result<(), TrainError> {
    let is_base = |name| matches!(Component::of(name), Some(Component::LanguageModel | Component::VisionTower));
    match model.params().trainable().any(|(name, _)| is_base(name)) {
        true => refuse(
            "train_type",
            "`lora` or `freeze_vision_and_llm` for a folder with adapters; merge them first: `trainer export --merge`",
            &recipe.settings().train_type,
        ),
        false => Ok(()),
    }
}

/// A model of which nothing learns.
pub(crate) fn open_frozen(path: &Path) -> Result<Vlm, TrainError> {
    let folder = model_folder(path)?;
    Vlm::load(&folder, &|_| false, &Device::Cpu)
        .map_err(|source| TrainError::ModelFolder { path: folder, source: Box::new(source) })
}

/// `config` with the adapters of `[lora]`, if the recipe has them. A folder that has adapters already must have these (their
/// dropout is the recipe's): they go on.
fn with_adapters(config: VlmConfig, recipe: &Recipe) -> Result<VlmConfig, ModelError> {
    let Some(RawLora { rank, alpha, dropout, targets }) = recipe.settings().lora.clone() else { return Ok(config) };
    let wanted = LoraConfig { rank, alpha, targets, dropout };
    match &config.language.lora {
        Some(found) if (LoraConfig { dropout, ..found.clone() }) != wanted => Err(ModelError::Config {
            key: "lora".to_owned(),
            expected: format!("{wanted:?}, as the recipe says"),
            found: format!("{found:?}"),
        }),
        _ => config.with_lora(wanted),
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
