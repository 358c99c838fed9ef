//! One process at a time in a folder: a lock that goes with its process, `kill -9` included.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::TrainError;

/// `ENOLCK` of Linux: a network file system without its lock service.
const NO_LOCKS_AVAILABLE: i32 = 37;
/// The name of a lock file in the folder that it is about. It is there only while somebody works there, and after a kill.
const LOCK_FILE: &str = ".lock";
/// A holder that goes may remove the file between our opening and locking it.
const TRIES: u32 = 10;

/// A folder held until the value is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    path: PathBuf,
    file: File,
    /// The folder of the lock file was made for it.
    is_new: bool,
}

impl FolderLock {
    /// Holds `folder`, which is made if it is not there.
    pub(crate) fn within(folder: &Path) -> Result<Self, TrainError> {
        Self::take(folder.join(LOCK_FILE), folder)
    }

    /// Holds `folder` by a file beside it, for a folder that does not exist while it is worked on.
    pub(crate) fn beside(folder: &Path) -> Result<Self, TrainError> {
        Self::take(hidden(folder, "lock"), folder)
    }

    /// On a file system without locks it warns and goes on.
    fn take(path: PathBuf, folder: &Path) -> Result<Self, TrainError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let is_new = !parent.as_os_str().is_empty() && !parent.exists();
        fs::create_dir_all(parent).map_err(TrainError::io("create", parent))?;
        for _ in 0..TRIES {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(TrainError::io("create", &path))?;
            match file.try_lock() {
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(TrainError::InUse { path: folder.to_owned() }),
                Err(TryLockError::Error(fault)) if knows_no_locks(&fault) => tracing::warn!(
                    "`{}`: its file system has no locks ({fault}), so nothing keeps a second process out: see to it that \
                     one works there at a time",
                    folder.display()
                ),
                Err(TryLockError::Error(fault)) => return Err(TrainError::io("lock", &path)(fault)),
            }
            return Ok(Self { path, file, is_new });
        }
        Err(TrainError::InUse { path: folder.to_owned() })
    }
}

/// `.NAME.KIND` beside `folder`.
pub(crate) fn hidden(folder: &Path, kind: &str) -> PathBuf {
    let name = folder.file_name().map_or_else(Default::default, |name| name.to_string_lossy().into_owned());
    folder.with_file_name(format!(".{name}.{kind}"))
}

fn knows_no_locks(fault: &io::Error) -> bool {
    fault.kind() == ErrorKind::Unsupported || fault.raw_os_error() == Some(NO_LOCKS_AVAILABLE)
}

/// True if `path` still names the open file.
fn is_at(file: &File, path: &Path) -> bool {
    let of = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().is_ok_and(|open| fs::metadata(path).is_ok_and(|named| of(named) == of(open)))
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // What cannot be removed is only litter.
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
            if let (true, Some(folder)) = (self.is_new, self.path.parent()) {
                // Only if nothing came into it.
                let _ = fs::remove_dir(folder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_by_one_and_nothing_is_left() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("a/run");
        for take in [FolderLock::within, FolderLock::beside] {
            let lock = take(&folder).expect("free");
            let fault = take(&folder).expect_err("held");
            assert!(matches!(&fault, TrainError::InUse { path } if *path == folder), "{fault}");
            assert!(fault.to_string().contains("a/run") && fault.is_usage(), "{fault}");
            drop(lock);
            drop(take(&folder).expect("free again"));
            assert!(!folder.exists(), "made for a lock alone");
        }
        fs::create_dir_all(&folder).expect("created");
        fs::write(folder.join(LOCK_FILE), "").expect("left by a kill");
        drop(FolderLock::within(&folder).expect("free"));
        assert!(folder.exists() && !folder.join(LOCK_FILE).exists());
    }

    #[test]
    fn file_systems_without_locks_are_told_from_other_faults() {
        // `ENOLCK`, `EOPNOTSUPP`, `ENOSYS`; `EACCES`, `ENOSPC`.
        assert_eq!(
            [37, 95, 38, 13, 28].map(|code| knows_no_locks(&io::Error::from_raw_os_error(code))),
            [true, true, true, false, false]
        );
    }
}
