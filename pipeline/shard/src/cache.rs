//! Local copies of remote files, named by their content and verified before anybody sees them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use vela_types::Fingerprint;

use crate::ShardError;
use crate::manifest::FileEntry;
use crate::mapping::map_held_file;
use crate::store::PARTIAL_SUFFIX;

/// Where local copies of remote shards lie, and how much room they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// The folder, made when it is needed. Several processes and several shard sets may share it.
    pub folder: PathBuf,
    /// Bytes of all copies in it. Copies that no process has open make room, the longest unused first.
    pub limit_bytes: u64,
}

/// Gives a sink the bytes of a file, from the first to the last.
pub(crate) type Fetch<'a> = dyn Fn(&mut dyn FnMut(&[u8]) -> Result<(), ShardError>) -> Result<(), ShardError> + 'a;

/// Tries to get a copy with the right checksum before the remote file is called damaged.
const TRIES: u32 = 2;
/// Locks under which copies are made: two different files rarely wait for one another.
const NUM_LOCKS: u8 = 64;
const LOCK_PREFIX: &str = "lock-";
/// Held while room is made.
const ROOM_LOCK: &str = "lock-room";

/// A folder of verified copies. `HEX` is the copy of the file whose blake3 is `HEX`; `HEX.partial` is one that is being
/// made. Each is locked by those who use it, so a file is removed only when nobody does, and a process that is killed
/// leaves no lock behind.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    settings: CacheSettings,
}

impl Cache {
    pub(crate) fn new(settings: CacheSettings) -> Self {
        Self { settings }
    }

