//! What the ranks of one run do together, and who carries it out.

mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod watched;

pub use launch::Launch;
pub use watched::{OnStall, Watched};

use crate::error::TrainError;

/// The operations that all ranks of a run do together: each rank calls the same ones in the same order, and each call
/// returns once every rank has made it.
///
/// An error leaves the ranks out of step with one another: the run is over, and all of them start again from a checkpoint.
pub trait Collective {
    /// This process's number, from 0. Rank 0 writes what a run leaves.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn world(&self) -> usize;

    /// Says what the next operations are for: part of what is told if the run stands still there.
    fn announce(&mut self, _work: &str) {}

    /// Replaces the values by their sums over the ranks, added up in the order of the ranks, `((r0 + r1) + r2) + ...`, so
    /// that the same ranks give the same bits, on all of them. Every rank has equally many values.
    fn all_reduce(&mut self, values: &mut Vec<f32>) -> Result<(), TrainError>;

    /// Replaces the bytes by those of rank 0.
    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<(), TrainError>;

    /// Returns once all ranks have come here.
    fn barrier(&mut self) -> Result<(), TrainError>;

    /// The bytes of every rank, by rank. Lengths may differ.
    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError>;

    /// Ends the common work in order; nothing may follow. Without it the other ranks take this one for lost.
    fn finish(&mut self) -> Result<(), TrainError>;
}

/// A run of one process: nobody to wait for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Collective for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&mut self, _values: &mut Vec<f32>) -> Result<(), TrainError> {
        Ok(())
    }

    fn broadcast(&mut self, _bytes: &mut Vec<u8>) -> Result<(), TrainError> {
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), TrainError> {
        Ok(())
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        Ok(vec![bytes.to_vec()])
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        Ok(())
    }
}
