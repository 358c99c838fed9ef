//! A folder of the local file system as a store.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use vela_types::Fingerprint;

use crate::ShardError;
use crate::mapping::map_file;
use crate::store::{Claim, FileStamp, PARTIAL_SUFFIX, Store, StoreFile};

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

    fn entries(&self) -> Result<Vec<DirEntry>, ShardError> {
        let fault = || ShardError::io(self.path(""), "list");
        match fs::read_dir(&self.folder) {
            Ok(entries) => entries.collect::<Result<_, _>>().map_err(fault()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(fault()(error)),
        }
    }

    /// A file under a name of its own, so that two processes that make the same file do not write into one another's.
    fn start(&self, name: &str) -> Result<LocalFile, ShardError> {
        fs::create_dir_all(&self.folder).map_err(ShardError::io(self.path(""), "create the folder"))?;
        let unique = RandomState::new().hash_one(std::process::id());
        let partial = self.folder.join(format!("{name}.{unique:016x}{PARTIAL_SUFFIX}"));
        let file = File::create_new(&partial).map_err(ShardError::io(partial.display().to_string(), "create"))?;
        Ok(LocalFile { file: BufWriter::new(file), partial, target: self.folder.join(name), published: false })
    }
}

impl Store for LocalStore {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, ShardError> {
        let file = match File::open(self.folder.join(name)) {
            Ok(file) => file,
            Err(fault) if fault.kind() == ErrorKind::NotFound => return Ok(None),
            Err(fault) => return Err(ShardError::io(self.path(name), "open")(fault)),
        };
        map_file(&file).map(Some).map_err(ShardError::io(self.path(name), "map"))
    }

    fn stamp(&self, name: &str) -> Result<Option<FileStamp>, ShardError> {
        match fs::metadata(self.folder.join(name)) {
            Ok(metadata) => Ok(Some(FileStamp { bytes: metadata.len(), tag: None })),
            Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(None),
            Err(fault) => Err(ShardError::io(self.path(name), "read the size")(fault)),
        }
    }

    fn hash(&self, name: &str) -> Result<Option<Fingerprint>, ShardError> {
        Ok(self.read(name)?.map(|content| Fingerprint(*blake3::hash(&content).as_bytes())))
    }

    fn list(&self) -> Result<Vec<String>, ShardError> {
        let mut names: Vec<String> = self.entries()?.iter().map(name_of).collect();
        names.sort();
        Ok(names)
    }

    fn sizes(&self) -> Result<BTreeMap<String, u64>, ShardError> {
        let mut sizes = BTreeMap::new();
        for entry in self.entries()? {
            // Links are followed; one that leads nowhere is no file.
            match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => _ = sizes.insert(name_of(&entry), metadata.len()),
                Err(fault) if fault.kind() != ErrorKind::NotFound => {
                    return Err(ShardError::io(self.path(&name_of(&entry)), "read the size")(fault));
                }
                _ => {}
            }
        }
        Ok(sizes)
    }

    fn create(&self, name: &str) -> Result<Box<dyn StoreFile>, ShardError> {
        Ok(Box::new(self.start(name)?))
    }

    fn create_new(&self, name: &str, content: &[u8]) -> Result<Claim, ShardError> {
        let mut file = self.start(name)?;
        let written = file.write_all(content).and_then(|()| file.sync_and_link());
        if written.map_err(ShardError::io(self.path(name), "write"))? {
            return Ok(Claim::Won);
        }
        match self.read(name)? {
            Some(found) if found != content => Ok(Claim::Lost(found)),
            _ => Ok(Claim::Won),
        }
    }

    fn remove(&self, name: &str) -> Result<(), ShardError> {
        match fs::remove_file(self.folder.join(name)) {
            Err(fault) if fault.kind() != ErrorKind::NotFound => Err(ShardError::io(self.path(name), "remove")(fault)),
            _ => Ok(()),
        }
    }
}

fn name_of(entry: &DirEntry) -> String {
    entry.file_name().to_string_lossy().into_owned()
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
        self.folder()?.sync_all()
    }

    /// As above, but false if the name is taken. The partial file stays for [`Drop`].
    fn sync_and_link(&mut self) -> std::io::Result<bool> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        match fs::hard_link(&self.partial, &self.target) {
            Err(fault) if fault.kind() == ErrorKind::AlreadyExists => return Ok(false),
            // A file system without links: the folder is locked between looking and renaming.
            Err(fault) if matches!(fault.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
                let folder = self.folder()?;
                folder.lock()?;
                if self.target.try_exists()? {
                    return Ok(false);
                }
                self.sync_and_rename()?;
            }
            linked => linked?,
        }
        self.folder()?.sync_all()?;
        Ok(true)
    }

    fn folder(&self) -> std::io::Result<File> {
        match self.target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder),
            _ => File::open("."),
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
            // An abandoned file is only litter: the next build removes it.
            let _ = fs::remove_file(&self.partial);
        }
    }
}
