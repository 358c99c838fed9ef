//! What the dropout of adapters draws its masks from: a word per token, so that a mask depends on the sample, the place in
//! it, the step and the seed, and on nothing else - not on threads, on the micro-batch, on the rank or on a row's company.

use std::sync::Arc;

use crate::init::mix;

/// The bytes `VELADROP`.
const START: u64 = 0x5645_4C41_4452_4F50;
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// A word for each token of a batch, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropoutKeys {
    words: Arc<[u64]>,
}

/// Where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPlace {
    /// Number of its sample in the data set.
    pub sample: u64,
    /// Its position in the sample, from 0.
    pub position: u64,
}

impl DropoutKeys {
    /// The words of `tokens`, flat `[B * T]` (padding's may be any), in zero-based optimizer step `step` of a run of `seed`.
    pub fn new(seed: u64, step: u64, tokens: impl IntoIterator<Item = TokenPlace>) -> Self {
        let base = [seed, step].into_iter().fold(START, next);
        let word = |TokenPlace { sample, position }| next(next(base, sample), position);
        Self { words: tokens.into_iter().map(word).collect() }
    }

    pub(crate) fn words(&self) -> &Arc<[u64]> {
        &self.words
    }
}

/// The first output of SplitMix64 from `state ^ word`.
fn next(state: u64, word: u64) -> u64 {
    mix((state ^ word).wrapping_add(GAMMA))
}
