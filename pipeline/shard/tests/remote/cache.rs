//! Local copies: verified, shared, bounded.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use vela_shard::{Manifest, RemoteStore, ShardEntry, ShardError, ShardReader, Store};
use vela_tests::s3::S3Server;

use crate::fixture::{read_all, records, settings, write_set_into};
use crate::{options, read_set, remote};

/// A set of three shards, and the entry of its first.
fn set(server: &S3Server) -> (Manifest, ShardEntry) {
    let (store, _cache) = remote(server, "set");
    let manifest = write_set_into(store, &settings(), &records(11), 4);
    server.take_requests();
    let entry = manifest.shards[0].clone();
    (manifest, entry)
}

fn copies(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache).expect("the cache").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with("lock-"));
    names.sort();
    names
}

#[test]
fn a_copy_is_made_once_whoever_asks_and_serves_later_processes() {
    let server = S3Server::start();
    let (_, entry) = set(&server);
    let cache = tempfile::tempdir().expect("a folder");
    let open = || {
        let store = RemoteStore::open(&server.url("set"), &options(&server, cache.path())).expect("a store");
        read_all(&ShardReader::open(&store, &entry).expect("a good shard")).expect("good rows")
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
        readers.into_iter().for_each(|reader| assert_eq!(reader.join().expect("no panic"), records(4)));
    });
    let ranges = entry.bytes.div_ceil(crate::PART_BYTES as u64) as usize;
    assert_eq!(server.count_requests("GET", "shard-00000"), ranges);
    assert_eq!(copies(cache.path()), [entry.checksum.to_string()]);
    server.take_requests();
    assert_eq!(open(), records(4));
    assert_eq!(server.take_requests(), Vec::<String>::new(), "the copy is enough");
}

#[test]
fn an_object_with_another_content_is_refused_by_name() {
    let server = S3Server::start();
    let (_, entry) = set(&server);
    let (store, cache) = remote(&server, "set");
    let good = server.objects("set/")[&entry.file].clone();
    for at in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        server.put("set/shard-00000.parquet", bad);
        let fault = ShardReader::open(store.as_ref(), &entry).expect_err("another content");
        assert!(fault.is_damage(), "{fault}");
        assert!(
            fault.to_string().contains("s3://bucket/set/shard-00000.parquet") && fault.to_string().contains("checksum")
        );
    }
    server.put("set/shard-00000.parquet", &good[1..]);
    let fault = ShardReader::open(store.as_ref(), &entry).expect_err("cut").to_string();
    assert!(fault.contains("size in bytes"), "{fault}");
    server.remove("set/shard-00000.parquet");
    assert!(matches!(ShardReader::open(store.as_ref(), &entry), Err(ShardError::MissingFile { .. })));
    assert_eq!(copies(cache.path()), Vec::<String>::new(), "nothing wrong is kept");
    server.put("set/shard-00000.parquet", good);
    assert_eq!(read_set(store.as_ref()).expect("whole again"), records(11));
}

#[test]
fn a_damaged_copy_is_fetched_again() {
    let server = S3Server::start();
    let (manifest, entry) = set(&server);
    let (store, cache) = remote(&server, "set");
    read_set(store.as_ref()).expect("a good set");
    let copy = |checksum: &vela_types::Fingerprint| cache.path().join(checksum.to_string());
    let shorten = |path: &Path| {
        let content = fs::read(path).expect("a copy");
        fs::write(path, &content[..content.len() - 1]).expect("a shorter copy");
    };
    let flip = |path: &Path| {
        let mut content = fs::read(path).expect("a copy");
        let last = content.len() - 20;
        content[last] ^= 1;
        fs::write(path, content).expect("a damaged copy");
    };
    shorten(&copy(&manifest.shards[1].checksum));
    flip(&copy(&entry.checksum));
    flip(&copy(&manifest.lengths_sums.checksum));
    // Left by a process that was killed.
    fs::remove_file(copy(&manifest.shards[2].checksum)).expect("a copy");
    fs::write(cache.path().join(format!("{}.partial", manifest.shards[2].checksum)), "half").expect("litter");
    assert_eq!(read_set(store.as_ref()).expect("fetched again"), records(11));
    assert_eq!(copies(cache.path()).len(), 5);
}

#[test]
fn the_cache_keeps_its_bound_and_what_is_in_use() {
    let server = S3Server::start();
    let (manifest, _) = set(&server);
    let cache = tempfile::tempdir().expect("a folder");
    let [first, second, third] = [0, 1, 2].map(|shard| &manifest.shards[shard]);
    let mut tight = options(&server, cache.path());
    tight.cache.limit_bytes = first.bytes.max(third.bytes) + second.bytes;
    let store: Arc<dyn Store> = Arc::new(RemoteStore::open(&server.url("set"), &tight).expect("a store"));
    let open = |entry: &ShardEntry| ShardReader::open(store.as_ref(), entry);
    let one = open(first).expect("room for one");
    let two = open(second).expect("room for two");
    let fault = open(third).expect_err("no room for three");
    assert!(matches!(fault, ShardError::CacheFull { .. }) && fault.to_string().contains("VELA_CACHE_BYTES"), "{fault}");
    drop(one);
    let three = open(third).expect("room again");
    let mut kept = [second, third].map(|entry| entry.checksum.to_string());
    kept.sort();
    assert_eq!(copies(cache.path()), kept);
    assert_eq!((read_all(&two).expect("rows").len(), read_all(&three).expect("rows").len()), (4, 3));
    let held: u64 = [second, third].iter().map(|entry| entry.bytes).sum();
    assert!(held <= tight.cache.limit_bytes);
}

#[test]
fn making_room_removes_copies_and_nothing_else() {
    let server = S3Server::start();
    let (manifest, _) = set(&server);
    let cache = tempfile::tempdir().expect("a folder");
    let foreign =
        ["shard-00000.parquet", "notes.txt", "0123abcd", "0123abcd.partial"].map(|name| cache.path().join(name));
    foreign.iter().for_each(|path| fs::write(path, [7; 5000]).expect("a file"));
    let mut tight = options(&server, cache.path());
    tight.cache.limit_bytes = manifest.shards.iter().map(|shard| shard.bytes).max().expect("shards");
    let store = RemoteStore::open(&server.url("set"), &tight).expect("a store");
    for entry in &manifest.shards {
        ShardReader::open(&store, entry).expect("room for one");
    }
    assert!(foreign.iter().all(|path| fs::read(path).expect("left alone") == [7; 5000]));
    assert_eq!(copies(cache.path()).len(), foreign.len() + 1);
}
