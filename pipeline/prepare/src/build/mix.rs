//! Several inputs in one TOML file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use vela_runtime::load_config;

use super::InputConfig;
use super::config::is_remote;
use crate::PrepareError;
use crate::clean::CleanConfig;
use crate::dialogue::{DialogueConfig, DialogueMode};
use crate::sources::{Source, SourceOptions};

/// The inputs of a mix and what is kept of them, checked when a build starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// The inputs in the order of the file, their paths made absolute against the file's folder.
    pub inputs: Vec<InputConfig>,
    /// Which sound records are left out.
    pub clean: CleanConfig,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMix {
    #[serde(default)]
    clean: CleanConfig,
    input: Vec<RawInput>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInput {
    source: Source,
    path: PathBuf,
    images: Option<PathBuf>,
    name: Option<String>,
    dialogue: Option<DialogueMode>,
    max_facts: Option<usize>,
    description: Option<bool>,
    short_answers: Option<bool>,
    weight: Option<f64>,
    #[serde(default)]
    options: SourceOptions,
}

impl Mix {
    /// Reads a mix file: `[clean]` with the flags of cleaning, and an `[[input]]` with `source`, `path`, `images`, `name`, `dialogue`,
    /// `max_facts`, `description`, `short_answers`, `weight` and `[input.options]` for each input.
    ///
    /// # Errors
    /// If the file cannot be read, is no TOML, or has a key that is not known.
    pub fn read(path: &Path) -> Result<Self, PrepareError> {
        let raw: RawMix = load_config(path, &[])?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let inputs = raw.input.into_iter().map(|input| input.below(folder)).collect();
        Ok(Self { inputs, clean: raw.clean })
    }
}

impl RawInput {
    fn below(self, folder: &Path) -> InputConfig {
        let place = |path: PathBuf| if is_remote(&path) { path } else { folder.join(path) };
        let defaults = InputConfig::new(self.source, place(self.path));
        let dialogue = self.dialogue.map_or(defaults.dialogue, DialogueConfig::from);
        InputConfig {
            images: self.images.map(place),
            name: self.name,
            dialogue: DialogueConfig {
                max_facts: self.max_facts.unwrap_or(dialogue.max_facts),
                description: self.description.unwrap_or(dialogue.description),
                short_answers: self.short_answers.unwrap_or(dialogue.short_answers),
                ..dialogue
            },
            options: self.options,
            weight: self.weight.unwrap_or(defaults.weight),
            ..defaults
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Mix, PrepareError> {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("mix.toml");
        std::fs::write(&path, text).expect("file");
        Mix::read(&path)
    }

    #[test]
    fn inputs_are_read_in_order_below_the_file() {
        let mix = read(
            "[clean]\nlanguages = [\"zh\"]\n[[input]]\nsource = \"sa1b\"\npath = \"raw\"\ndialogue = \"rules\"\nweight = 0.5\n\
             [[input]]\nsource = \"finevision\"\npath = \"/f\"\noptions = { min_ratings = { relevance = 4 } }\n",
        )
        .expect("a mix");
        assert_eq!(mix.clean.languages, [crate::KeptLanguage::Zh]);
        assert!(mix.inputs[0].input.ends_with("raw") && mix.inputs[0].input.is_absolute());
        assert_eq!((mix.inputs[0].weight, mix.inputs[0].dialogue.mode), (0.5, DialogueMode::Rules));
        assert_eq!(mix.inputs[1].input, Path::new("/f"));
        assert_eq!(mix.inputs[1].options.min_ratings, [("relevance".to_owned(), 4)]);
    }

    #[test]
    fn unknown_keys_and_sources_are_refused_by_name() {
        for (text, found) in [
            ("[[input]]\nsource = \"llava\"\npath = \"a\"\nweigth = 2\n", "weigth"),
            ("[[input]]\nsource = \"lava\"\npath = \"a\"\n", "lava"),
            ("[clean]\nmin_char = 3\n", "min_char"),
        ] {
            let fault = read(text).expect_err(text);
            assert!(fault.is_usage() && crate::sources::chain_text(&fault).contains(found), "{fault}");
        }
    }
}
