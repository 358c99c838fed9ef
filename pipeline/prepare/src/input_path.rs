//! What an input may be: a folder, or a regular file with something in it. Looked at before anything is opened, as a pipe or a
//! device may keep its reader waiting for ever.

use std::fs::{self, FileType};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::PrepareError;

/// Refuses what is neither a regular file nor a folder.
pub(crate) fn check_input(path: &Path) -> Result<(), PrepareError> {
    let wrong = |found: String| {
        Err(PrepareError::Flag { flag: "--input", expected: "a regular file or a folder".to_owned(), found })
    };
    match fs::metadata(path).map(|data| data.file_type()) {
        Ok(kind) if kind.is_file() || kind.is_dir() => Ok(()),
        Ok(kind) => wrong(format!("{}, {}", path.display(), name(kind))),
        Err(_) => wrong(path.display().to_string()),
    }
}

fn name(kind: FileType) -> &'static str {
    match () {
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

/// Refuses an input whose files are all empty, whatever their format: none of them has a record.
pub(crate) fn check_content(input: &Path, files: &[PathBuf]) -> Result<(), PrepareError> {
    let is_empty = |path: &PathBuf| fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() == 0);
    match !files.is_empty() && files.iter().all(is_empty) {
        true => Err(PrepareError::NoRecords { path: input.to_owned() }),
        false => Ok(()),
    }
}
