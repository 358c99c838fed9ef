//! The trainer's side of the loader service: [`RemoteSource`], a batch stream that resumes by itself.
//!
//! It owns the connection, the byte credit and the place in the stream. A lost, replaced or restarted server changes
//! nothing that the trainer sees: the stream continues at the next micro-batch, none missing, none twice. What another
//! try cannot cure (other data, another spec, damage) is an error at once.

mod connector;
mod counts;
mod error;
mod ledger;
mod options;
mod part_stream;
mod pump;
mod server;
mod source;

pub use error::ClientError;
pub use options::{ClientOptions, TlsOptions, Token, VerifyImages};
pub use source::{ClientStats, RemoteSource};
