//! The common form every raw format is brought to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ImageRef;

/// The text that stands for an image inside a user turn.
pub const IMAGE_MARK: &str = "<image>";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The instruction before the dialogue; at most one, first.
    System,
    /// The person who asks.
    User,
    /// The model; the only role that is trained on.
    Assistant,
}

impl Role {
    /// The name chat templates use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One utterance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said; `<image>` marks in user turns stand for images, in order.
    pub text: String,
}

impl Turn {
    /// A user turn.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, text: text.into() }
    }

    /// An assistant turn.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: Role::Assistant, text: text.into() }
    }

    /// A system turn.
    pub fn system(text: impl Into<String>) -> Self {
        Self { role: Role::System, text: text.into() }
    }
}

/// Language of a sample's text, as far as the pipeline cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// English.
    En,
    /// Chinese.
    Zh,
    /// Anything else, or not known.
    Other,
}

impl Language {
    /// The ISO 639-1 code, or `und`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Zh => "zh",
            Self::Other => "und",
        }
    }

    /// Chinese if at least a fifth of the letters are Han characters, English if most are ASCII, else `Other`.
    pub fn guess(text: &str) -> Self {
        let letters = text.chars().filter(|letter| letter.is_alphabetic()).count();
        let han = text.chars().filter(|letter| ('\u{4E00}'..='\u{9FFF}').contains(letter)).count();
        let ascii = text.chars().filter(char::is_ascii_alphabetic).count();
        match letters {
            0 => Self::Other,
            letters if han * 5 >= letters => Self::Zh,
            letters if ascii * 2 > letters => Self::En,
            _ => Self::Other,
        }
    }
}

/// One dialogue about zero or more images, whatever it was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Unique within a shard set and qualified by its source: `sa1b/train-0000/17`.
    pub id: String,
    /// The source's name: `sa1b`.
    pub source: String,
    /// Language of the text.
    pub language: Language,
    /// The images, in the order of their marks.
    pub images: Vec<ImageRef>,
    /// An optional system turn, then user and assistant in turn, ending with the assistant.
    pub turns: Vec<Turn>,
}

/// Why a sample cannot be trained on. [`SampleFault::cause`] is the key of the reject list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SampleFault {
    /// There is no turn at all.
    NoTurns,
    /// Turns do not alternate user, assistant, ..., assistant.
    OddTurns {
        /// Index of the turn out of place; the number of turns if the last user turn has no answer.
        turn: usize,
    },
    /// A turn holds no text.
    EmptyTurn {
        /// Index of the empty turn.
        turn: usize,
    },
    /// `<image>` stands in a turn that is not the user's.
    MarkOutsideUser {
        /// Index of that turn.
        turn: usize,
    },
    /// The number of `<image>` marks differs from the number of images.
    MarkCount {
        /// Marks in the text.
        marks: usize,
        /// Images of the sample.
        images: usize,
    },
}

impl SampleFault {
    /// The stable, short name under which rejects are counted.
    pub const fn cause(&self) -> &'static str {
        match self {
            Self::NoTurns => "no_turns",
            Self::OddTurns { .. } => "odd_turns",
            Self::EmptyTurn { .. } => "empty_turn",
            Self::MarkOutsideUser { .. } => "mark_outside_user",
            Self::MarkCount { .. } => "mark_count",
        }
    }
}

impl fmt::Display for SampleFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTurns => write!(out, "the dialogue has no turns"),
            Self::OddTurns { turn } => {
                write!(out, "turn {turn}: expected user and assistant in turn, ending with the assistant")
            }
            Self::EmptyTurn { turn } => write!(out, "turn {turn}: expected text, found none"),
            Self::MarkOutsideUser { turn } => {
                write!(out, "turn {turn}: `<image>` stands outside a user turn")
            }
            Self::MarkCount { marks, images } => {
                write!(out, "expected one `<image>` mark per image, found {marks} marks for {images} images")
            }
        }
    }
}

impl std::error::Error for SampleFault {}

impl Sample {
    /// Checks every invariant of a trainable sample.
    pub fn check(&self) -> Result<(), SampleFault> {
        self.check_turn_order()?;
        for (turn, utterance) in self.turns.iter().enumerate() {
            if utterance.text.replace(IMAGE_MARK, "").trim().is_empty() && utterance.role != Role::System {
                return Err(SampleFault::EmptyTurn { turn });
            }
            if utterance.role != Role::User && utterance.text.contains(IMAGE_MARK) {
                return Err(SampleFault::MarkOutsideUser { turn });
            }
        }
        let marks: usize = self.turns.iter().map(|turn| turn.text.matches(IMAGE_MARK).count()).sum();
        match marks == self.images.len() {
            true => Ok(()),
            false => Err(SampleFault::MarkCount { marks, images: self.images.len() }),
        }
    }

    fn check_turn_order(&self) -> Result<(), SampleFault> {
        let system = usize::from(self.turns.first().is_some_and(|turn| turn.role == Role::System));
        let dialogue = &self.turns[system..];
        if dialogue.is_empty() {
            return Err(SampleFault::NoTurns);
        }
        for (index, turn) in dialogue.iter().enumerate() {
            let expected = if index % 2 == 0 { Role::User } else { Role::Assistant };
            if turn.role != expected {
                return Err(SampleFault::OddTurns { turn: system + index });
            }
        }
        match dialogue.len() % 2 {
            0 => Ok(()),
            _ => Err(SampleFault::OddTurns { turn: self.turns.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(turns: Vec<Turn>, num_images: usize) -> Sample {
        let images = (0..num_images).map(|index| ImageRef::Path(format!("{index}.jpg"))).collect();
        Sample { id: "test/0".into(), source: "test".into(), language: Language::En, images, turns }
    }

    #[test]
    fn a_marked_dialogue_passes() {
        let turns = vec![Turn::system("Be brief."), Turn::user("<image>\nWhat?"), Turn::assistant("A cat.")];
        assert_eq!(sample(turns, 1).check(), Ok(()));
    }

    #[test]
    fn each_fault_is_named() {
        let question = || Turn::user("<image>\nWhat?");
        let answer = || Turn::assistant("A cat.");
        let cases = [
            (vec![], 0, "no_turns"),
            (vec![Turn::system("Only.")], 0, "no_turns"),
            (vec![question()], 1, "odd_turns"),
            (vec![answer(), question()], 1, "odd_turns"),
            (vec![question(), question()], 2, "odd_turns"),
            (vec![question(), Turn::assistant("  ")], 1, "empty_turn"),
            (vec![Turn::user("<image>"), answer()], 1, "empty_turn"),
            (vec![question(), Turn::assistant("<image> yes")], 2, "mark_outside_user"),
            (vec![question(), answer()], 0, "mark_count"),
            (vec![Turn::user("<image><image> What?"), answer()], 1, "mark_count"),
            (vec![Turn::user("What?"), answer()], 1, "mark_count"),
        ];
        for (turns, num_images, cause) in cases {
            let fault = sample(turns.clone(), num_images).check().expect_err(cause);
            assert_eq!(fault.cause(), cause, "{turns:?}");
        }
    }

    #[test]
    fn languages_are_told_apart() {
        assert_eq!(Language::guess("一只猫坐在沙发上 (cat)"), Language::Zh);
        assert_eq!(Language::guess("A cat on a sofa."), Language::En);
        assert_eq!(Language::guess("Кошка"), Language::Other);
        assert_eq!(Language::guess("123"), Language::Other);
    }
}
