//! Which parts of the model a recipe trains.

use std::fmt;
use std::str::FromStr;

use crate::error::TrainError;

/// A part of the model with its own learning rate. Parameters belong to it by their Hugging Face name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Component {
    /// `multi_modal_projector.*`
    Projector,
    /// `language_model.*`
    LanguageModel,
    /// `vision_tower.*`
    VisionTower,
}

impl Component {
    /// Every component, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Projector, Self::LanguageModel, Self::VisionTower];

    /// The name recipes and metrics use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Projector => "projector",
            Self::LanguageModel => "language_model",
            Self::VisionTower => "vision_tower",
        }
    }

    /// The component of a parameter; `None` if the name belongs to none.
    pub fn of(name: &str) -> Option<Self> {
        match name.split('.').next() {
            Some("multi_modal_projector") => Some(Self::Projector),
            Some("language_model") => Some(Self::LanguageModel),
            Some("vision_tower") => Some(Self::VisionTower),
            _ => None,
        }
    }
}

/// How much of the model learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainType {
    /// Stage 1: the projector alone.
    FreezeVisionAndLlm,
    /// Stage 2: projector and language model.
    FreezeVision,
    /// Everything.
    Full,
}

impl TrainType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::FreezeVisionAndLlm => "freeze_vision_and_llm",
            Self::FreezeVision => "freeze_vision",
            Self::Full => "full",
        }
    }

    /// Whether `component` may learn.
    pub fn trains(self, component: Component) -> bool {
        match component {
            Component::Projector => true,
            Component::LanguageModel => self != Self::FreezeVisionAndLlm,
            Component::VisionTower => self == Self::Full,
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
        let supported = [Self::FreezeVisionAndLlm, Self::FreezeVision, Self::Full];
        supported.into_iter().find(|train_type| train_type.as_str() == text).ok_or_else(|| {
            let names = supported.map(|train_type| format!("`{train_type}`")).join(", ");
            let later = if text == "lora" { "; `lora` arrives later" } else { "" };
            let expected = format!("one of {names}{later}");
            TrainError::Recipe { key: "train_type".to_owned(), expected, found: text.to_owned() }
        })
    }
}
