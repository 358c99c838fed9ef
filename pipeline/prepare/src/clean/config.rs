//! What is kept of sound records.

use serde::{Deserialize, Serialize};
use vela_runtime::clap;
use vela_types::Language;

use crate::PrepareError;

/// Which sound records a build leaves out, and which part of the rest it takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct CleanConfig {
    /// Languages to keep, `zh,en` say [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<KeptLanguage>,
    /// Fewest characters of the answers or the caption.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_chars: Option<u32>,
    /// Most characters of the answers or the caption.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<u32>,
    /// Keep only the first record of those that are alike [default: none].
    #[arg(long, value_enum, value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dedupe: Vec<Likeness>,
    /// Share of the records that belongs to the validation set, decided by each sample's id.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<f64>,
    /// Which part to build; needs --validation.
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

/// A language by its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KeptLanguage {
    /// Chinese.
    Zh,
    /// English.
    En,
    /// Any other, or none.
    Other,
}

impl From<KeptLanguage> for Language {
    fn from(language: KeptLanguage) -> Self {
        match language {
            KeptLanguage::Zh => Self::Zh,
            KeptLanguage::En => Self::En,
            KeptLanguage::Other => Self::Other,
        }
    }
}

/// When two records are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Likeness {
    /// Same turns or captions, whatever the images; case, width, white space and punctuation aside, signs and numbers not.
    Text,
    /// Texts that share most runs of five characters (MinHash).
    NearText,
    /// Same image files, byte for byte.
    Image,
}

/// A part of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// All but the validation set.
    Train,
    /// The validation set.
    Validation,
}

impl CleanConfig {
    /// True if every record stays, so that none must be read to know.
    pub(crate) fn keeps_all(&self) -> bool {
        *self == Self::default()
    }

    /// These settings, and `others` where one is not given.
    pub(crate) fn or(self, others: Self) -> Self {
        let Self { languages, min_chars, max_chars, dedupe, validation, part } = self;
        Self {
            languages: if languages.is_empty() { others.languages } else { languages },
            min_chars: min_chars.or(others.min_chars),
            max_chars: max_chars.or(others.max_chars),
            dedupe: if dedupe.is_empty() { others.dedupe } else { dedupe },
            validation: validation.or(others.validation),
            part: part.or(others.part),
        }
    }

    pub(crate) fn check(&self) -> Result<(), PrepareError> {
        let wrong = |flag, expected: &str, found: String| {
            Err(PrepareError::Flag { flag, expected: expected.to_owned(), found })
        };
        match (self.validation, self.part) {
            (None, Some(_)) => return wrong("--part", "`--validation` beside it", "none".to_owned()),
            (Some(_), None) => {
                return wrong("--validation", "`--part train` or `--part validation` beside it", "none".to_owned());
            }
            (Some(share), _) if !(share > 0.0 && share < 1.0) => {
                return wrong("--validation", "a share between 0 and 1", share.to_string());
            }
            _ => {}
        }
        match (self.min_chars, self.max_chars) {
            (Some(least), Some(most)) if least > most => {
                wrong("--max-chars", "no less than `--min-chars`", most.to_string())
            }
            _ => Ok(()),
        }
    }
}
