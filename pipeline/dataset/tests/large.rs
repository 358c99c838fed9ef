//! A set of a million records is opened, and resumed far from its start, by what the batch needs alone.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;
mod linked;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use vela_dataset::{DamagePolicy, Dataset, Partition, Share};
use vela_shard::LENGTHS_FILE;
use vela_types::{BatchSpec, Cursor, Position};

const SHARD_ROWS: u64 = 5000;
const NUM_SHARDS: u32 = 200;
const NUM_RECORDS: u64 = SHARD_ROWS * NUM_SHARDS as u64;
/// As the format has it.
const BLOCK_ROWS: u64 = 8192;

const SPEC: BatchSpec = BatchSpec {
    global_batch: 8,
    micro_batch: 4,
    seed: 3,
    shuffle: true,
    image_tokens: 2,
    max_length: 64,
    shuffle_window: 0,
    packing: None,
};

fn open(folder: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::open(folder.to_str().expect("a UTF-8 path")).expect("a set"))
}

/// The blocks of the lengths index that step `step` of the first epoch has records of.
fn blocks_of(dataset: &Dataset, step: u64) -> BTreeSet<u64> {
    let epoch = dataset.epoch(&SPEC, 0).expect("rows");
    let places = step * u64::from(SPEC.global_batch)..(step + 1) * u64::from(SPEC.global_batch);
    places
        .flat_map(|place| epoch.samples_at(place).expect("inside the epoch"))
        .map(|index| index / BLOCK_ROWS)
        .collect()
}

#[test]
fn opening_and_resuming_read_no_block_of_lengths_but_those_of_the_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    linked::write(folder.path(), SHARD_ROWS, NUM_SHARDS, 1).expect("a set");
    let good = open(folder.path());
    assert_eq!(good.num_records(), NUM_RECORDS);
    let step = NUM_RECORDS / u64::from(SPEC.global_batch) * 9 / 10;
    let position = Position { epoch: 0, step, micro: 1 };
    let expected = good.batch(&SPEC, Partition::WHOLE, position).expect("a batch");
    let kept = blocks_of(&good, step);

    // A wrong byte in every block that the step does not need.
    let path = folder.path().join(LENGTHS_FILE);
    let mut content = fs::read(&path).expect("the index");
    let num_blocks = NUM_RECORDS.div_ceil(BLOCK_ROWS);
    for block in (0..num_blocks).filter(|block| !kept.contains(block)) {
        content[(8 + 12 * (block * BLOCK_ROWS + 5)) as usize] ^= 1;
    }
    fs::write(&path, content).expect("a damaged index");

    let set = open(folder.path());
    let share = Share::new(Arc::clone(&set), SPEC, Partition::WHOLE).expect("nothing is read per record");
    let cursor = Cursor { epoch: 0, step, ..set.start_cursor(&SPEC) };
    let resumed = share.position_of(&cursor).expect("a cursor of this set");
    assert_eq!(resumed, Position { micro: 0, ..position });
    assert_eq!(share.batch(position).expect("its blocks are whole"), expected);

    let elsewhere = (0..).find(|&step| blocks_of(&good, step).is_disjoint(&kept)).expect("another step");
    let fault = share.batch(Position { epoch: 0, step: elsewhere, micro: 0 }).expect_err("a damaged block");
    assert!(fault.is_damage() && fault.to_string().contains("lengths.bin` block "), "{fault}");

    // Policies keep a state per record, but only of records that were asked for.
    let masking = Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a set");
    let masking = masking.with_damage_policy(DamagePolicy::Mask);
    assert_eq!(masking.batch(&SPEC, Partition::WHOLE, position).expect("a batch"), expected);
    assert_eq!(masking.num_damaged(), 0);
    let masked = masking.batch(&SPEC, Partition::WHOLE, Position { epoch: 0, step: elsewhere, micro: 0 });
    assert!(masked.expect("masked").samples.iter().all(|slot| !slot.valid));
    assert_eq!(masking.num_damaged(), u64::from(SPEC.global_batch));
}

#[test]
fn the_longest_record_of_a_large_set_is_known_when_it_is_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    linked::write(folder.path(), 500, 40, 1).expect("a set");
    let set = open(folder.path());
    let lengths = (0..500).map(|index| set.lengths(index).expect("whole").num_tokens);
    let longest = lengths.max().expect("records");
    let fits = BatchSpec { max_length: longest, ..SPEC };
    assert!(Share::new(Arc::clone(&set), fits.clone(), Partition::WHOLE).is_ok());
    let fault = Share::new(set, BatchSpec { max_length: longest - 1, ..fits }, Partition::WHOLE).expect_err("too long");
    assert!(fault.to_string().contains(&format!("has {longest} tokens")), "{fault}");
}
