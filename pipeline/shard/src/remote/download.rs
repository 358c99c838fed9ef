//! Reading one version of one object in parallel ranges.

use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, LazyLock, mpsc};

use bytes::Bytes;
use futures_util::future::{self, Either};
use futures_util::{StreamExt, stream};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::options::Scheme;
use super::{MAX_READ_BYTES, found_or_none, persist, remote_fault, stopped};
use crate::ShardError;

/// Ranges of one object that are under way or wait for its sink.
const NUM_RANGES: usize = 4;

/// Bytes of the ranges of this process that are under way or wait for a sink, the only one of an object left out: many shards of many data
/// sets may be fetched at once.
const MAX_BYTES: usize = 128 << 20;
static BYTES: LazyLock<Budget> = LazyLock::new(|| Budget::new(MAX_BYTES));

/// Bytes that may be in memory. Clones share them.
#[derive(Clone, Debug)]
struct Budget {
    limit: usize,
    free: Arc<Semaphore>,
}

/// A range's place among those of its object, and the bytes that it takes of the budget.
type Places = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Budget {
    fn new(limit: usize) -> Self {
        Self { limit, free: Arc::new(Semaphore::new(limit)) }
    }

    /// Waits for so many bytes; a range that is larger than all takes all.
    async fn take(self, num_bytes: u64) -> Result<OwnedSemaphorePermit, AcquireError> {
        let num_bytes = usize::try_from(num_bytes).unwrap_or(self.limit).min(self.limit);
        self.free.acquire_many_owned(u32::try_from(num_bytes).unwrap_or(u32::MAX)).await
    }
}

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
    /// Hands the object to `sink` from its first byte to its last. At most four ranges are in memory; where all downloads of this process
    /// together have reached their limit, one.
    pub(super) fn run(self, sink: &mut dyn FnMut(&[u8]) -> Result<(), ShardError>) -> Result<(), ShardError> {
        self.run_within(&BYTES, sink)
    }

    fn run_within(
        self,
        budget: &Budget,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), ShardError>,
    ) -> Result<(), ShardError> {
        let Self { client, location, bytes, tag, part_bytes, runtime, fault: (scheme, path) } = self;
        let (own, budget) = (Arc::new(Semaphore::new(NUM_RANGES)), budget.clone());
        // Unbounded in number, bounded by places: a range is asked for only once the sink has taken an earlier one.
        let (sender, receiver) = mpsc::channel();
        // One after another, so that no range holds what an earlier one of its object waits for: the sink wants them in order.
        let placed = stream::iter(ranges(bytes, part_bytes as u64)).then(move |range| {
            let (own, budget) = (Arc::clone(&own), budget.clone());
            async move { (take_places(own, budget, range.end - range.start).await, range) }
        });
        let reads = placed.map(move |(places, range)| {
            let (client, location, tag) = (Arc::clone(&client), location.clone(), tag.clone());
            async move {
                let places = places.map_err(|_| stopped())?;
                // What comes short is asked for anew; a change of the object is not cured by that.
                let read = persist(|| read_range(Arc::clone(&client), location.clone(), range.clone(), tag.clone()));
                Ok((read.await?, places))
            }
        });
        let reading = runtime.spawn(async move {
            let mut reads = pin!(reads.buffered(NUM_RANGES));
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
            let read: object_store::Result<(Bytes, Places)> = receiver.recv().unwrap_or_else(|_| Err(stopped()));
            outcome = read.map_err(remote_fault(scheme, path.clone(), "read")).and_then(|(part, _places)| {
                taken += part.len() as u64;
                sink(&part)
            });
        }
        reading.abort();
        outcome
    }
}

