//! A prefix of a bucket as a store: S3 and whatever speaks its protocol, Google Cloud Storage, Azure Blob Storage.
//!
//! Callers are synchronous; requests run on a small runtime and their answers cross over by a channel, so that no caller
//! blocks a thread of another runtime. An object appears whole or not at all, and what is read of one object is read of
//! one version of it.

mod download;
mod options;
mod stage;
mod upload;

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use tokio::runtime::Handle;
use vela_types::Fingerprint;

use crate::ShardError;
use crate::cache::Cache;
use crate::manifest::FileEntry;
use crate::store::{Claim, FileStamp, Store, StoreFile};

use download::{Download, read_whole};
pub use options::RemoteOptions;
use options::Scheme;
pub use stage::stage_input;
use upload::RemoteFile;

/// Largest object that is read into memory; larger ones are mapped from a local copy.
const MAX_READ_BYTES: u64 = 256 << 20;
/// Small objects read at once.
const NUM_READS: usize = 16;
/// Tries of a request whose answer is cut off, and the time after which there is no further one.
const NUM_ANSWERS: u32 = 4;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Tries of a conditional put that was refused although nothing is there yet.
const NUM_CLAIMS: u32 = 4;

/// A prefix of a bucket.
#[derive(Clone, Debug)]
pub struct RemoteStore {
    /// Without a slash at its end.
    url: String,
    /// Scheme and bucket, with a slash at the end.
    bucket_url: String,
    prefix: Path,
    scheme: Scheme,
    client: Arc<dyn ObjectStore>,
    runtime: Handle,
    cache: Cache,
    part_bytes: usize,
}

impl RemoteStore {
    /// The store at `url`: `s3://`, `gs://` or `az://`, a bucket, and a prefix that may be empty. Nothing is asked of the
    /// server yet.
    pub fn open(url: &str, options: &RemoteOptions) -> Result<Self, ShardError> {
        let unsupported = || ShardError::UnsupportedUrl { url: without_secrets(url) };
        let (protocol, place) = url.split_once("://").ok_or_else(unsupported)?;
        let scheme = Scheme::parse(protocol).ok_or_else(unsupported)?;
        let place = place.trim_end_matches('/');
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() || bucket.contains(['@', ':', '?', '#']) || prefix.contains(['?', '#']) {
            return Err(unsupported());
        }
        let prefix = Path::parse(prefix).map_err(|_| unsupported())?;
        let url = url.trim_end_matches('/').to_owned();
        let client = scheme.connect(bucket, options).map_err(remote_fault(scheme, url.clone(), "open the store"))?;
        Ok(Self {
            url,
            bucket_url: format!("{protocol}://{bucket}/"),
            prefix,
            scheme,
            client,
            runtime: options.runtime()?,
            cache: Cache::new(options.cache.clone()),
            part_bytes: options.part_bytes.max(1),
        })
    }

    fn location(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    fn fault(&self, name: &str, action: &'static str) -> impl FnOnce(Error) -> ShardError {
        remote_fault(self.scheme, self.path(name), action)
    }

    /// Runs a request to its end.
    fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> object_store::Result<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.runtime.spawn(async move { sender.send(request.await) });
        receiver.recv().unwrap_or_else(|_| Err(stopped()))
    }

    fn head(&self, name: &str) -> Result<Option<ObjectMeta>, ShardError> {
        let (client, location) = (Arc::clone(&self.client), self.location(name));
        let found = self.run(async move { found_or_none(client.head(&location).await) });
        found.map_err(self.fault(name, "look at the object"))
    }

    /// Objects and sub-prefixes directly below the prefix, by their last component.
    fn entries(&self) -> Result<(BTreeMap<String, u64>, Vec<String>), ShardError> {
        let (client, prefix) = (Arc::clone(&self.client), self.prefix.clone());
        let listed = self.run(persist(move || {
            let (client, prefix) = (Arc::clone(&client), prefix.clone());
            async move { client.list_with_delimiter(Some(&prefix)).await }
        }));
        let listed = listed.map_err(self.fault("", "list"))?;
        let name = |path: &Path| path.filename().unwrap_or_default().to_owned();
        let objects = listed.objects.iter().filter(|object| object.location != self.prefix);
        let sizes = objects.map(|object| (name(&object.location), object.size)).collect();
        Ok((sizes, listed.common_prefixes.iter().map(name).collect()))
    }

    fn download(&self, name: &str, object: &ObjectMeta) -> Download {
        self.download_object(self.path(name), object)
    }

    fn download_object(&self, path: String, object: &ObjectMeta) -> Download {
        Download {
            client: Arc::clone(&self.client),
            location: object.location.clone(),
            bytes: object.size,
            tag: object.e_tag.clone(),
            part_bytes: self.part_bytes,
            runtime: self.runtime.clone(),
            fault: (self.scheme, path),
        }
    }

    /// The content that a conditional put of `content` found, if it is another; an error if there is none.
    fn settle(&self, name: &str, content: &[u8], refused: Error) -> Result<Claim, ShardError> {
        match self.read(name)? {
            Some(found) if found == content => Ok(Claim::Won),
            Some(found) => Ok(Claim::Lost(found)),
            None => Err(self.fault(name, "write")(refused)),
        }
    }
}

