//! Shards that are gone or damaged for a while, and are put right while the set is open.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use fixture::{record, records, remote_store, settings, write_set, write_set_into};
use vela_dataset::{DamagePolicy, Dataset, DatasetError, Partition, Share};
use vela_shard::ShardSettings;
use vela_tests::s3::{Fault, S3Server};
use vela_tests::told;
use vela_types::{Batch, BatchSpec, ImageShape, PackingSpec, Position, Record};

const NUM_RECORDS: u64 = 12;
/// Of three shards.
const SHARD_ROWS: usize = 4;
/// A record of the second shard.
const INDEX: u64 = 5;
const KEY: &str = "set/shard-00001.parquet";
/// How long a damaged shard is left alone here.
const REST: Duration = Duration::from_millis(150);

const POLICIES: [DamagePolicy; 3] = [DamagePolicy::Fail, DamagePolicy::Mask, DamagePolicy::Budget(1)];

fn batch(dataset: &Dataset, index: u64) -> Result<Batch, DatasetError> {
    dataset.batch(&fixture::ONE_BY_ONE, Partition::WHOLE, Position { epoch: 0, step: index, micro: 0 })
}

struct Remote {
    server: S3Server,
    cache: tempfile::TempDir,
}

impl Remote {
    fn new() -> Self {
        let remote = Self { server: S3Server::start(), cache: tempfile::tempdir().expect("a folder") };
        write_set_into(Arc::new(remote.store()), &settings(), &records(NUM_RECORDS), SHARD_ROWS);
        remote
    }

    fn store(&self) -> vela_shard::RemoteStore {
        remote_store(&self.server, "set", self.cache.path(), u64::MAX)
    }

    fn open(&self, policy: DamagePolicy) -> Dataset {
        let dataset = Dataset::open_in("the set", Arc::new(self.store())).expect("a set");
        dataset.with_damage_policy(policy).with_damage_rest(REST)
    }

    fn shard(&self) -> Vec<u8> {
        self.server.objects("set/")["shard-00001.parquet"].clone()
    }
}

#[test]
fn one_wrong_answer_of_a_store_costs_no_record() {
    for policy in POLICIES {
        let remote = Remote::new();
        let dataset = remote.open(policy);
        remote.server.strike("HEAD", "shard-00001", Fault::Status(404), 1);
        let found = batch(&dataset, INDEX).expect("asked again");
        assert!(found.samples[0].valid, "{policy:?}");
        assert_eq!((found.samples[0].id.as_str(), dataset.num_damaged()), (record(INDEX).id.as_str(), 0));
    }
}

#[test]
fn a_shard_that_is_gone_fails_under_every_policy_until_it_is_back() {
    for policy in POLICIES {
        let remote = Remote::new();
        let dataset = remote.open(policy);
        let content = remote.shard();
        for wrong in [None, Some(&content[1..])] {
            remote.server.remove(KEY);
            wrong.into_iter().for_each(|wrong| remote.server.put(KEY, wrong));
            let fault = batch(&dataset, INDEX).expect_err("it is not there as it was");
            assert!(fault.may_pass() && !fault.is_damage(), "{}", told(&fault));
            let told = told(&fault);
            assert!(told.contains("since the set was opened") && told.contains("shard-00001.parquet"), "{told}");
        }
        remote.server.put(KEY, content);
        assert!(batch(&dataset, INDEX).expect("it is back").samples[0].valid, "{policy:?}");
        assert_eq!(dataset.num_damaged(), 0);
    }
}

#[test]
fn an_object_that_was_put_right_is_fetched_again_after_a_rest() {
    let remote = Remote::new();
    let dataset = remote.open(DamagePolicy::Fail);
    let good = remote.shard();
    let mut wrong = good.clone();
    wrong[2] ^= 1;
    remote.server.put(KEY, wrong);
    assert!(batch(&dataset, INDEX).expect_err("a wrong byte").is_damage());
    remote.server.put(KEY, good);
    remote.server.take_requests();
    assert!(matches!(batch(&dataset, INDEX), Err(DatasetError::StillDamaged(_))));
    assert_eq!(remote.server.count_requests("GET", "shard-00001"), 0, "left alone");
    std::thread::sleep(REST);
    assert_eq!(batch(&dataset, INDEX).expect("whole").samples[0].id, record(INDEX).id);
    assert_eq!(batch(&dataset, INDEX + 1).expect("its neighbour").samples[0].id, record(INDEX + 1).id);
}

#[test]
fn a_local_file_that_was_put_in_place_again_is_opened_again_after_a_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(NUM_RECORDS), SHARD_ROWS);
    let path = folder.path().join("shard-00001.parquet");
    let good = fs::read(&path).expect("a shard");
    let dataset = Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a set").with_damage_rest(REST);
    let pixels = &record(INDEX).images[0].data;
    let at = good.windows(pixels.len()).position(|window| window == &pixels[..]).expect("stored pixels");
    let replace = |content: &[u8]| {
        fs::write(folder.path().join("aside"), content).expect("written");
        fs::rename(folder.path().join("aside"), &path).expect("renamed");
    };
    let mut wrong = good.clone();
    wrong[at] ^= 1;
    replace(&wrong);
    assert!(batch(&dataset, INDEX).expect_err("a wrong pixel").is_damage());
    replace(&good);
    assert!(batch(&dataset, INDEX).expect_err("opened anew a moment ago").is_damage());
    std::thread::sleep(REST);
    let found = batch(&dataset, INDEX).expect("put right");
    assert_eq!(&found.pixels.data()[..pixels.len()], &pixels[..]);
}

#[test]
fn images_worth_a_piece_are_sent_from_the_file_and_small_ones_together() {
    let large = ImageShape { channels: 3, height: 160, width: 160 };
    for (shape, is_scattered) in [(large, true), (fixture::SHAPE, false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = ShardSettings { row_group_bytes: 1 << 20, ..ShardSettings::new(fixture::processor(shape)) };
        let records: Vec<Record> = (0..6)
            .map(|number| {
                let images = record(number).images.len() as u64;
                Record {
                    images: (0..images).map(|which| fixture::image(number + which, shape)).collect(),
                    ..record(number)
                }
            })
            .collect();
        write_set(folder.path(), &settings, &records, 3);
        let dataset = Arc::new(Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a set"));
        let spec = BatchSpec { global_batch: 3, micro_batch: 3, shuffle: true, ..fixture::ONE_BY_ONE };
        let packed = BatchSpec { packing: Some(PackingSpec { max_images: 4, window: 16 }), ..spec.clone() };
        for spec in [spec, packed] {
            let share = Share::new(Arc::clone(&dataset), spec, Partition::WHOLE).expect("a share");
            let position = Position { epoch: 1, step: 0, micro: 0 };
            let scattered = share.scattered_batch(position).expect("a batch");
            let num_images = scattered.pixel_shape[0];
            assert!(num_images > 1, "of three records");
            assert_eq!(scattered.pixel_pieces.len(), if is_scattered { num_images } else { 1 });
            assert_eq!(scattered.gather().expect("pieces"), share.batch(position).expect("a batch"));
        }
    }
}
