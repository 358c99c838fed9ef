//! One build at a time in a local output folder, or any number of tasks of one: a lock that goes with its process, `kill -9`
//! included. Remote stores have none; there the commit decides.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::PrepareError;

/// Empty; it is there only while somebody builds, and after a kill.
pub(super) const LOCK_FILE: &str = ".lock";
/// A holder that lets go looks for a moment whether it is the last one; nobody is refused for that.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(30);

/// Who may be in the folder at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Nobody: files that are not complete are taken for litter.
    Nobody,
    /// Processes that make other shards of the same build.
    Tasks,
}

/// A folder held until the value is dropped.
pub(super) struct OutputLock {
    folder: PathBuf,
    file: File,
    /// The folder was made for this build.
    is_new: bool,
}

impl OutputLock {
    /// Makes `folder` if it is not there, and holds it.
    ///
    /// # Errors
    /// If another process holds it in a way that `company` excludes, or the file system knows no locks.
    pub(super) fn take(folder: &Path, company: Company) -> Result<Self, PrepareError> {
        let is_new = !folder.exists();
        fs::create_dir_all(folder).map_err(PrepareError::io("create the folder", folder))?;
        let path = folder.join(LOCK_FILE);
        for _ in 0..TRIES {
            let mut options = File::options();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(PrepareError::io("create", &path))?;
            let tried = match company {
                Company::Nobody => file.try_lock(),
                Company::Tasks => file.try_lock_shared(),
            };
            match tried {
                // The holder before may have removed the file between the opening and the locking.
                Ok(()) if is_at(&file, &path).map_err(PrepareError::io("read", &path))? => {
                    return Ok(Self { folder: folder.to_owned(), file, is_new });
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => sleep(PAUSE),
                Err(TryLockError::Error(fault)) => return Err(PrepareError::io("lock", &path)(fault)),
            }
        }
        Err(PrepareError::InUse { path: folder.to_owned() })
    }
}

/// True if `path` still names the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (open, named) = (file.metadata()?, fs::metadata(path));
    Ok(named.is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino())))
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // The last one out removes the file, and a folder that nothing came into. What cannot be removed is only litter.
        let path = self.folder.join(LOCK_FILE);
        let is_last = self.file.unlock().is_ok() && self.file.try_lock().is_ok();
        if is_last && is_at(&self.file, &path).unwrap_or(false) {
            let _ = fs::remove_file(path);
            if self.is_new {
                let _ = fs::remove_dir(&self.folder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_exclude_each_other_and_tasks_and_leave_nothing() {
        let root = tempfile::tempdir().expect("temp folder");
        let folder = root.path().join("a/b");
        let take = |company| OutputLock::take(&folder, company);
        let is_refused = |company| matches!(take(company), Err(PrepareError::InUse { path }) if path == folder);
        let build = take(Company::Nobody).expect("free");
        assert!(is_refused(Company::Nobody) && is_refused(Company::Tasks));
        drop(build);
        assert!(!folder.exists(), "the folder was made for a build that left nothing");
        let (first, second) = (take(Company::Tasks).expect("free"), take(Company::Tasks).expect("shared"));
        assert!(is_refused(Company::Nobody));
        drop(first);
        assert!(is_refused(Company::Nobody), "one task is left");
        fs::write(folder.join("shard"), "x").expect("written");
        drop(second);
        assert_eq!(fs::read_dir(&folder).expect("the folder").count(), 1, "the lock file is gone");
        // What a killed process leaves.
        fs::write(folder.join(LOCK_FILE), "").expect("written");
        drop(take(Company::Nobody).expect("nobody holds it"));
    }

    #[test]
    fn tasks_that_come_and_go_never_refuse_one_another() {
        let root = tempfile::tempdir().expect("temp folder");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..50).for_each(|_| drop(OutputLock::take(root.path(), Company::Tasks).expect("shared")))
                });
            }
        });
        assert_eq!(fs::read_dir(root.path()).expect("the folder").count(), 0);
    }
}
