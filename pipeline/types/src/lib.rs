//! The nouns every Vela crate shares: samples and turns, images, records, batches, cursors, fingerprints.
//!
//! Plain data with its invariants, and the pure functions that several crates must agree on: seeded draws, and which lengths share a row.
//! No I/O, no tensors library, no async: a type belongs here only when two crates exchange it.

mod batch;
mod cursor;
mod dtype;
mod fingerprint;
mod image;
mod packing;
mod record;
mod sample;
mod seed;
mod source;

pub use batch::{Batch, BatchSpec, HostTensor, ImageSpan, PackingSpec, SampleSlot, ScatteredBatch, TensorError};
pub use cursor::{CURSOR_VERSION, Cursor, CursorMismatch, Position};
pub use dtype::DType;
pub use fingerprint::{Fingerprint, ParseFingerprintError};
pub use image::{ImageRef, ImageShape, ImageTensor};
pub use packing::{PackFault, PackItem, PackLimits, PackPlan};
pub use record::{IGNORE_LABEL, Record, RecordLengths};
pub use sample::{IMAGE_MARK, Language, Role, Sample, SampleFault, Turn};
pub use seed::SeedStream;
pub use source::{BatchSource, DatasetInfo, ImageNormalization, ProcessorSummary, SourceError};