impl Store for RemoteStore {
    fn path(&self, name: &str) -> String {
        if name.is_empty() { self.url.clone() } else { format!("{}/{name}", self.url) }
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>, ShardError> {
        Ok(self.read_all(&[name.to_owned()])?.pop().flatten())
    }

    fn read_all(&self, names: &[String]) -> Result<Vec<Option<Bytes>>, ShardError> {
        let requests: Vec<_> = names.iter().map(|name| (self.path(name), self.location(name))).collect();
        let (client, scheme) = (Arc::clone(&self.client), self.scheme);
        let (sender, receiver) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let reads = requests.into_iter().map(|(path, location)| {
                let client = Arc::clone(&client);
                async move {
                    let read = persist(|| read_whole(Arc::clone(&client), location.clone())).await;
                    read.map_err(remote_fault(scheme, path, "read"))
                }
            });
            sender.send(stream::iter(reads).buffered(NUM_READS).try_collect::<Vec<_>>().await)
        });
        receiver.recv().unwrap_or_else(|_| Err(self.fault("", "read")(stopped())))
    }

    fn map(&self, file: &FileEntry) -> Result<Option<Bytes>, ShardError> {
        let path = self.path(&file.file);
        let fetch = |sink: &mut dyn FnMut(&[u8]) -> Result<(), ShardError>| {
            let object = self.head(&file.file)?.ok_or_else(|| ShardError::MissingFile { path: path.clone() })?;
            match object.size == file.bytes {
                true => self.download(&file.file, &object).run(sink),
                false => Err(ShardError::DamagedFile {
                    path: path.clone(),
                    what: "size in bytes",
                    expected: file.bytes.to_string(),
                    found: object.size.to_string(),
                }),
            }
        };
        match self.cache.open(&path, file, &fetch) {
            Err(ShardError::MissingFile { .. }) => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn maps_copies(&self) -> bool {
        true
    }

    fn copies_limit(&self) -> Option<u64> {
        Some(self.cache.limit_bytes())
    }

    fn drop_copy(&self, file: &FileEntry) -> Result<bool, ShardError> {
        self.cache.remove(file)
    }

    fn stamp(&self, name: &str) -> Result<Option<FileStamp>, ShardError> {
        Ok(self.head(name)?.map(|object| FileStamp { bytes: object.size, tag: object.e_tag }))
    }

    fn hash(&self, name: &str) -> Result<Option<Fingerprint>, ShardError> {
        let Some(object) = self.head(name)? else { return Ok(None) };
        let mut hasher = blake3::Hasher::new();
        self.download(name, &object).run(&mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(Some(Fingerprint(*hasher.finalize().as_bytes())))
    }

    fn list(&self) -> Result<Vec<String>, ShardError> {
        let (sizes, prefixes) = self.entries()?;
        let mut names: Vec<String> = sizes.into_keys().chain(prefixes).collect();
        names.sort();
        Ok(names)
    }

    fn sizes(&self) -> Result<BTreeMap<String, u64>, ShardError> {
        Ok(self.entries()?.0)
    }

    fn create(&self, name: &str) -> Result<Box<dyn StoreFile>, ShardError> {
        Ok(Box::new(RemoteFile::new(self.clone(), name)))
    }

    fn create_new(&self, name: &str, content: &[u8]) -> Result<Claim, ShardError> {
        let mut claims = 0;
        loop {
            let (client, location) = (Arc::clone(&self.client), self.location(name));
            let payload = PutPayload::from(content.to_vec());
            let put = self.run(async move { client.put_opts(&location, payload, PutMode::Create.into()).await });
            let Err(refused) = put else { return Ok(Claim::Won) };
            // The answer to a put that was carried out may have been lost, or another's put may still be on its way: what
            // stands there decides.
            claims += 1;
            let is_unsettled = matches!(refused, Error::AlreadyExists { .. } | Error::Generic { .. });
            match self.settle(name, content, refused) {
                Err(_) if is_unsettled && claims < NUM_CLAIMS => {
                    std::thread::sleep(Duration::from_millis(100 << claims))
                }
                settled => return settled,
            }
        }
    }

    fn remove(&self, name: &str) -> Result<(), ShardError> {
        let (client, location) = (Arc::clone(&self.client), self.location(name));
        let removed = self.run(async move { found_or_none(client.delete(&location).await) });
        removed.map(|_| ()).map_err(self.fault(name, "remove"))
    }
}

fn found_or_none<T>(result: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match result {
        Err(Error::NotFound { .. }) => Ok(None),
        result => result.map(Some),
    }
}

/// Asks again when an answer is cut off where object_store does not: a listing, a refusal. What it has tried for long by
/// itself is not tried again.
async fn persist<T, F>(request: impl Fn() -> F) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    let started = Instant::now();
    for tries in 1..NUM_ANSWERS {
        match request().await {
            Err(fault @ Error::Generic { .. }) if started.elapsed() < ANSWER_TIMEOUT => {
                tracing::warn!(%fault, tries, "a remote store's answer was of no use; asking again");
                tokio::time::sleep(Duration::from_millis(50 << tries)).await;
            }
            answer => return answer,
        }
    }
    request().await
}

/// The runtime that was handed in has ended.
fn stopped() -> Error {
    Error::Generic { store: "remote", source: "the threads that wait for the network have been stopped".into() }
}

fn remote_fault(scheme: Scheme, path: String, action: &'static str) -> impl FnOnce(Error) -> ShardError {
    move |fault| ShardError::Remote { path, action, remedy: scheme.remedy(&fault), source: Box::new(fault) }
}

/// A url as messages may show it: what stands before an `@` or behind a `?` may be secret.
fn without_secrets(url: &str) -> String {
    let shown = url.split(['?', '#']).next().unwrap_or_default();
    match (shown.split_once("://"), shown.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://...@{place}"),
        _ => shown.to_owned(),
    }
}
