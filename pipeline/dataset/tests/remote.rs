//! Sets in an object store, read through a cache that is too small or whose copies rot.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixture::{records, remote_store, settings, write_set, write_set_into};
use vela_dataset::{DamagePolicy, Dataset, LocalSource, Partition, Share};
use vela_shard::RemoteStore;
use vela_tests::s3::{Fault, S3Server};
use vela_types::{Batch, BatchSource, BatchSpec, PackingSpec, Position};

const NUM_RECORDS: u64 = 40;
const ROWS_PER_SHARD: usize = 4;
const SPEC: BatchSpec = BatchSpec { global_batch: 8, micro_batch: 8, seed: 3, shuffle: true, ..fixture::ONE_BY_ONE };

/// The same set in a folder and in a bucket.
struct Sets {
    server: S3Server,
    folder: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Sets {
    fn new() -> Self {
        let new = || tempfile::tempdir().expect("a folder");
        let sets = Self { server: S3Server::start(), folder: new(), cache: new() };
        write_set(sets.folder.path(), &settings(), &records(NUM_RECORDS), ROWS_PER_SHARD);
        write_set_into(Arc::new(sets.store(u64::MAX)), &settings(), &records(NUM_RECORDS), ROWS_PER_SHARD);
        sets
    }

    fn store(&self, limit_bytes: u64) -> RemoteStore {
        remote_store(&self.server, "set", self.cache.path(), limit_bytes)
    }

    fn remote(&self, limit_bytes: u64) -> Dataset {
        Dataset::open_in("s3://bucket/set", Arc::new(self.store(limit_bytes))).expect("a good set")
    }

    fn local(&self) -> Dataset {
        Dataset::open(self.folder.path().to_str().expect("a UTF-8 path")).expect("a good set")
    }

    /// Bytes of the largest shard.
    fn shard_bytes(&self) -> u64 {
        files(self.folder.path())
            .into_iter()
            .filter(|(path, _)| path.ends_with(".parquet"))
            .map(|(_, bytes)| bytes)
            .max()
            .expect("shards")
    }
}

fn files(folder: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries.map(|entry| (entry.path().display().to_string(), entry.metadata().expect("a size").len())).collect()
}

fn epochs(dataset: Dataset, spec: &BatchSpec, num_epochs: u64) -> Result<Vec<Batch>, String> {
    let source = LocalSource::new(Arc::new(dataset), spec.clone(), Partition::WHOLE, 1 << 20);
    let mut source = source.expect("a source");
    let steps = source.steps_per_epoch() * num_epochs;
    (0..steps).map(|_| source.next_batch().map_err(|fault| fault.to_string())).collect()
}

#[test]
fn a_cache_much_smaller_than_the_set_serves_whole_epochs() {
    let windowed = BatchSpec { shuffle_window: 1, ..SPEC };
    for spec in [SPEC, windowed] {
        let sets = Sets::new();
        let small = sets.shard_bytes() * 5 / 2;
        assert!(
            epochs(sets.remote(small), &spec, 2).expect("batches") == epochs(sets.local(), &spec, 2).expect("batches")
        );
        let held: u64 = files(sets.cache.path()).iter().map(|(_, bytes)| bytes).sum();
        assert!(held <= small, "{held} of {small} bytes");
    }
}

#[test]
fn a_cache_that_can_hold_no_shard_is_told_at_once_with_the_remedy() {
    let sets = Sets::new();
    let started = Instant::now();
    let fault = epochs(sets.remote(sets.shard_bytes() / 2), &SPEC, 1).expect_err("no room");
    assert!(fault.contains("VELA_CACHE_BYTES"), "{fault}");
    assert!(started.elapsed() < Duration::from_secs(4), "nobody can make room, so nobody is waited for");
}

#[test]
fn a_copy_that_rots_is_fetched_again_whatever_the_policy() {
    for policy in [DamagePolicy::Fail, DamagePolicy::Mask, DamagePolicy::Budget(0)] {
        let sets = Sets::new();
        assert_eq!(epochs(sets.remote(u64::MAX), &SPEC, 1).expect("batches").len(), 5);
        // The middle of a shard is pixels; every copy has lost a bit there.
        for (path, bytes) in files(sets.cache.path()) {
            if bytes + 200 > sets.shard_bytes() {
                let mut content = fs::read(&path).expect("a copy");
                let middle = content.len() / 2;
                content[middle] ^= 1;
                fs::write(&path, content).expect("a copy");
            }
        }
        sets.server.take_requests();
        let dataset = Arc::new(sets.remote(u64::MAX).with_damage_policy(policy));
        let local = Arc::new(sets.local());
        let share =
            |dataset: &Arc<Dataset>| Share::new(Arc::clone(dataset), SPEC, Partition::WHOLE).expect("a good spec");
        let (there, here) = (share(&dataset), share(&local));
        for step in 0..here.plan().steps_per_epoch() {
            let position = Position { epoch: 0, step, micro: 0 };
            assert_eq!(there.batch(position).expect("a batch"), here.batch(position).expect("a batch"), "{policy:?}");
        }
        assert_eq!(dataset.num_damaged(), 0, "{policy:?}");
        let fetched = sets.server.count_requests("GET", ".parquet");
        assert!(fetched > 0 && fetched <= 10, "{fetched} of ten shards were fetched again");
    }
}

#[test]
fn an_object_that_is_damaged_is_not_fetched_for_every_record_of_it() {
    for policy in [DamagePolicy::Fail, DamagePolicy::Mask] {
        let sets = Sets::new();
        let mut content = sets.server.objects("set/")["shard-00003.parquet"].clone();
        content[60] ^= 1;
        sets.server.put("set/shard-00003.parquet", content);
        let dataset = Arc::new(sets.remote(u64::MAX).with_damage_policy(policy));
        let share = Share::new(Arc::clone(&dataset), SPEC, Partition::WHOLE).expect("a good spec");
        sets.server.take_requests();
        for epoch in 0..3 {
            for step in 0..share.plan().steps_per_epoch() {
                let position = Position { epoch, step, micro: 0 };
                share.open_shards(position).expect("damage is the batch's");
                let made = share.batch(position);
                assert!(made.is_ok() || policy == DamagePolicy::Fail, "{made:?}");
            }
        }
        assert_eq!(dataset.num_damaged(), if policy == DamagePolicy::Fail { 0 } else { ROWS_PER_SHARD as u64 });
        let fetched = sets.server.count_requests("GET", "shard-00003");
        assert!((1..=2).contains(&fetched), "fetched {fetched} times under {policy:?}: twice is to be sure");
    }
}

#[test]
fn scattered_batches_are_the_batches() {
    let sets = Sets::new();
    let packed = BatchSpec { packing: Some(PackingSpec { max_images: 4, window: 16 }), ..SPEC };
    for spec in [SPEC, packed] {
        for dataset in [sets.local(), sets.remote(u64::MAX)] {
            let share = Share::new(Arc::new(dataset), spec.clone(), Partition::WHOLE).expect("a good spec");
            for step in 0..share.plan().steps_per_epoch() {
                let position = Position { epoch: 1, step, micro: 0 };
                let (scattered, whole) = (share.scattered_batch(position), share.batch(position).expect("a batch"));
                let scattered = scattered.expect("a batch");
                assert_eq!(scattered.num_bytes(), whole.num_bytes());
                assert_eq!(scattered.pixel_pieces.len(), 1, "images are small");
                assert_eq!(scattered.gather().expect("its own pieces"), whole);
            }
        }
    }
}

#[test]
fn a_cache_that_holds_a_window_fetches_each_shard_once_an_epoch() {
    let sets = Sets::new();
    let dataset = sets.remote(sets.shard_bytes() * 7 / 2);
    let windowed = BatchSpec { shuffle_window: 1, ..SPEC };
    sets.server.take_requests();
    epochs(dataset, &windowed, 2).expect("batches");
    let fetched = sets.server.count_requests("GET", ".parquet");
    assert!((10..=22).contains(&fetched), "ten shards, two epochs, fetched {fetched} times");
}

#[test]
fn shards_are_opened_before_their_batch_and_only_once() {
    let sets = Sets::new();
    let share = Share::new(Arc::new(sets.remote(u64::MAX)), SPEC, Partition::WHOLE).expect("a good spec");
    let position = Position { epoch: 0, step: 1, micro: 0 };
    sets.server.take_requests();
    share.open_shards(position).expect("fetched");
    assert!(sets.server.count_requests("GET", ".parquet") > 0);
    sets.server.take_requests();
    share.open_shards(position).expect("open");
    share.batch(position).expect("a batch");
    assert_eq!(sets.server.count_requests("GET", ".parquet"), 0);
}

/// Takes a batch and waits until no more is fetched; the shards that were.
fn fetched_after_one(sets: &Sets, source: &mut LocalSource) -> usize {
    source.next_batch().expect("a batch");
    let mut last = usize::MAX;
    loop {
        let fetched = sets.server.count_requests("GET", ".parquet");
        if fetched == last {
            return fetched;
        }
        last = fetched;
        std::thread::sleep(Duration::from_millis(400));
    }
}

#[test]
fn shards_of_coming_batches_are_fetched_ahead_in_a_part_of_the_cache() {
    // Batches of one shard each, in order, and no room for a second one made ahead.
    let spec = BatchSpec { global_batch: 4, micro_batch: 4, shuffle: false, ..SPEC };
    for (cache_shards, at_most) in [(2, 2), (12, 2 + 3)] {
        let sets = Sets::new();
        let dataset = Arc::new(sets.remote(cache_shards * sets.shard_bytes()));
        sets.server.take_requests();
        let mut source = LocalSource::new(dataset, spec.clone(), Partition::WHOLE, 1).expect("a source");
        let fetched = fetched_after_one(&sets, &mut source);
        // The batch taken, and the one that the source has ready; of a large cache a quarter ahead of that.
        assert!(fetched <= at_most + 1, "{fetched} with room for {cache_shards}");
        assert!(fetched > 3 || cache_shards == 2, "{fetched} with room for {cache_shards}");
        for _ in 1..NUM_RECORDS / 4 {
            source.next_batch().expect("a batch");
        }
        let all = sets.server.count_requests("GET", ".parquet");
        assert!((10..=15).contains(&all), "{all}: ten shards, and those of the next epoch that are not in the cache");
    }
}

#[test]
fn a_stream_waits_less_for_a_slow_store_that_it_looks_ahead_in() {
    let spec = BatchSpec { global_batch: 4, micro_batch: 4, shuffle: false, ..SPEC };
    let waited = |cache_shards: u64| {
        let sets = Sets::new();
        let dataset = Arc::new(sets.remote(cache_shards * sets.shard_bytes()));
        sets.server.strike("GET", ".parquet", Fault::Delay(Duration::from_millis(200)), usize::MAX);
        let mut source = LocalSource::new(dataset, spec.clone(), Partition::WHOLE, 1).expect("a source");
        source.next_batch().expect("a batch");
        let mut waited = Duration::ZERO;
        for _ in 1..NUM_RECORDS / 4 {
            // A step that takes less than a shard.
            std::thread::sleep(Duration::from_millis(60));
            let started = Instant::now();
            source.next_batch().expect("a batch");
            waited += started.elapsed();
        }
        waited
    };
    let (without, with) = (waited(3), waited(20));
    assert!(2 * with < without, "{with:?} with, {without:?} without");
}
