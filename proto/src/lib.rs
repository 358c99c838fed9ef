//! The wire contract of the loader service: `vela.loader.v1` as generated code, its conversions to and from
//! `vela-types` with every limit checked, and the one mapping between errors and gRPC codes.
//!
//! It owns what crosses the wire and refuses everything else: no sockets, no files, no order of samples. Whatever a
//! peer sends becomes a checked value or a [`WireError`], never a panic and never an allocation above its limit.

mod assemble;
mod batch;
mod checks;
mod codec;
mod error;
mod info;
mod outline;
mod payload_pool;
mod reader;
mod sealed;
mod spec;

/// The generated messages and client of `vela.loader.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the proto files carry the comments")]
pub mod v1 {
    tonic::include_proto!("vela.loader.v1");
}

/// The proto files as an encoded `FileDescriptorSet`: what reflection answers with, and the list of all calls.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub use assemble::MAX_SAMPLES;
pub use batch::{EncodedPart, PART_BYTES, encode_batch};
pub use codec::{WireMessage, decode_request, decode_requests, encode_answer, encode_requests};
pub use error::{ErrorKind, ServiceError, WireError};
pub use info::{decode_info, encode_info};
pub use reader::{PartReader, Received};
pub use sealed::Sealed;
pub use spec::{
    MAX_GLOBAL_BATCH, MAX_WORLD, decode_cursor, decode_fingerprint, decode_partition, decode_position, decode_spec,
    encode_cursor, encode_fingerprint, encode_position, encode_spec, next_position,
};

/// Largest HTTP/2 frame that either side accepts: one part fits in one frame.
pub const MAX_FRAME_BYTES: u32 = 1 << 20;

/// Largest message a consumer accepts: a header of many samples may outgrow a part. Where batches are limited to less, so are messages, down to a part.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// Largest message a server accepts: requests are small.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
