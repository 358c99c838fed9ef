//! A store that keeps nothing: for shards that are made only to be compared.

use std::collections::BTreeMap;
use std::io::Write;

use bytes::Bytes;
use vela_types::Fingerprint;

use crate::ShardError;
use crate::store::{Claim, FileStamp, Store, StoreFile};

/// Takes every file and forgets it.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiscardStore;

impl Store for DiscardStore {
    fn path(&self, name: &str) -> String {
        name.to_owned()
    }

    fn read(&self, _name: &str) -> Result<Option<Bytes>, ShardError> {
        Ok(None)
    }

    fn stamp(&self, _name: &str) -> Result<Option<FileStamp>, ShardError> {
        Ok(None)
    }

    fn hash(&self, _name: &str) -> Result<Option<Fingerprint>, ShardError> {
        Ok(None)
    }

    fn list(&self) -> Result<Vec<String>, ShardError> {
        Ok(Vec::new())
    }

    fn sizes(&self) -> Result<BTreeMap<String, u64>, ShardError> {
        Ok(BTreeMap::new())
    }

    fn create(&self, _name: &str) -> Result<Box<dyn StoreFile>, ShardError> {
        Ok(Box::new(DiscardedFile))
    }

    fn create_new(&self, _name: &str, _content: &[u8]) -> Result<Claim, ShardError> {
        Ok(Claim::Won)
    }

    fn remove(&self, _name: &str) -> Result<(), ShardError> {
        Ok(())
    }
}

struct DiscardedFile;

impl Write for DiscardedFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl StoreFile for DiscardedFile {
    fn publish(self: Box<Self>) -> Result<(), ShardError> {
        Ok(())
    }
}
