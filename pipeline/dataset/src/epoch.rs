//! The rows of one epoch: a merge of the parts' streams, each an endless chain of passes over its set.

use std::sync::Arc;

use vela_types::{BatchSpec, Fingerprint};

use crate::Blend;
use crate::units::{UnitOrder, Units};

/// One part as an epoch sees it.
pub(crate) struct Part<'a> {
    pub(crate) units: Arc<Units>,
    pub(crate) fingerprint: &'a Fingerprint,
    /// Index of its first record among the records of all parts.
    pub(crate) first_index: u64,
}

/// Which samples stand in each row of one epoch. Random access; memory grows with shards, parts and packed rows alone.
#[derive(Debug)]
pub struct EpochRows {
    blend: Blend,
    streams: Vec<Stream>,
}

/// One part's turns in this epoch: a stretch of the chain of its passes.
#[derive(Debug)]
struct Stream {
    units: Arc<Units>,
    first_index: u64,
    /// Turn 0 of this epoch, counted from the start of the first of `passes`.
    first_turn: u64,
    passes: Vec<UnitOrder>,
}

impl EpochRows {
    /// The rows of `epoch`; `blend` holds the turns of each of `parts`.
    pub(crate) fn new(spec: &BatchSpec, epoch: u64, blend: Blend, parts: Vec<Part<'_>>) -> Self {
        let stream = |(number, part): (usize, Part<'_>)| Stream::new(spec, epoch, blend.turns(number), part);
        let streams = parts.into_iter().enumerate().map(stream).collect();
        Self { blend, streams }
    }

    /// Rows of the epoch.
    pub fn num_rows(&self) -> u64 {
        self.blend.num_places()
    }

    /// The samples of the row at `place`, by their indices, in the row's order; `None` past the last row.
    pub fn samples_at(&self, place: u64) -> Option<Vec<u64>> {
        let (part, turn) = self.blend.at(place)?;
        let stream = &self.streams[part];
        let mut samples = Vec::with_capacity(1);
        stream.units.samples(stream.unit_at(turn), |index| samples.push(stream.first_index + index));
        Some(samples)
    }
}

impl Stream {
    fn new(spec: &BatchSpec, epoch: u64, turns: u64, part: Part<'_>) -> Self {
        let Part { units, fingerprint, first_index } = part;
        let per_pass = u128::from(units.num_units().max(1));
        let first = u128::from(epoch) * u128::from(turns);
        let last = first + u128::from(turns.saturating_sub(1));
        // Of the largest epochs the number of a pass wraps around, and an order is met again.
        let passes = (first / per_pass..=last / per_pass).map(|pass| units.order(spec, fingerprint, pass as u64));
        Self { first_turn: (first % per_pass) as u64, passes: passes.collect(), units, first_index }
    }

    fn unit_at(&self, turn: u64) -> u64 {
        let per_pass = self.units.num_units();
        let place = self.first_turn + turn;
        let order = &self.passes[(place / per_pass) as usize];
        order.index_at(place % per_pass).expect("a place of the pass")
    }
}
