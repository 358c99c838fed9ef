//! A spec whose micro-batches are too large is refused before anything of them is allocated.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::sync::Arc;

use fixture::{SHAPE, record, records, settings, write_set};
use proptest::prelude::*;
use vela_dataset::{BlendPart, DEFAULT_MAX_BATCH_BYTES, Dataset, DatasetError, LocalSource, Partition, Weight};
use vela_types::{BatchSpec, PackingSpec, Position};

const NUM_RECORDS: u64 = 11;
const START: Position = Position { epoch: 0, step: 0, micro: 0 };
const SPEC: BatchSpec = BatchSpec {
    global_batch: 4,
    micro_batch: 2,
    seed: 5,
    shuffle: true,
    image_tokens: 3,
    max_length: 64,
    shuffle_window: 0,
    packing: None,
};

fn dataset() -> (tempfile::TempDir, Dataset) {
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(NUM_RECORDS), 5);
    let dataset = Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a good set");
    (folder, dataset)
}

#[test]
fn millions_of_rows_are_refused_by_name_at_every_entrance() {
    let (_folder, dataset) = dataset();
    let huge = BatchSpec { global_batch: 8 << 20, micro_batch: 8 << 20, ..SPEC };
    let by_batch = dataset.batch(&huge, Partition::WHOLE, START).expect_err("refused");
    let by_plan = dataset.plan(&huge, Partition::WHOLE).expect_err("refused");
    let by_stream = LocalSource::new(Arc::new(dataset), huge, Partition::WHOLE, 0).expect_err("refused");
    for fault in [by_batch, by_plan, by_stream] {
        let DatasetError::TooLarge { num_rows, found, limit, .. } = fault else { panic!("{fault}") };
        assert_eq!((num_rows, limit), (8 << 20, DEFAULT_MAX_BATCH_BYTES));
        assert!(found > limit);
        let said = fault.to_string();
        let named = [&limit.to_string(), &found.to_string(), "`batch.micro`", "`data.max_batch_bytes`"];
        assert!(named.iter().all(|name| said.contains(*name)), "{said}");
    }
}

#[test]
fn a_large_step_in_small_pieces_is_served() {
    let (_folder, dataset) = dataset();
    let wide = BatchSpec { global_batch: 8 << 20, ..SPEC };
    let batch = dataset.batch(&wide, Partition::WHOLE, START).expect("two rows");
    assert_eq!(batch.samples.len(), 2);
}

#[test]
fn the_limit_counts_rows_tokens_and_the_records_with_the_most_images() {
    let (_folder, dataset) = dataset();
    let whole = BatchSpec { global_batch: NUM_RECORDS as u32, micro_batch: NUM_RECORDS as u32, ..SPEC };
    let DatasetError::TooLarge { found, columns, num_images, .. } =
        dataset.with_max_batch_bytes(0).plan(&whole, Partition::WHOLE).expect_err("nothing fits")
    else {
        panic!("another fault")
    };
    let expanded = |index| {
        let record = record(index);
        (record.input_ids.len() + 2 * record.images.len(), record.images.len())
    };
    let longest = (0..NUM_RECORDS).map(|index| expanded(index).0).max().expect("records") as u64;
    let images = (0..NUM_RECORDS).map(|index| expanded(index).1).sum::<usize>() as u64;
    assert_eq!((columns, num_images), (longest, images));
    let tensors = NUM_RECORDS * longest * 16 + images * SHAPE.num_elements() as u64;
    assert!(found >= tensors && found < tensors + NUM_RECORDS * 1000, "{found} for {tensors}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_batch_is_larger_than_what_was_announced(
        global_batch in 1u32..40, micro_batch in 1u32..40, image_tokens in 1u32..5, shuffle: bool, seed: u64,
        weight in prop::sample::select(vec![0.4, 1.0, 2.5, 3.0]), packed: bool,
    ) {
        let packing = packed.then_some(PackingSpec { max_images: 8, window: 7 });
        let spec = BatchSpec { global_batch, micro_batch, image_tokens, shuffle, seed, packing, ..SPEC };
        let (folder, _) = dataset();
        let weight = Weight::new(weight).expect("a good weight");
        let part = BlendPart { shards: folder.path().to_str().expect("a UTF-8 path").to_owned(), weight };
        let open = || Dataset::open_blend(std::slice::from_ref(&part)).expect("a good set");
        let dataset = open();
        let plan = dataset.plan(&spec, Partition::WHOLE).expect("small");
        let fault = open().with_max_batch_bytes(0).plan(&spec, Partition::WHOLE).expect_err("nothing fits");
        let DatasetError::TooLarge { found, .. } = fault else { panic!("{fault}") };
        prop_assert!(open().with_max_batch_bytes(found).plan(&spec, Partition::WHOLE).is_ok());
        prop_assert!(open().with_max_batch_bytes(found - 1).plan(&spec, Partition::WHOLE).is_err());
        let mut position = START;
        while position.epoch < 2 {
            let batch = dataset.batch(&spec, Partition::WHOLE, position).expect("a batch");
            prop_assert!(batch.num_bytes() as u64 <= found, "{} of {found}", batch.num_bytes());
            position = plan.after(position);
        }
    }
}
