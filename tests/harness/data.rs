//! Third-party sample files, which lie beside the checkout and are never part of it.

use std::path::{Path, PathBuf};

/// The folder of real sample files: `$VELA_DATA`, else `../shared/data` beside the checkout; `None` where absent.
pub fn sample_data() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("VELA_DATA").map_or(beside, PathBuf::from);
    folder.is_dir().then_some(folder)
}

/// Says on standard error that `test` did not run, and why.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen in the log")]
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
}
