//! What a test needs to use Vela from outside: the built binaries, a folder that goes away, the real sample data.
//!
//! It knows the commands and their JSON, never the crates behind them.

mod command;
mod data;

pub use command::{Finished, Running, run, start};
pub use data::{sample_data, skip};
