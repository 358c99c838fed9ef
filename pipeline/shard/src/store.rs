//! Where a shard set lives. Callers see named immutable files; only this module knows what a folder is.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::ShardError;
use crate::mapping::map_file;

/// A flat folder of named files that appear whole or not at all and never change after that.
pub trait Store: Send + Sync + Debug {
    /// What messages call the file `name`.
    fn path(&self, name: &str) -> String;

    /// The bytes of a file, mapped where the store can; `None` if there is no such file.
    fn read(&self, name: &str) -> Result<Option<Bytes>, ShardError>;

    /// The bytes a file holds, without reading them; `None` if there is no such file.
    fn size(&self, name: &str) -> Result<Option<u64>, ShardError>;

    /// All file names, sorted.
    fn list(&self) -> Result<Vec<String>, ShardError>;

    /// Starts a file that is invisible until [`StoreFile::publish`]; dropped before that, it leaves nothing behind.
    fn create(&self, name: &str) -> Result<Box<dyn StoreFile>, ShardError>;

    /// Removes a file; it is no error if there is none.
    fn remove(&self, name: &str) -> Result<(), ShardError>;
}

/// A file being written.
pub trait StoreFile: Write + Send {
    /// Makes the file durable and visible under its name, replacing an older one in one step.
    fn publish(self: Box<Self>) -> Result<(), ShardError>;
}

/// Opens the store at a path or a `file://` url.
pub fn open_store(url: &str) -> Result<Arc<dyn Store>, ShardError> {
    let path = match url.split_once("://") {
        None => url,
        Some(("file", path)) if path.starts_with('/') => path,
        Some(_) => return Err(ShardError::UnsupportedUrl { url: url.to_owned() }),
    };
    Ok(Arc::new(LocalStore::new(Path::new(path))))
}

/// Ending of files that are still being written.
pub(crate) const PARTIAL_SUFFIX: &str = ".partial";

/// A folder of the local file system.
#[derive(Clone, Debug)]
pub struct LocalStore {
    folder: PathBuf,
}

impl LocalStore {
    /// The store of `folder`, which [`Store::create`] makes when it is missing.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }
}

impl Store for LocalStore {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, ShardError> {
        let file = match File::open(self.folder.join(name)) {
            Ok(file) => file,
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(fault) => return Err(ShardError::io(self.path(name), "open")(fault)),
        };
        map_file(&file).map(Some).map_err(ShardError::io(self.path(name), "map"))
    }

    fn size(&self, name: &str) -> Result<Option<u64>, ShardError> {
        match fs::metadata(self.folder.join(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(fault) => Err(ShardError::io(self.path(name), "read the size")(fault)),
        }
    }

    fn list(&self) -> Result<Vec<String>, ShardError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(fault) => return Err(ShardError::io(self.path(""), "list")(fault)),
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> =
            names.collect::<std::io::Result<_>>().map_err(ShardError::io(self.path(""), "list"))?;
        names.sort();
        Ok(names)
    }

    fn create(&self, name: &str) -> Result<Box<dyn StoreFile>, ShardError> {
        fs::create_dir_all(&self.folder).map_err(ShardError::io(self.path(""), "create the folder"))?;
        let partial = self.folder.join(format!("{name}{PARTIAL_SUFFIX}"));
        let file = File::create(&partial).map_err(ShardError::io(partial.display().to_string(), "create"))?;
        let target = self.folder.join(name);
        Ok(Box::new(LocalFile { file: BufWriter::new(file), partial, target, published: false }))
    }

    fn remove(&self, name: &str) -> Result<(), ShardError> {
        match fs::remove_file(self.folder.join(name)) {
            Err(fault) if fault.kind() != std::io::ErrorKind::NotFound => {
                Err(ShardError::io(self.path(name), "remove")(fault))
            }
            _ => Ok(()),
        }
    }
}

/// A temporary file that is renamed into place.
struct LocalFile {
    file: BufWriter<File>,
    partial: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Write for LocalFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl LocalFile {
    /// Content first, then the name, then the folder that holds the name: the order a crash cannot turn round.
    fn sync_and_rename(&mut self) -> std::io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.partial, &self.target)?;
        self.published = true;
        match self.target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    }
}

impl StoreFile for LocalFile {
    fn publish(mut self: Box<Self>) -> Result<(), ShardError> {
        let path = self.target.display().to_string();
        self.sync_and_rename().map_err(ShardError::io(path, "write"))
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if !self.published {
            // An abandoned file is only litter: the next build of this name overwrites it.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Writes one small file whole.
pub(crate) fn write_whole(store: &dyn Store, name: &str, bytes: &[u8]) -> Result<(), ShardError> {
    let mut file = store.create(name)?;
    file.write_all(bytes).map_err(ShardError::io(store.path(name), "write"))?;
    file.publish()
}
