//! The nouns every Vela crate shares: samples and turns, images, records, batches, cursors, fingerprints.
//!
//! Plain data with its invariants, and the seeded draws that make order and prompts a pure function of their inputs.
//! No I/O, no tensors library, no async: a type belongs here only when two crates exchange it.

mod batch;
mod cursor;
mod dtype;
mod fingerprint;
mod image;
mod record;
mod sample;
mod seed;
mod source;

pub use batch::{Batch, BatchSpec, HostTensor, ImageSpan, SampleSlot, TensorError};
pub use cursor::{CURSOR_VERSION, Cursor, CursorMismatch, Position};
pub use dtype::DType;
pub use fingerprint::{Fingerprint, ParseFingerprintError};
pub use image::{ImageRef, ImageShape, ImageTensor};
pub use record::{IGNORE_LABEL, Record, RecordLengths};
pub use sample::{IMAGE_MARK, Language, Role, Sample, SampleFault, Turn};
pub use seed::SeedStream;
pub use source::{BatchSource, DatasetInfo, ImageNormalization, ProcessorSummary, SourceError};
