//! A store that refuses bytes: the shard fails by name, and nothing appears under its name.

mod fixture;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use fixture::{record, settings};
use vela_shard::{Claim, FileStamp, LocalStore, ShardError, ShardWriter, Store, StoreFile};
use vela_types::Fingerprint;

/// A folder on a disk with room for `room` more bytes per file.
#[derive(Debug)]
struct FullDisk {
    folder: LocalStore,
    room: usize,
}

struct FullFile {
    file: Box<dyn StoreFile>,
    room: usize,
}

impl Store for FullDisk {
    fn path(&self, name: &str) -> String {
        self.folder.path(name)
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, ShardError> {
        self.folder.read(name)
    }

    fn stamp(&self, name: &str) -> Result<Option<FileStamp>, ShardError> {
        self.folder.stamp(name)
    }

    fn hash(&self, name: &str) -> Result<Option<Fingerprint>, ShardError> {
        self.folder.hash(name)
    }

    fn sizes(&self) -> Result<BTreeMap<String, u64>, ShardError> {
        self.folder.sizes()
    }

    fn create_new(&self, name: &str, content: &[u8]) -> Result<Claim, ShardError> {
        self.folder.create_new(name, content)
    }

    fn list(&self) -> Result<Vec<String>, ShardError> {
        self.folder.list()
    }

    fn create(&self, name: &str) -> Result<Box<dyn StoreFile>, ShardError> {
        Ok(Box::new(FullFile { file: self.folder.create(name)?, room: self.room }))
    }

    fn remove(&self, name: &str) -> Result<(), ShardError> {
        self.folder.remove(name)
    }
}

impl Write for FullFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let fitting = bytes.len().min(self.room);
        if fitting == 0 && !bytes.is_empty() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.room -= fitting;
        self.file.write(&bytes[..fitting])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl StoreFile for FullFile {
    fn publish(self: Box<Self>) -> Result<(), ShardError> {
        self.file.publish()
    }
}

fn write(store: Arc<dyn Store>) -> Result<u64, ShardError> {
    let mut writer = ShardWriter::create(store, 0, &settings())?;
    (0..20).try_for_each(|number| writer.push(&record(number)))?;
    Ok(writer.finish()?.entry.bytes)
}

#[test]
fn a_full_disk_is_an_error_that_names_the_shard_wherever_it_strikes() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = |room| Arc::new(FullDisk { folder: LocalStore::new(folder.path()), room });
    let bytes = write(disk(usize::MAX)).expect("room enough") as usize;
    std::fs::remove_file(folder.path().join("shard-00000.parquet")).expect("the shard");
    for room in (0..bytes).step_by(61).chain([bytes - 1]) {
        let store = disk(room);
        let fault = write(store.clone()).expect_err("a full disk");
        assert!(fault.to_string().contains("shard-00000.parquet"), "{fault}");
        assert!(store.list().expect("a listing").is_empty(), "room for {room} bytes left something behind");
    }
    assert_eq!(write(disk(bytes)).expect("exactly enough") as usize, bytes);
}
