//! The parts of a model, and how much of it learns.

use std::fmt;
use std::str::FromStr;

use vela_models::is_adapter;

use crate::error::TrainError;

/// A part of the model. Parameters belong to it by their Hugging Face name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Component {
    /// `multi_modal_projector.*`
    Projector,
    /// `language_model.*`
    LanguageModel,
    /// `vision_tower.*`
    VisionTower,
    /// `*.lora_A.*` and `*.lora_B.*`, wherever they stand.
    Lora,
}

impl Component {
    /// Every component, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Projector, Self::LanguageModel, Self::VisionTower, Self::Lora];

    /// The name recipes and metrics use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Projector => "projector",
            Self::LanguageModel => "language_model",
            Self::VisionTower => "vision_tower",
            Self::Lora => "lora",
        }
    }

    /// The component that recipes call `name`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|component| component.as_str() == name)
    }

    /// The component of a parameter; `None` if the name belongs to none.
    pub fn of(name: &str) -> Option<Self> {
        if is_adapter(name) {
            return Some(Self::Lora);
        }
        match name.split('.').next() {
            Some("multi_modal_projector") => Some(Self::Projector),
            Some("language_model") => Some(Self::LanguageModel),
            Some("vision_tower") => Some(Self::VisionTower),
            _ => None,
        }
    }
}

/// The number of the block that a parameter belongs to: `3` of `language_model.model.layers.3.mlp.up_proj.weight`, and of `language_model.transformer.h.3.mlp.w1.weight`.
pub(crate) fn block_of(name: &str) -> Option<usize> {
    let (_, rest) = name.split_once(".layers.").or_else(|| name.split_once(".h."))?;
    rest.split('.').next()?.parse().ok()
}

/// How much of the model learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainType {
    /// Stage 1: the projector alone.
    FreezeVisionAndLlm,
    /// Stage 2: projector and language model.
    FreezeVision,
    /// Projector, and low-rank adapters of the linear layers that the recipe names.
    Lora,
    /// Everything.
    Full,
}

impl TrainType {
    const ALL: [Self; 4] = [Self::FreezeVisionAndLlm, Self::FreezeVision, Self::Lora, Self::Full];

    const fn as_str(self) -> &'static str {
        match self {
            Self::FreezeVisionAndLlm => "freeze_vision_and_llm",
            Self::FreezeVision => "freeze_vision",
            Self::Lora => "lora",
            Self::Full => "full",
        }
    }

    /// Whether `component` may learn.
    pub fn trains(self, component: Component) -> bool {
        match component {
            Component::Projector => true,
            Component::LanguageModel => matches!(self, Self::FreezeVision | Self::Full),
            Component::VisionTower => self == Self::Full,
            Component::Lora => self == Self::Lora,
        }
    }
}

impl fmt::Display for TrainType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl FromStr for TrainType {
    type Err = TrainError;

    fn from_str(text: &str) -> Result<Self, TrainError> {
        Self::ALL.into_iter().find(|train_type| train_type.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(|train_type| format!("`{train_type}`")).join(", ");
            let expected = format!("one of {names}");
            TrainError::Recipe { key: "train_type".to_owned(), expected, found: text.to_owned() }
        })
    }
}
