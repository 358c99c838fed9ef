//! Answers that are paid for, by the key of their request.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vela_types::Fingerprint;

use super::answer::Answer;
use crate::PrepareError;
use crate::journal::{Journal, LinePlace};

/// One line.
#[derive(Serialize, Deserialize)]
struct Line {
    key: Fingerprint,
    /// The record that asked first; for people.
    id: String,
    answer: Answer,
}

/// An open cache: places in memory, some 60 bytes per answer, texts in the file.
pub(super) struct Cache {
    journal: Journal,
    places: HashMap<Fingerprint, LinePlace>,
    path: PathBuf,
    /// What all answers in the file cost.
    pub(super) tokens: u64,
}

impl Cache {
    pub(super) fn open(path: &Path) -> Result<Self, PrepareError> {
        let (mut places, mut tokens) = (HashMap::new(), 0);
        let journal = Journal::open(path, "generate", &mut |place, line| {
            let Ok(line) = serde_json::from_slice::<Line>(line) else { return false };
            // Two answers to one request, of an earlier version: the dialogue was made of the first.
            places.entry(line.key).or_insert(place);
            tokens += line.answer.tokens();
            true
        })?;
        Ok(Self { journal, places, path: path.to_owned(), tokens })
    }

    /// Lines that could not be read; their answers are asked for again.
    pub(super) fn damaged(&self) -> u64 {
        self.journal.damaged
    }

    pub(super) fn get(&mut self, key: Fingerprint) -> Result<Option<Answer>, PrepareError> {
        let Some(place) = self.places.get(&key) else { return Ok(None) };
        let line = self.journal.read(*place)?;
        let damaged = |source| PrepareError::DamagedState { path: self.path.clone(), source };
        serde_json::from_slice::<Line>(&line).map(|line| Some(line.answer)).map_err(damaged)
    }

    /// Keeps an answer; it is on the device when this returns.
    pub(super) fn put(&mut self, key: Fingerprint, id: &str, answer: &Answer) -> Result<(), PrepareError> {
        let place = self.journal.append(&Line { key, id: id.to_owned(), answer: answer.clone() })?;
        self.places.entry(key).or_insert(place);
        self.journal.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_two_answers_counts_before_and_after_a_restart() {
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join("cache");
        let key = Fingerprint([7; 32]);
        let answer = |text: &str| {
            let body = serde_json::json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]});
            Answer::of_body(body.to_string().as_bytes(), 9).expect("an answer")
        };
        let text = |cache: &mut Cache| cache.get(key).expect("read").expect("known").into_reply().text;
        let mut cache = Cache::open(&path).expect("opens");
        for said in ["first", "second"] {
            cache.put(key, "1", &answer(said)).expect("kept");
            assert_eq!(text(&mut cache), "first");
        }
        drop(cache);
        let mut cache = Cache::open(&path).expect("opens");
        assert_eq!(text(&mut cache), "first");
        assert!(cache.tokens >= 2 * 9, "both were paid: {}", cache.tokens);
    }
}
