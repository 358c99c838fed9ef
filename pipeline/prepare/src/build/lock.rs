//! One build at a time in a local output folder, or any number of tasks of one: a lock that goes with its process, `kill -9`
//! included. Remote stores have none, nor have some network file systems; there the commit decides.

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
    company: Company,
    /// False on a file system without locks, where nobody can tell who else is in the folder.
    is_held: bool,
}

/// True of the answer of a medium or folder that nothing can be written to.
pub(super) fn is_read_only(fault: &PrepareError) -> bool {
    let kinds = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied];
    matches!(fault, PrepareError::Io { source, .. } if kinds.contains(&source.kind()))
}

/// What came of asking for a lock.
enum Tried {
    Held,
    /// By somebody else.
    Busy,
    /// The file system knows no locks.
    NoLocks(io::Error),
    Failed(io::Error),
}

/// `ENOLCK` of Linux: a network file system without its lock service.
const NO_LOCKS_AVAILABLE: i32 = 37;

impl From<Result<(), TryLockError>> for Tried {
    fn from(tried: Result<(), TryLockError>) -> Self {
        match tried {
            Ok(()) => Self::Held,
            Err(TryLockError::WouldBlock) => Self::Busy,
            Err(TryLockError::Error(fault)) => {
                let is_unknown =
                    fault.kind() == io::ErrorKind::Unsupported || fault.raw_os_error() == Some(NO_LOCKS_AVAILABLE);
                if is_unknown { Self::NoLocks(fault) } else { Self::Failed(fault) }
            }
        }
    }
}

impl OutputLock {
    /// Makes `folder` if it is not there, and holds it. On a file system without locks it warns and goes on, as a build in a bucket
    /// does: the name of the build in the folder keeps other builds out, and of two equal ones the first commit counts.
    ///
    /// # Errors
    /// If another process holds it in a way that `company` excludes.
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
            let is_held = match Tried::from(tried) {
                // The holder before may have removed the file between the opening and the locking.
                Tried::Held if is_at(&file, &path).map_err(PrepareError::io("read", &path))? => true,
                Tried::Held => continue,
                Tried::Busy => {
                    sleep(PAUSE);
                    continue;
                }
                Tried::NoLocks(fault) => {
                    warn_of_no_locks(folder, &fault);
                    false
                }
                Tried::Failed(fault) => return Err(PrepareError::io("lock", &path)(fault)),
            };
            return Ok(Self { folder: folder.to_owned(), file, is_new, company, is_held });
        }
        Err(PrepareError::InUse { path: folder.to_owned() })
    }

    /// Runs `body` if nobody else is in the folder, and while nobody can come; not at all if that cannot be told.
    pub(super) fn alone(&self, body: impl FnOnce() -> Result<(), PrepareError>) -> Result<(), PrepareError> {
        match (self.is_held, self.company) {
            (false, _) => Ok(()),
            (true, Company::Nobody) => body(),
            (true, Company::Tasks) => {
                let is_alone = self.file.unlock().is_ok() && self.file.try_lock().is_ok();
                let done = if is_alone { body() } else { Ok(()) };
                // Somebody who came in between may keep the folder: this is called when the work here is done.
                let _ = self.file.unlock().and_then(|()| Ok(self.file.try_lock_shared()?));
                done
            }
        }
    }
}

fn warn_of_no_locks(folder: &Path, fault: &io::Error) {
    tracing::warn!(
        "`{}`: its file system has no locks ({fault}), so nothing keeps a second build out: see to it that one process \
         builds there at a time, or give an `--output` on another file system",
        folder.display()
    );
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
        let is_last = !self.is_held || self.file.unlock().is_ok() && self.file.try_lock().is_ok();
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
    fn what_needs_an_empty_folder_is_done_by_who_is_alone() {
        let root = tempfile::tempdir().expect("temp folder");
        let was_done = |lock: &OutputLock| {
            let mut was_done = false;
            lock.alone(|| {
                was_done = true;
                Ok(())
            })
            .expect("no fault");
            was_done
        };
        let (first, second) = [(); 2].map(|()| OutputLock::take(root.path(), Company::Tasks).expect("shared")).into();
        assert!(!was_done(&first) && !was_done(&second));
        drop(second);
        assert!(was_done(&first));
        assert!(
            matches!(OutputLock::take(root.path(), Company::Nobody), Err(PrepareError::InUse { .. })),
            "still there"
        );
        drop(first);
        assert!(was_done(&OutputLock::take(root.path(), Company::Nobody).expect("free")));
    }

    #[test]
    fn a_folder_that_nothing_can_be_written_to_is_told_from_other_faults() {
        let fault = |code: i32| PrepareError::io("create", Path::new("a"))(io::Error::from_raw_os_error(code));
        // `EROFS`, `EACCES`; `ENOSPC`.
        assert!(is_read_only(&fault(30)) && is_read_only(&fault(13)) && !is_read_only(&fault(28)));
    }

    #[test]
    fn a_file_system_without_locks_is_no_reason_to_refuse_a_build() {
        // `ENOSYS`, `ENOLCK`, `EOPNOTSUPP` of Linux.
        for code in [38, 37, 95] {
            let tried = Err(TryLockError::Error(io::Error::from_raw_os_error(code)));
            assert!(matches!(Tried::from(tried), Tried::NoLocks(_)), "{code}");
        }
        let denied = Err(TryLockError::Error(io::Error::from_raw_os_error(13)));
        assert!(matches!(Tried::from(denied), Tried::Failed(_)));
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join(LOCK_FILE);
        let file = File::create(&path).expect("written");
        let (folder, company) = (root.path().to_owned(), Company::Nobody);
        let lock = OutputLock { folder, file, is_new: false, company, is_held: false };
        lock.alone(|| panic!("nobody can tell who is there")).expect("nothing done");
        drop(lock);
        assert!(!path.exists());
        assert!(root.path().exists(), "the folder was there before");
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
