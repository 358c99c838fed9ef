//! Captions to dialogues, each a pure function of (caption, seed).

mod en;
mod en_words;
#[cfg(test)]
mod gallery;
mod rules;
mod wording;
mod zh;
mod zh_words;

use serde::{Deserialize, Serialize};
use vela_runtime::clap;
use vela_types::{IMAGE_MARK, Language, Sample, SeedStream, Turn};

use crate::sources::{RawCaption, RawContent};

/// How records become dialogues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DialogueMode {
    /// The dialogues of the source as they are.
    Keep,
    /// One question drawn from the prompt list of the caption's language, answered by the whole caption.
    Caption,
    /// Several turns cut from the caption by rules; every answer quotes it.
    Rules,
}

/// How an input's records become dialogues, and how much of a caption `rules` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialogueConfig {
    /// Where the turns come from.
    pub mode: DialogueMode,
    /// Most questions that `rules` cuts from a caption besides the description.
    pub max_facts: usize,
    /// Whether `rules` asks for the description too; a caption without facts is described in any case.
    pub description: bool,
    /// Whether `rules` puts each kind of question in one wording and answers it by the fewest words, not by the clause
    /// or sentence they stand in.
    pub short_answers: bool,
}

impl From<DialogueMode> for DialogueConfig {
    /// `mode` with up to five facts and the description, answered by whole clauses.
    fn from(mode: DialogueMode) -> Self {
        Self { mode, max_facts: 5, description: true, short_answers: false }
    }
}

/// The prompts published for SA1B-Dense-Caption (ms-swift's preprocessor), used for every Chinese caption.
pub const CAPTION_PROMPTS_ZH: [&str; 4] =
    ["图片中展示了什么", "讲述一下图片中内容", "告诉我里面有什么", "图片内容是啥"];

/// For captions that are not Chinese. The first is a published prompt of LLaVA's pre-training data, the others are ours.
pub const CAPTION_PROMPTS_EN: [&str; 6] = [
    "Provide a brief description of the given image.",
    "What does this image show?",
    "Describe the picture in a few words.",
    "Say briefly what can be seen here.",
    "Give a short account of the photo.",
    "What is in the image?",
];

/// The dialogue of a record; `seed` with the sample's id decides every draw.
pub(crate) fn to_sample(content: RawContent, config: DialogueConfig, seed: u64) -> Sample {
    match content {
        RawContent::Dialogue(sample) => sample,
        RawContent::Caption(caption) => {
            let language = Language::guess(&caption.global);
            let mut turns = match config.mode {
                DialogueMode::Rules => rules::turns(&caption, config, language, seed),
                DialogueMode::Caption | DialogueMode::Keep => caption_turns(&caption, language, seed),
            };
            if let Some(first) = turns.first_mut().filter(|first| !first.text.contains(IMAGE_MARK)) {
                first.text = format!("{IMAGE_MARK}\n{}", first.text);
            }
            Sample { id: caption.id, source: caption.source.to_owned(), language, images: vec![caption.image], turns }
        }
    }
}

fn caption_turns(caption: &RawCaption, language: Language, seed: u64) -> Vec<Turn> {
    let prompts = match (caption.prompts, language) {
        ([], Language::Zh) => &CAPTION_PROMPTS_ZH[..],
        ([], _) => &CAPTION_PROMPTS_EN,
        (published, _) => published,
    };
    let prompt = *SeedStream::named(seed, "caption prompt", &caption.id).choose(prompts);
    vec![Turn::user(prompt), Turn::assistant(without_marks(&caption.global))]
}

/// A caption that happens to contain the image mark must not add an image.
fn without_marks(text: &str) -> String {
    text.replace(IMAGE_MARK, "")
}
