//! Where a shard set lives. Callers see named files that never change; only the stores know folders and buckets.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use vela_types::Fingerprint;

use crate::ShardError;
use crate::local::LocalStore;
use crate::manifest::FileEntry;
use crate::remote::{RemoteOptions, RemoteStore};

/// A flat folder of named files that appear whole or not at all and never change after that.
pub trait Store: Send + Sync + Debug {
    /// What messages call the file `name`.
    fn path(&self, name: &str) -> String;

    /// The bytes of a small file, mapped where the store can; `None` if there is no such file.
    fn read(&self, name: &str) -> Result<Option<Bytes>, ShardError>;

    /// [`Store::read`] of each name.
    fn read_all(&self, names: &[String]) -> Result<Vec<Option<Bytes>>, ShardError> {
        names.iter().map(|name| self.read(name)).collect()
    }

    /// The bytes of a file of any size, mapped; `None` if there is no such file. A store that cannot map makes a local
    /// copy first and compares it with `file`; the others leave that to their reader.
    fn map(&self, file: &FileEntry) -> Result<Option<Bytes>, ShardError> {
        self.read(&file.file)
    }

    /// Whether [`Store::map`] holds an open file of a cache for as long as the bytes live.
    fn maps_copies(&self) -> bool {
        false
    }

    /// Bytes that all its copies together may take, where [`Store::map`] makes copies.
    fn copies_limit(&self) -> Option<u64> {
        None
    }

    /// Drops the local copy of a file that turned out damaged, so that the next [`Store::map`] fetches it again. False
    /// if there was none: then the file itself is damaged.
    fn drop_copy(&self, _file: &FileEntry) -> Result<bool, ShardError> {
        Ok(false)
    }

    /// What can be said of a file without reading it; `None` if there is no such file.
    fn stamp(&self, name: &str) -> Result<Option<FileStamp>, ShardError>;

    /// blake3 of a file of any size, read to its end; `None` if there is no such file.
    fn hash(&self, name: &str) -> Result<Option<Fingerprint>, ShardError>;

    /// The names of all files, and of whatever else stands beside them, sorted.
    fn list(&self) -> Result<Vec<String>, ShardError>;

    /// All files with their sizes in bytes.
    fn sizes(&self) -> Result<BTreeMap<String, u64>, ShardError>;

    /// Starts a file that is invisible until [`StoreFile::publish`]; dropped before that, it leaves nothing behind.
    fn create(&self, name: &str) -> Result<Box<dyn StoreFile>, ShardError>;

    /// Writes a small file whole, unless there is one already: of several writers, exactly one finds its content there.
    fn create_new(&self, name: &str, content: &[u8]) -> Result<Claim, ShardError>;

    /// Removes a file; it is no error if there is none.
    fn remove(&self, name: &str) -> Result<(), ShardError>;
}

/// What a store says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Size in bytes.
    pub bytes: u64,
    /// The store's name for this content (an entity tag): another content has another. `None` where the store has none.
    pub tag: Option<String>,
}

/// The outcome of [`Store::create_new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The file holds what was to be written, by this writer or by one that wrote the same.
    Won,
    /// The file was there before and holds this.
    Lost(Bytes),
}

/// A file being written.
pub trait StoreFile: Write + Send {
    /// Makes the file durable and visible under its name, replacing an older one in one step.
    fn publish(self: Box<Self>) -> Result<(), ShardError>;
}

/// Opens the store at a path, a `file://` url, or a prefix of a bucket: `s3://`, `gs://`, `az://`. Buckets are reached by
/// the settings of the environment, see [`RemoteOptions::from_env`].
pub fn open_store(url: &str) -> Result<Arc<dyn Store>, ShardError> {
    match local_path(url)? {
        Some(path) => Ok(Arc::new(LocalStore::new(path))),
        None => Ok(Arc::new(RemoteStore::open(url, &RemoteOptions::from_env()?)?)),
    }
}

/// The folder that a path or `file://` url names; `None` for a url of another scheme.
pub fn local_path(url: &str) -> Result<Option<&Path>, ShardError> {
    match url.split_once("://") {
        None => Ok(Some(Path::new(url))),
        Some(("file", path)) if path.starts_with('/') => Ok(Some(Path::new(path))),
        Some(("file", _)) => Err(ShardError::UnsupportedUrl { url: url.to_owned() }),
        Some(_) => Ok(None),
    }
}

/// Ending of files that are still being written.
pub(crate) const PARTIAL_SUFFIX: &str = ".partial";

/// True of the name of a file that a local store is still writing, or was when its process was killed: `NAME.HEX.partial` with 16
/// hexadecimal digits. Any other `.partial` file is a stranger's.
pub fn is_partial_name(name: &str) -> bool {
    let unique = name.strip_suffix(PARTIAL_SUFFIX).and_then(|name| name.rsplit_once('.'));
    unique.is_some_and(|(name, hex)| {
        !name.is_empty() && hex.len() == 16 && hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Writes one small file whole.
pub(crate) fn write_whole(store: &dyn Store, name: &str, bytes: &[u8]) -> Result<(), ShardError> {
    let mut file = store.create(name)?;
    file.write_all(bytes).map_err(ShardError::write(store.path(name)))?;
    file.publish()
}

/// Maps `file` and opens it with `open`. Where a local copy turns out damaged, it is fetched once more.
pub(crate) fn open_mapped<T>(
    store: &dyn Store,
    file: &FileEntry,
    open: impl Fn(Bytes) -> Result<T, ShardError>,
) -> Result<T, ShardError> {
    let map = || store.map(file)?.ok_or_else(|| ShardError::MissingFile { path: store.path(&file.file) });
    match open(map()?) {
        Err(fault) if fault.is_damage() && store.drop_copy(file)? => open(map()?),
        opened => opened,
    }
}
