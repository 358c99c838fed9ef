//! Vision towers, projectors, language models and the model that joins them, built from plain tensors and the ops of
//! `vela-kernels`. This crate owns the reading of Hugging Face `LlavaForConditionalGeneration` folders (config and
//! weights, checked name by name), the seeded drawing of fresh weights, the summed training loss, greedy generation
//! with a key-value cache, and the writing of folders that `transformers` opens. It refuses to guess: a missing,
//! unexpected or misshapen tensor and a config whose numbers contradict each other are errors. It knows nothing of
//! tokenizers, images in files, optimizers or checkpoints of a run.

mod batch;
mod config;
mod dropout;
mod error;
mod export;
mod generate;
mod init;
mod join;
mod language;
mod layers;
mod params;
mod projector;
mod qwen_names;
mod recompute;
mod vision;
mod vlm;
mod weights;

pub use batch::{IGNORE_LABEL, ModelBatch};
pub use config::{
    Activation, FeatureConfig, InitConfig, LanguageConfig, LanguageFamily, LanguagePreset, LoraConfig, ModelPreset,
    ProjectorConfig, ProjectorKind, ProjectorPreset, RopeScaling, VisionConfig, VisionFamily, VisionPreset, VlmConfig,
};
pub use dropout::{DropoutKeys, TokenPlace};
pub use error::{ModelError, WeightProblem};
pub use export::Export;
pub use generate::{GenerateOptions, Prompt};
pub use join::{Join, Joined};
pub use language::{KvCache, LanguageModel};
pub use layers::is_adapter;
pub use params::{Param, Params};
pub use projector::Projector;
pub use recompute::Recompute;
pub use vision::VisionTower;
pub use vlm::Vlm;
pub use weights::{Fresh, Layout, WeightDtype};
