//! Shard sets in an object store, over a server that fails on demand.

#[path = "../fixture/mod.rs"]
mod fixture;

mod cache;
mod commit;
mod faults;
mod stage;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fixture::{read_all, records, settings, write_set, write_set_into};
use vela_shard::{Claim, Manifest, RemoteOptions, RemoteStore, ShardError, ShardReader, Store};
use vela_tests::s3::S3Server;

/// Small enough that the shards of the fixture take several parts.
const PART_BYTES: usize = 1000;

/// Options that reach `server` and give up within seconds.
pub(crate) fn options(server: &S3Server, cache: &Path) -> RemoteOptions {
    RemoteOptions {
        settings: server.settings(),
        max_retries: 4,
        retry_timeout: Duration::from_secs(10),
        part_bytes: PART_BYTES,
        ..RemoteOptions::new(cache.to_owned())
    }
}

/// The store of `prefix`, with a cache that goes away.
pub(crate) fn remote(server: &S3Server, prefix: &str) -> (Arc<dyn Store>, tempfile::TempDir) {
    let cache = tempfile::tempdir().expect("a folder");
    let store = RemoteStore::open(&server.url(prefix), &options(server, cache.path())).expect("a store");
    (Arc::new(store), cache)
}

/// Every record of a set, in order.
pub(crate) fn read_set(store: &dyn Store) -> Result<Vec<vela_types::Record>, ShardError> {
    let manifest = Manifest::load(store)?;
    let lengths = manifest.open_lengths(store)?;
    assert_eq!(lengths.len(), manifest.totals.rows);
    let mut read = Vec::new();
    for entry in &manifest.shards {
        read.extend(read_all(&ShardReader::open(store, entry)?)?);
    }
    Ok(read)
}

#[test]
fn a_set_in_a_bucket_has_the_bytes_of_a_local_one_and_reads_the_same() {
    let (server, folder) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    // Listings come in pages, and another prefix that starts the same is none of ours.
    server.set_page_keys(2);
    server.put("sets/one-more/manifest.json", "another set");
    let (store, _cache) = remote(&server, "sets/one");
    let local = write_set(folder.path(), &settings(), &records(11), 4);
    assert_eq!(write_set_into(Arc::clone(&store), &settings(), &records(11), 4), local);
    let names = fixture::store(folder.path()).list().expect("a listing");
    assert_eq!(store.list().expect("a listing"), names);
    let objects = server.objects("sets/one/");
    for name in &names {
        assert!(objects[name] == std::fs::read(folder.path().join(name)).expect("a file"), "{name}");
    }
    assert_eq!(read_set(store.as_ref()).expect("a good set"), records(11));
    assert_eq!(server.num_unfinished_uploads(), 0);
    assert!(server.count_requests("PUT", "partNumber") > 0, "the shards were to take several parts");
}

#[test]
fn a_file_is_written_whole_whatever_its_size_is_to_a_part() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "");
    for size in [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 7 * PART_BYTES, 9 * PART_BYTES + 13] {
        let content: Vec<u8> = (0..size).map(|at| (at * 7) as u8).collect();
        let mut file = store.create("file").expect("a file");
        content.chunks(333).for_each(|some| file.write_all(some).expect("written"));
        file.publish().expect("published");
        assert!(server.objects("")["file"] == content, "{size} bytes");
        assert_eq!(store.read("file").expect("read").as_deref(), Some(&content[..]));
        let hash = store.hash("file").expect("read").expect("there").0;
        assert_eq!(hash, *blake3::hash(&content).as_bytes(), "{size} bytes");
        assert_eq!(store.stamp("file").expect("there").map(|stamp| stamp.bytes), Some(size as u64));
    }
    store.remove("file").expect("removed");
    store.remove("file").expect("no error if there is none");
    assert_eq!(store.read("file").expect("no error"), None);
    assert_eq!(store.hash("file").expect("no error"), None);
}

#[test]
fn what_is_not_published_leaves_nothing() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "set");
    let mut file = store.create("shard").expect("a file");
    file.write_all(&vec![7; 6 * PART_BYTES]).expect("written");
    drop(file);
    assert!(server.count_requests("PUT", "partNumber") > 0);
    assert_eq!((server.num_unfinished_uploads(), server.objects("").len()), (0, 0));
}

#[test]
fn a_store_may_be_used_from_any_thread_of_any_runtime() {
    let server = S3Server::start();
    server.put("set/file", "content");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cache = tempfile::tempdir().expect("a folder");
    let options = RemoteOptions { runtime: Some(runtime.handle().clone()), ..options(&server, cache.path()) };
    let store = RemoteStore::open(&server.url("set"), &options).expect("a store");
    let read = runtime.block_on(async { store.read("file") });
    assert_eq!(read.expect("read").as_deref(), Some(&b"content"[..]));
    drop(runtime);
    let fault = store.read("file").expect_err("its runtime has ended").to_string();
    assert!(fault.contains("set") && fault.contains("cannot read"), "{fault}");
}

#[test]
fn a_google_bucket_holds_a_set_as_well() {
    let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    let options = RemoteOptions { settings: server.google_settings(), ..options(&server, cache.path()) };
    let store: Arc<dyn Store> = Arc::new(RemoteStore::open("gs://bucket/set", &options).expect("a store"));
    write_set_into(Arc::clone(&store), &settings(), &records(9), 4);
    assert_eq!(read_set(store.as_ref()).expect("a good set"), records(9));
    assert_eq!(store.create_new("claim", b"one").expect("a claim"), Claim::Won);
    assert_eq!(store.create_new("claim", b"two").expect("a claim"), Claim::Lost("one".into()));
    assert_eq!(server.num_unfinished_uploads(), 0);
}
