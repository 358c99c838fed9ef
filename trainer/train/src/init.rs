//! `trainer init`: one LLaVA folder, with its processor, from a published tower and a published language model.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vela_models::{Join, ModelError, ProjectorPreset, VlmConfig, WeightDtype};
use vela_processor::{Processor, ProcessorOptions};
use vela_runtime::Shutdown;

use crate::data::check_model;
use crate::error::TrainError;
use crate::model_folder::{ModelFolder, write_for_transformers};

/// What is joined.
#[derive(Clone, Debug)]
pub struct InitPlan {
    /// A folder with a vision tower (or a whole CLIP, Chinese-CLIP or SigLIP model) and its `preprocessor_config.json`.
    pub vision: PathBuf,
    /// A folder with a language model and its tokenizer.
    pub language: PathBuf,
    /// The folder to make.
    pub output: PathBuf,
    /// The projector, which starts fresh.
    pub projector: ProjectorPreset,
    /// Hidden state that becomes the image features, counted as Python does.
    pub feature_layer: i64,
    /// The features are the last state after the tower's last norm.
    pub feature_norm: bool,
    /// Chat template by name, where the language model's folder has none.
    pub template: Option<String>,
    /// Seed of the projector.
    pub seed: u64,
    /// Element type of what is written; each tensor's own by default.
    pub dtype: Option<WeightDtype>,
}

/// What was made; the JSON object of `trainer init`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InitReport {
    /// The folder.
    pub output: PathBuf,
    /// Weights of the whole model.
    pub parameters: usize,
    /// Weights of the fresh projector among them.
    pub projector_parameters: usize,
    /// Tokens per image.
    pub image_tokens: usize,
    /// Id of the token that stands for an image.
    pub image_token_id: u32,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Rows that the table got beyond the language model's own, each the mean of those.
    pub rows_added: usize,
    /// Whether `LlavaForConditionalGeneration` opens the folder as it is; else `trainer export` may say it in its
    /// words.
    pub opens_in_transformers: bool,
}

/// Makes the folder; it appears whole or not at all. A stop is looked at between tensors.
///
/// # Errors
/// An output folder that is not empty; configs, tokenizers and weights that cannot be read or do not fit, listed;
/// pixels of another extent than the tower's.
pub fn init(plan: &InitPlan, shutdown: &Shutdown) -> Result<InitReport, TrainError> {
    let options = ProcessorOptions { template: plan.template.clone(), ..ProcessorOptions::default() };
    let processor = Processor::load_parts(&plan.language, &plan.vision, &options)
        .map_err(|source| TrainError::Processor { path: plan.language.clone(), source: Box::new(source) })?;
    let folder = ModelFolder::begin(&plan.output)?;
    let summary = processor.summary();
    let join = Join {
        vision: &plan.vision,
        language: &plan.language,
        projector: plan.projector.clone(),
        feature_layer: plan.feature_layer,
        feature_norm: plan.feature_norm,
        image_token_id: summary.image_token_id,
        num_ids: summary.vocab_size,
        seed: plan.seed,
        dtype: plan.dtype,
    };
    let joined = join.write(folder.path(), &|| shutdown.requested());
    let joined = joined.map_err(|source| unusable(&plan.language, source))?;
    check_model(&joined.config, summary)?;
    write_for_transformers(&processor, &joined.config, folder.path())?;
    folder.finish()?;
    Ok(report(&joined.config, joined.rows_added, plan.output.clone()))
}

/// What went wrong with the folder at `path`, or that a stop was asked for.
pub(crate) fn unusable(path: &Path, source: ModelError) -> TrainError {
    match source {
        ModelError::Stopped { .. } => TrainError::Stopped { what: "the folder was not made" },
        source => TrainError::ModelFolder { path: path.to_owned(), source: Box::new(source) },
    }
}

fn report(config: &VlmConfig, rows_added: usize, output: PathBuf) -> InitReport {
    let count = |component: &str| -> usize {
        let parameters = config.parameters().into_iter().filter(|(name, _)| name.starts_with(component));
        parameters.map(|(_, shape)| shape.iter().product::<usize>()).sum()
    };
    InitReport {
        output,
        parameters: count(""),
        projector_parameters: count("multi_modal_projector."),
        image_tokens: config.image_tokens(),
        image_token_id: config.image_token_id,
        vocab_size: config.language.vocab_size,
        rows_added,
        opens_in_transformers: config.opens_in_transformers(),
    }
}
