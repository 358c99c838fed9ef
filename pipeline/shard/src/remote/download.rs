//! Reading one version of one object in parallel ranges.

use std::ops::Range;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::options::Scheme;
use super::{MAX_READ_BYTES, found_or_none, persist, remote_fault, stopped};
use crate::ShardError;

/// Ranges that are under way or wait for the sink.
const NUM_RANGES: usize = 4;

/// An object on its way to a sink.
pub(super) struct Download {
    pub(super) client: Arc<dyn ObjectStore>,
    pub(super) location: Path,
    pub(super) bytes: u64,
    /// The version that is read; a change in the middle is an error.
    pub(super) tag: Option<String>,
    /// Bytes of one range.
    pub(super) part_bytes: usize,
    pub(super) runtime: Handle,
    /// What errors say.
    pub(super) fault: (Scheme, String),
}

impl Download {
    /// Hands the object to `sink` from its first byte to its last. At most four ranges are in memory.
    pub(super) fn run(self, sink: &mut dyn FnMut(&[u8]) -> Result<(), ShardError>) -> Result<(), ShardError> {
        let Self { client, location, bytes, tag, part_bytes, runtime, fault: (scheme, path) } = self;
        let room = Arc::new(Semaphore::new(NUM_RANGES));
        // Unbounded in number, bounded by `room`: a range is asked for only once the sink has taken an earlier one.
        let (sender, receiver) = mpsc::channel();
        let reads = {
            let room = Arc::clone(&room);
            ranges(bytes, part_bytes as u64).map(move |range| {
                let (client, location) = (Arc::clone(&client), location.clone());
                let (room, tag) = (Arc::clone(&room), tag.clone());
                async move {
                    room.acquire().await.map_err(|_| stopped())?.forget();
                    // What comes short is asked for anew; a change of the object is not cured by that.
                    persist(|| read_range(Arc::clone(&client), location.clone(), range.clone(), tag.clone())).await
                }
            })
        };
        let reading = runtime.spawn(async move {
            let mut reads = stream::iter(reads).buffered(NUM_RANGES);
            while let Some(read) = reads.next().await {
                let failed = read.is_err();
                if sender.send(read).is_err() || failed {
                    break;
                }
            }
        });
        let mut taken = 0;
        let mut outcome = Ok(());
        while outcome.is_ok() && taken < bytes {
            let read = receiver.recv().unwrap_or_else(|_| Err(stopped()));
            outcome = read.map_err(remote_fault(scheme, path.clone(), "read")).and_then(|part| {
                taken += part.len() as u64;
                sink(&part)
            });
            room.add_permits(1);
        }
        reading.abort();
        outcome
    }
}

/// The ranges of an object of `bytes`; none of an empty one.
fn ranges(bytes: u64, part_bytes: u64) -> impl Iterator<Item = Range<u64>> {
    (0..bytes.div_ceil(part_bytes)).map(move |part| part * part_bytes..((part + 1) * part_bytes).min(bytes))
}

async fn read_range(
    client: Arc<dyn ObjectStore>,
    location: Path,
    range: Range<u64>,
    tag: Option<String>,
) -> object_store::Result<Bytes> {
    let expected = range.end - range.start;
    let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match: tag, ..GetOptions::default() };
    let part = client.get_opts(&location, options).await?.bytes().await?;
    match part.len() as u64 == expected {
        true => Ok(part),
        false => {
            let source = format!("expected {expected} bytes, found {}", part.len()).into();
            Err(Error::Generic { store: "remote", source })
        }
    }
}

/// A small object in one request; `None` if there is none.
pub(super) async fn read_whole(client: Arc<dyn ObjectStore>, location: Path) -> object_store::Result<Option<Bytes>> {
    let Some(found) = found_or_none(client.get(&location).await)? else { return Ok(None) };
    let (expected, limit) = (found.meta.size, MAX_READ_BYTES);
    let refuse = |text: String| Err(Error::Generic { store: "remote", source: text.into() });
    if expected > limit {
        return refuse(format!("expected a small file of at most {limit} bytes, found {expected}"));
    }
    let content = found.bytes().await?;
    match content.len() as u64 == expected {
        true => Ok(Some(content)),
        false => refuse(format!("expected {expected} bytes, found {}", content.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_byte_once() {
        assert_eq!(ranges(10, 4).collect::<Vec<_>>(), [0..4, 4..8, 8..10]);
        assert_eq!(ranges(8, 4).collect::<Vec<_>>(), [0..4, 4..8]);
        assert_eq!(ranges(0, 4).count(), 0);
    }
}
