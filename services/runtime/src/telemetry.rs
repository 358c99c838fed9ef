//! Log lines on stderr, beside progress bars.

use std::io::Write;

use tracing_subscriber::EnvFilter;

use crate::progress;

/// Used where `RUST_LOG` is not set: Vela's own news, others' warnings, and what object stores are asked for once more.
const DEFAULT_FILTER: &str = "warn,vela=info,object_store::client=info";

/// Installs the log subscriber; a second call in one process changes nothing.
pub(crate) fn install() {
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) => EnvFilter::new(DEFAULT_FILTER),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| BesideBars)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .finish();
    // Fails only where a subscriber is already installed, as in a test binary.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Stderr, with the bars taken off the screen while a line is written.
struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        progress::bars().suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
