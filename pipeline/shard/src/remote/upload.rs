//! Writing one object: a small one in one put, a larger one in parts that become visible together.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{Error, MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::task::JoinHandle;

use super::{RemoteStore, stopped};
use crate::ShardError;
use crate::store::StoreFile;

/// Parts under way per file.
const NUM_PARTS_IN_FLIGHT: usize = 4;
/// Most parts that S3 takes.
const MAX_PARTS: usize = 10_000;
/// Longest time that giving up an upload may take.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// An object being written. It holds one part that is being filled and at most four that are under way.
pub(super) struct RemoteFile {
    store: RemoteStore,
    name: String,
    part: Vec<u8>,
    parts: Option<Parts>,
}

impl RemoteFile {
    pub(super) fn new(store: RemoteStore, name: &str) -> Self {
        Self { store, name: name.to_owned(), part: Vec::new(), parts: None }
    }

    /// Sends the part that is full.
    fn send_part(&mut self) -> object_store::Result<()> {
        let full = PutPayload::from(std::mem::take(&mut self.part));
        if self.parts.is_none() {
            self.parts = Some(Parts::start(&self.store, self.store.location(&self.name))?);
        }
        self.parts.as_mut().expect("started above").send(full)
    }

    fn finish(&mut self) -> object_store::Result<()> {
        if self.parts.is_none() {
            let (client, location) = (Arc::clone(&self.store.client), self.store.location(&self.name));
            let content = PutPayload::from(std::mem::take(&mut self.part));
            return self.store.run(async move { client.put(&location, content).await.map(|_| ()) });
        }
        if !self.part.is_empty() {
            self.send_part()?;
        }
        self.parts.take().expect("looked at above").complete()
    }
}

impl Write for RemoteFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Only now is it known that the full part is not the whole object.
        if self.part.len() == self.store.part_bytes && !bytes.is_empty() {
            let sent = self.send_part();
            sent.map_err(self.store.fault(&self.name, "write")).map_err(std::io::Error::other)?;
        }
        let taken = bytes.len().min(self.store.part_bytes - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Nothing is durable before it is published.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl StoreFile for RemoteFile {
    fn publish(mut self: Box<Self>) -> Result<(), ShardError> {
        self.finish().map_err(self.store.fault(&self.name, "write"))
    }
}

/// The parts of an upload. Dropped before it is complete, it takes back what was sent.
struct Parts {
    store: RemoteStore,
    upload: Option<Box<dyn MultipartUpload>>,
    sent: usize,
    in_flight: VecDeque<JoinHandle<object_store::Result<()>>>,
}

impl Parts {
    fn start(store: &RemoteStore, location: Path) -> object_store::Result<Self> {
        let client = Arc::clone(&store.client);
        let upload = store.run(async move { client.put_multipart(&location).await })?;
        Ok(Self { store: store.clone(), upload: Some(upload), sent: 0, in_flight: VecDeque::new() })
    }

    fn send(&mut self, part: PutPayload) -> object_store::Result<()> {
        if self.sent == MAX_PARTS {
            let source = format!("expected at most {MAX_PARTS} parts; choose a smaller `--shard-size`").into();
            return Err(Error::Generic { store: "remote", source });
        }
        if self.in_flight.len() >= NUM_PARTS_IN_FLIGHT {
            self.wait()?;
        }
        let sending = self.upload.as_mut().ok_or_else(stopped)?.put_part(part);
        self.in_flight.push_back(self.store.runtime.spawn(sending));
        self.sent += 1;
        Ok(())
    }

    /// Waits for the oldest part.
    fn wait(&mut self) -> object_store::Result<()> {
        let Some(oldest) = self.in_flight.pop_front() else { return Ok(()) };
        self.store.run(async move { oldest.await? })
    }

    fn complete(mut self) -> object_store::Result<()> {
        while !self.in_flight.is_empty() {
            self.wait()?;
        }
        let mut upload = self.upload.take().ok_or_else(stopped)?;
        let (upload, completed) = self.store.run(async move {
            let completed = upload.complete().await.map(|_| ());
            Ok((upload, completed))
        })?;
        if completed.is_err() {
            self.upload = Some(upload);
        }
        completed
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        let in_flight = std::mem::take(&mut self.in_flight);
        in_flight.iter().for_each(JoinHandle::abort);
        // A part that arrived after the abort would stay and cost money: the abort comes when the last part has ended. A
        // store that cannot be reached keeps them until its own rule for unfinished uploads removes them.
        let _ = self.store.run(async move {
            for part in in_flight {
                let _ = part.await;
            }
            Ok(tokio::time::timeout(ABORT_TIMEOUT, upload.abort()).await)
        });
    }
}
