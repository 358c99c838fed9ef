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
            places.insert(line.key, place);
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
        self.places.insert(key, place);
        self.journal.sync()
    }
}
