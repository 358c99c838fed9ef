//! A remote set that is larger than the cache.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::path::Path;
use std::sync::Arc;

use fixture::{records, settings, write_set, write_set_into};
use vela_dataset::{Dataset, Partition};
use vela_shard::{RemoteOptions, RemoteStore};
use vela_tests::s3::S3Server;
use vela_types::{Batch, BatchSpec, Position};

const NUM_RECORDS: u64 = 40;

/// Steps of three records out of one shard after another.
const SPEC: BatchSpec = BatchSpec {
    global_batch: 3,
    micro_batch: 3,
    seed: 2,
    shuffle: true,
    image_tokens: 2,
    max_length: 64,
    shuffle_window: 1,
    packing: None,
};

fn remote(server: &S3Server, cache: &Path, limit_bytes: u64) -> RemoteStore {
    let mut options = RemoteOptions { settings: server.settings(), ..RemoteOptions::new(cache.to_owned()) };
    options.cache.limit_bytes = limit_bytes;
    RemoteStore::open(&server.url("set"), &options).expect("a store")
}

fn epochs(dataset: &Dataset) -> Result<Vec<Batch>, vela_dataset::DatasetError> {
    let steps = dataset.plan(&SPEC, Partition::WHOLE).expect("a good spec").steps_per_epoch();
    let positions = (0..2 * steps).map(|step| Position { epoch: step / steps, step: step % steps, micro: 0 });
    positions.map(|position| dataset.batch(&SPEC, Partition::WHOLE, position)).collect()
}

#[test]
fn a_shuffle_window_reads_a_set_through_a_cache_that_holds_a_few_shards() {
    let (server, folder) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    let [writing, reading] = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
    let manifest = write_set(folder.path(), &settings(), &records(NUM_RECORDS), 4);
    write_set_into(Arc::new(remote(&server, writing.path(), u64::MAX)), &settings(), &records(NUM_RECORDS), 4);
    let local = Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a set");
    let largest = manifest.shards.iter().map(|shard| shard.bytes).max().expect("shards");
    let room = 3 * largest + manifest.lengths.bytes;
    assert!(room * 2 < manifest.totals.bytes, "much smaller than the set");
    let dataset = Dataset::open_in("the set", Arc::new(remote(&server, reading.path(), room))).expect("a set");
    assert!(epochs(&dataset).expect("room for the shards of a step") == epochs(&local).expect("batches"));
    let held: u64 = std::fs::read_dir(reading.path())
        .expect("the cache")
        .map(|file| file.and_then(|file| file.metadata()).expect("a file").len())
        .sum();
    assert!(held <= room, "{held} of {room} bytes");
    // Too little for the shards of one step: an error that names the remedy, and no hang.
    let tight = tempfile::tempdir().expect("a folder");
    let tight = remote(&server, tight.path(), largest / 2 + manifest.lengths.bytes);
    let fault = epochs(&Dataset::open_in("the set", Arc::new(tight)).expect("a set")).expect_err("no room").to_string();
    assert!(fault.contains("VELA_CACHE_BYTES"), "{fault}");
}
