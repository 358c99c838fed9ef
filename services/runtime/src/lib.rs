//! What each Vela binary does at start and stop: read its config, install telemetry and signal handling, show progress,
//! print its outcome and choose its exit code.
//!
//! It knows nothing of data, models or the wire. Progress and errors go to stderr, the outcome alone to stdout; a
//! command is a function from a [`Shutdown`] to an [`Outcome`], run by [`run_command`].

mod command;
mod config;
mod metrics;
mod progress;
mod shutdown;
mod telemetry;
mod units;

/// The flag parser, re-exported: only this crate names it, so all commands read their flags in one version of it.
/// Derive macros find it through `use vela_runtime::clap;`.
pub use clap;
pub use command::{CommandError, ExitStatus, Outcome, run_command};
pub use config::{ConfigError, load_config, parse_config};
pub use metrics::{MetricsServer, serve_metrics};
pub use progress::Progress;
pub use shutdown::Shutdown;
pub use units::{ByteSize, ParseUnitError, Period};
