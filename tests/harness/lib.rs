//! What a test needs to use Vela from outside: the built binaries, the real sample data, an S3 server that fails
//! on demand.
//!
//! It knows the commands and their JSON, never the crates behind them.

mod clock;
mod command;
mod data;
pub mod s3;
mod told;

pub use clock::cpu_seconds;
pub use command::{Finished, Running, run, start};
pub use data::{sample_data, sample_file, skip};
pub use told::told;