    /// Bytes that all copies together may take.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.settings.limit_bytes
    }

    /// The mapped copy of `entry`, made by `fetch` if there is none. `path` names the remote file in messages.
    pub(crate) fn open(&self, path: &str, entry: &FileEntry, fetch: &Fetch<'_>) -> Result<Bytes, ShardError> {
        if let Some(copy) = self.find(entry)? {
            metrics::counter!("vela_cache_hits_total").increment(1);
            return Ok(copy);
        }
        let folder = &self.settings.folder;
        fs::create_dir_all(folder).map_err(at(folder, "create the folder"))?;
        let _making = self.lock(&format!("{LOCK_PREFIX}{:02}", entry.checksum.0[0] % NUM_LOCKS))?;
        // Another process may have made it meanwhile.
        if let Some(copy) = self.find(entry)? {
            return Ok(copy);
        }
        let mut found = Fingerprint::default();
        for _ in 0..TRIES {
            found = self.make(entry, fetch)?;
            if found == entry.checksum
                && let Some(copy) = self.find(entry)?
            {
                metrics::counter!("vela_cache_misses_total").increment(1);
                return Ok(copy);
            }
            tracing::warn!(path, expected = %entry.checksum, %found, "a copy has another checksum and was thrown away");
        }
        Err(ShardError::DamagedFile {
            path: path.to_owned(),
            what: "checksum of the file",
            expected: entry.checksum.to_string(),
            found: found.to_string(),
        })
    }

    /// Removes the copy of `entry`; false if there is none. Who has it open keeps it.
    pub(crate) fn remove(&self, entry: &FileEntry) -> Result<bool, ShardError> {
        let path = self.copy_path(entry);
        match fs::remove_file(&path) {
            Ok(()) => {
                tracing::warn!(file = entry.file, copy = %path.display(), "a damaged local copy was thrown away");
                Ok(true)
            }
            Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(false),
            Err(fault) => Err(at(&path, "remove")(fault)),
        }
    }

    fn copy_path(&self, entry: &FileEntry) -> PathBuf {
        self.settings.folder.join(entry.checksum.to_string())
    }

    fn find(&self, entry: &FileEntry) -> Result<Option<Bytes>, ShardError> {
        let path = self.copy_path(entry);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(fault) if fault.kind() == ErrorKind::NotFound => return Ok(None),
            Err(fault) => return Err(at(&path, "open")(fault)),
        };
        file.lock_shared().map_err(at(&path, "lock"))?;
        if file.metadata().map_err(at(&path, "read the size"))?.len() != entry.bytes {
            return Ok(None);
        }
        // The time of last use orders who makes room; a folder that does not keep it costs nothing but that order.
        let _ = file.set_modified(SystemTime::now());
        map_held_file(file).map(Some).map_err(at(&path, "map"))
    }

    /// Fetches a copy and gives it its name if its checksum is right. Returns the checksum.
    fn make(&self, entry: &FileEntry, fetch: &Fetch<'_>) -> Result<Fingerprint, ShardError> {
        let partial = self.settings.folder.join(format!("{}{PARTIAL_SUFFIX}", entry.checksum));
        let mut file = self.reserve(&partial, entry.bytes)?;
        let mut hasher = blake3::Hasher::new();
        let fetched = fetch(&mut |bytes| {
            metrics::counter!("vela_cache_fetched_bytes_total").increment(bytes.len() as u64);
            hasher.update(bytes);
            file.write_all(bytes).map_err(at(&partial, "write"))
        });
        let found = Fingerprint(*hasher.finalize().as_bytes());
        if fetched.is_err() || found != entry.checksum {
            fs::remove_file(&partial).map_err(at(&partial, "remove"))?;
            return fetched.map(|()| found);
        }
        file.sync_all().map_err(at(&partial, "write"))?;
        fs::rename(&partial, self.copy_path(entry)).map_err(at(&partial, "rename"))?;
        Ok(found)
    }

    /// Starts a file that takes `bytes`, after making room for it.
    fn reserve(&self, partial: &Path, bytes: u64) -> Result<File, ShardError> {
        let _room = self.lock(ROOM_LOCK)?;
        self.make_room(bytes)?;
        let file = File::create(partial).map_err(at(partial, "create"))?;
        file.lock().map_err(at(partial, "lock"))?;
        // Counted by those who make room from now on.
        file.set_len(bytes).map_err(at(partial, "write"))?;
        Ok(file)
    }

    fn make_room(&self, bytes: u64) -> Result<(), ShardError> {
        let mut files = self.files()?;
        let mut held: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        files.sort_by_key(|(_, _, used)| *used);
        for (path, file_bytes, _) in files {
            if held.saturating_add(bytes) <= self.settings.limit_bytes {
                break;
            }
            if remove_unused(&path)? {
                held -= file_bytes;
            }
        }
        match held.saturating_add(bytes) <= self.settings.limit_bytes {
            true => Ok(()),
            false => Err(ShardError::CacheFull {
                path: self.settings.folder.display().to_string(),
                limit: self.settings.limit_bytes,
                held,
                needed: bytes,
            }),
        }
    }

    /// Path, size and last use of every copy, finished or not. Other files of the folder are nobody's business here: they may have no
    /// remote.
    fn files(&self) -> Result<Vec<(PathBuf, u64, SystemTime)>, ShardError> {
        let folder = &self.settings.folder;
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(at(folder, "list"))? {
            let entry = entry.map_err(at(folder, "list"))?;
            let is_copy = is_copy_name(&entry.file_name().to_string_lossy());
            match entry.metadata() {
                Ok(data) if data.is_file() && is_copy => {
                    files.push((entry.path(), data.len(), data.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
                }
                // Removed by another process since it was listed.
                Err(fault) if fault.kind() != ErrorKind::NotFound => return Err(at(&entry.path(), "list")(fault)),
                _ => {}
            }
        }
        Ok(files)
    }

    /// Waits for the lock `name`; it is free again when the file is dropped.
    fn lock(&self, name: &str) -> Result<File, ShardError> {
        let path = self.settings.folder.join(name);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(at(&path, "create"))?;
        file.lock().map_err(at(&path, "lock"))?;
        Ok(file)
    }
}

/// True of `HEX` and `HEX.partial`, of 64 lower-case hexadecimal digits.
fn is_copy_name(name: &str) -> bool {
    let hex = name.strip_suffix(PARTIAL_SUFFIX).unwrap_or(name);
    hex.len() == 64 && hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// False if somebody has the file open.
fn remove_unused(path: &Path) -> Result<bool, ShardError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(fault) if fault.kind() == ErrorKind::NotFound => return Ok(true),
        Err(fault) => return Err(at(path, "open")(fault)),
    };
    match file.try_lock() {
        Ok(()) => fs::remove_file(path).map(|()| true).map_err(at(path, "remove")),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(fault)) => Err(at(path, "lock")(fault)),
    }
}

fn at(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> ShardError {
    ShardError::io(path.display().to_string(), action)
}
