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

/// The file or folder `name` of the real sample data; where it is absent, `None` and a word about the `test` that skips.
pub fn sample_file(name: &str, test: &str) -> Option<PathBuf> {
    let found = sample_data().map(|folder| folder.join(name)).filter(|path| path.exists());
    if found.is_none() {
        skip(test, &format!("`{name}` of the sample data is absent"));
    }
    found
}
