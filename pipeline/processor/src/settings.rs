//! `vela_processor.json`: what a folder's own files do not say, kept with them so that training and chat agree.
//!
//! Optional; a saved processor has it if any setting differs from its default. What a caller asks for in
//! [`ProcessorOptions`] counts before the file.

use serde::{Deserialize, Serialize};

use crate::builtin::{Builtin, template_names};
use crate::{ImageMode, ProcessorError, ProcessorOptions, TemplateDate};

pub(crate) const SETTINGS_FILE: &str = "vela_processor.json";

/// The file's content; an absent key means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    template_date: Option<TemplateDate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_mode: Option<ImageMode>,
}

impl Settings {
    /// The settings of a folder's file, if it has one, under those of the caller; defaults are left out.
    pub(crate) fn resolve(file: Option<&[u8]>, options: &ProcessorOptions) -> Result<Self, ProcessorError> {
        let fault = |source| ProcessorError::Json { file: SETTINGS_FILE.into(), source };
        let stored: Self = file.map_or_else(|| Ok(Self::default()), serde_json::from_slice).map_err(fault)?;
        let settings = Self {
            template: options.template.clone().or(stored.template),
            template_date: options.template_date.or(stored.template_date).filter(|date| *date != Default::default()),
            system: options.system.clone().or(stored.system).filter(|text| !text.is_empty()),
            image_mode: options.image_mode.or(stored.image_mode).filter(|mode| *mode != Default::default()),
        };
        settings.builtin().map(|_| settings)
    }

    /// The file's bytes; none if everything is as by default.
    pub(crate) fn to_file(&self) -> Option<Vec<u8>> {
        let text = serde_json::to_string_pretty(self).expect("strings under fixed keys are always JSON");
        (*self != Self::default()).then(|| (text + "\n").into_bytes())
    }

    /// The chosen template, if one is chosen.
    pub(crate) fn builtin(&self) -> Result<Option<&'static Builtin>, ProcessorError> {
        let Some(name) = &self.template else { return Ok(None) };
        Builtin::named(name).map(Some).ok_or_else(|| ProcessorError::Setting {
            file: SETTINGS_FILE,
            key: "template".into(),
            expected: format!("one of {}", known_templates()),
            found: name.clone(),
        })
    }

    pub(crate) fn template_date(&self) -> TemplateDate {
        self.template_date.unwrap_or_default()
    }

    /// The system turn of dialogues that bring none.
    pub(crate) fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    pub(crate) fn image_mode(&self) -> ImageMode {
        self.image_mode.unwrap_or_default()
    }
}

/// The names of built-in templates, for messages.
pub(crate) fn known_templates() -> String {
    template_names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