/// Waits for the budget, or for the other ranges of the object to have left: a store that hangs with all of the budget slows others down,
/// and does not stop them.
async fn take_places(own: Arc<Semaphore>, budget: Budget, num_bytes: u64) -> Result<Places, AcquireError> {
    let place = Arc::clone(&own).acquire_owned().await?;
    let (bytes, alone) = (pin!(budget.take(num_bytes)), pin!(own.acquire_many(NUM_RANGES as u32 - 1)));
    match future::select(bytes, alone).await {
        Either::Left((bytes, _)) => Ok((place, Some(bytes?))),
        Either::Right((alone, _)) => alone.map(|_| (place, None)),
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
    use std::sync::Mutex;
    use std::sync::mpsc::{channel, sync_channel};
    use std::time::Duration;

    use vela_tests::s3::S3Server;

    use super::super::{RemoteOptions, RemoteStore};
    use super::*;

    const PART_BYTES: usize = 1000;

    /// `set/object` of so many bytes, and what reaches it.
    fn object(num_bytes: usize) -> (S3Server, RemoteStore, Vec<u8>) {
        let server = S3Server::start();
        let content: Vec<u8> = (0..num_bytes).map(|place| (place % 251) as u8).collect();
        server.put("set/object", content.clone());
        let cache = std::env::temp_dir();
        let options =
            RemoteOptions { settings: server.settings(), part_bytes: PART_BYTES, ..RemoteOptions::new(cache) };
        let store = RemoteStore::open(&server.url("set"), &options).expect("a store");
        (server, store, content)
    }

    fn download(store: &RemoteStore) -> Download {
        store.download("object", &store.head("object").expect("an answer").expect("the object"))
    }

    #[test]
    fn all_downloads_together_keep_to_one_limit_and_none_is_stopped_by_it() {
        const DOWNLOADS: usize = 8;
        let limit = Budget::new(5 * PART_BYTES);
        let (server, store, content) = object(10 * PART_BYTES - 1);
        let (began, beginnings) = channel();
        let (go, goes) = sync_channel::<()>(0);
        let goes = Mutex::new(goes);
        std::thread::scope(|scope| {
            // In here, so that a failed test leaves nobody waiting.
            let go = go;
            let downloads: Vec<_> = (0..DOWNLOADS)
                .map(|_| {
                    let (download, began, goes, limit) = (download(&store), began.clone(), &goes, &limit);
                    scope.spawn(move || {
                        let mut found = Vec::new();
                        let sink = &mut |bytes: &[u8]| {
                            if found.is_empty() {
                                began.send(()).expect("listened to");
                                // Ends when all may go on.
                                goes.lock().expect("no panic").recv().expect_err("nothing is sent");
                            }
                            found.extend_from_slice(bytes);
                            Ok(())
                        };
                        download.run_within(limit, sink).map(|()| found)
                    })
                })
                .collect();
            (0..DOWNLOADS).for_each(|_| beginnings.recv_timeout(Duration::from_secs(10)).expect("a first range each"));
            std::thread::sleep(Duration::from_millis(300));
            let asked = server.count_requests("GET", "object");
            assert!(asked > DOWNLOADS && asked <= DOWNLOADS + 5, "{asked} ranges in memory");
            drop(go);
            for download in downloads {
                assert!(download.join().expect("no panic").expect("a whole object") == content);
            }
        });
        assert_eq!(limit.free.available_permits(), 5 * PART_BYTES, "everything is given back");
    }

    #[test]
    fn a_range_larger_than_the_limit_takes_all_of_it_and_a_failed_download_gives_back() {
        let limit = Budget::new(PART_BYTES / 2);
        let (_server, store, content) = object(3 * PART_BYTES);
        let mut found = Vec::new();
        let whole = download(&store).run_within(&limit, &mut |bytes| {
            found.extend_from_slice(bytes);
            Ok(())
        });
        assert!(whole.is_ok() && found == content);
        let absent = Download { location: store.location("absent"), ..download(&store) };
        absent.run_within(&limit, &mut |_| Ok(())).expect_err("nothing there");
        for _ in 0..100 {
            if limit.free.available_permits() == PART_BYTES / 2 {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{:?}", limit.free);
    }

    #[test]
    fn ranges_cover_every_byte_once() {
        assert_eq!(ranges(10, 4).collect::<Vec<_>>(), [0..4, 4..8, 8..10]);
        assert_eq!(ranges(8, 4).collect::<Vec<_>>(), [0..4, 4..8]);
        assert_eq!(ranges(0, 4).count(), 0);
    }
}
