//! The read side, pure and seekable: order, partition, collate, prefetch, cursor.
//!
//! Every micro-batch is a pure function of (manifest, batch spec, rank, world, position); `docs/determinism.md` states
//! it. [`Dataset`] computes any of them at random, [`LocalSource`] streams them ahead of a trainer. This crate keeps
//! no state but a position, follows the manifest alone, and never drops, repeats or replaces a sample.

mod blend;
mod blended;
mod collate;
mod dataset;
mod epoch;
mod error;
mod extent;
mod health;
mod local;
mod look_ahead;
mod open_shards;
mod order;
mod partition;
mod pixel_pool;
mod prefetch;
mod recent;
mod shard_set;
mod share;
mod units;
mod windows;

pub use blend::Blend;
pub use blended::{BlendPart, Weight};
pub use collate::DamagePolicy;
pub use dataset::{DEFAULT_MAX_BATCH_BYTES, Dataset, MicroExtents, Provenance};
pub use epoch::EpochRows;
pub use error::DatasetError;
pub use local::LocalSource;
pub use look_ahead::LookAhead;
pub use order::EpochOrder;
pub use partition::{MicroRows, Partition, StepPlan, spec_fingerprint};
pub use prefetch::PrefetchStats;
pub use share::Share;
// Plans are pure functions of lengths, so they stand with the plain data; this crate is where they are asked for.
pub use vela_types::{PackFault, PackItem, PackLimits, PackPlan};
