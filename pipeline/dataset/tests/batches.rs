//! Batches are what the records and the spec say, whatever the world size, prefetch or place of resumption.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::collections::BTreeSet;
use std::sync::Arc;

use fixture::{IMAGE_TOKEN, PAD, SHAPE, record, records, settings, write_set};
use proptest::prelude::*;
use vela_dataset::{Dataset, LocalSource, Partition, spec_fingerprint};
use vela_types::{Batch, BatchSource, BatchSpec, Cursor, IGNORE_LABEL, Position, Record};

const SPEC: BatchSpec =
    BatchSpec { global_batch: 4, micro_batch: 2, seed: 11, shuffle: true, image_tokens: 3, ..fixture::ONE_BY_ONE };

fn dataset(num_records: u64) -> (tempfile::TempDir, Arc<Dataset>) {
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(num_records), 5);
    let dataset = Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a good set");
    (folder, Arc::new(dataset))
}

fn source(dataset: &Arc<Dataset>, spec: &BatchSpec, prefetch_bytes: usize) -> LocalSource {
    LocalSource::new(Arc::clone(dataset), spec.clone(), Partition::WHOLE, prefetch_bytes).expect("a good spec")
}

fn take(source: &mut LocalSource, count: usize) -> Vec<Batch> {
    (0..count).map(|_| source.next_batch().expect("a batch")).collect()
}

/// Ids and labels of a record after its image tokens are expanded, made the slow way.
fn expanded(record: &Record, image_tokens: usize) -> Vec<(i32, i32)> {
    let repeat = |id: u32| if id == IMAGE_TOKEN { image_tokens } else { 1 };
    let pairs = record.input_ids.iter().zip(&record.labels);
    pairs.flat_map(|(&id, &label)| std::iter::repeat_n((id as i32, label), repeat(id))).collect()
}

/// Checks every tensor of `batch` against the records it says it holds.
fn check_batch(batch: &Batch, spec: &BatchSpec) {
    let (num_rows, columns) = batch.rows_and_columns();
    let [ids, labels, positions, documents] =
        [&batch.input_ids, &batch.labels, &batch.position_ids, &batch.document_ids].map(|t| t.to_i32().expect("i32"));
    assert_eq!(batch.samples.len(), num_rows);
    let mut images = Vec::new();
    let mut longest = 1;
    for (row, slot) in batch.samples.iter().enumerate() {
        assert_eq!(slot.row as usize, row);
        let tokens = if slot.valid { expanded(&record(slot.index), spec.image_tokens as usize) } else { Vec::new() };
        assert_eq!(slot.id, if slot.valid { record(slot.index).id } else { String::new() });
        longest = longest.max(tokens.len());
        for column in 0..columns {
            let at = row * columns + column;
            let found = (ids[at], labels[at], positions[at], documents[at]);
            match tokens.get(column) {
                Some(&(id, label)) => assert_eq!(found, (id, label, column as i32, 1)),
                None => assert_eq!(found, (PAD as i32, IGNORE_LABEL, 0, 0)),
            }
        }
        images.extend(slot.valid.then(|| record(slot.index).images).into_iter().flatten().map(|image| (row, image)));
    }
    assert_eq!(columns, longest, "padded to the longest row");
    let (count, bytes) = (images.len(), SHAPE.num_elements());
    assert_eq!(batch.pixels.shape(), [count, 3, 4, 5]);
    assert_eq!(batch.image_spans.len(), count);
    for (number, (span, (row, image))) in batch.image_spans.iter().zip(images).enumerate() {
        assert_eq!(&batch.pixels.data()[number * bytes..(number + 1) * bytes], &image.data[..]);
        let start = row * columns + span.start as usize;
        assert_eq!(span.row as usize, row);
        assert!(ids[start..start + spec.image_tokens as usize].iter().all(|&id| id == IMAGE_TOKEN as i32));
    }
}

#[test]
fn every_tensor_of_every_batch_follows_from_its_records() {
    let (_folder, dataset) = dataset(19);
    for spec in [SPEC, BatchSpec { shuffle: false, image_tokens: 1, micro_batch: 3, ..SPEC }] {
        let mut source = source(&dataset, &spec, 1 << 20);
        let steps = source.steps_per_epoch() as usize;
        assert_eq!(steps, 5);
        for step in take(&mut source, 2 * steps * 2).chunks(2) {
            step.iter().for_each(|batch| check_batch(batch, &spec));
            let predicted = step.iter().flat_map(|batch| &batch.samples).filter(|slot| slot.valid);
            let predicted: u64 = predicted.map(|slot| u64::from(record(slot.index).lengths().num_label_tokens)).sum();
            assert!(step.iter().all(|batch| batch.step_label_tokens == predicted && batch.num_micro == 2));
        }
    }
}

/// One row of a batch without its padding: validity, index, id, token ids, pixels.
type Row = (bool, u64, String, Vec<i32>, Vec<u8>);

/// The rows of a batch: what must not depend on how a step is cut.
fn rows(batch: &Batch) -> Vec<Row> {
    let (_, columns) = batch.rows_and_columns();
    let (ids, documents) = (batch.input_ids.to_i32().expect("i32"), batch.document_ids.to_i32().expect("i32"));
    let row_of = |slot: &vela_types::SampleSlot| {
        let at = slot.row as usize * columns;
        let length = documents[at..at + columns].iter().filter(|&&document| document == 1).count();
        let images = batch.image_spans.iter().enumerate().filter(|(_, span)| span.row == slot.row);
        let bytes = SHAPE.num_elements();
        let pixels = images.flat_map(|(number, _)| batch.pixels.data()[number * bytes..(number + 1) * bytes].to_vec());
        (slot.valid, slot.index, slot.id.clone(), ids[at..at + length].to_vec(), pixels.collect())
    };
    batch.samples.iter().map(row_of).collect()
}

#[test]
fn the_global_batch_is_the_same_for_every_world_and_micro_batch() {
    let (_folder, dataset) = dataset(31);
    let spec = BatchSpec { global_batch: 24, ..SPEC };
    let step_rows = |world: u32, micro_batch: u32, epoch: u64, step: u64| {
        let spec = BatchSpec { micro_batch, ..spec.clone() };
        let ranks = (0..world).flat_map(|rank| {
            let partition = Partition { rank, world };
            let num_micro = dataset.plan(&spec, partition).expect("a good spec").num_micro();
            let batch = |micro| dataset.batch(&spec, partition, Position { epoch, step, micro }).expect("a batch");
            (0..num_micro).map(batch).collect::<Vec<_>>()
        });
        let batches: Vec<Batch> = ranks.collect();
        assert!(batches.iter().all(|batch| batch.step_label_tokens == batches[0].step_label_tokens));
        batches.iter().flat_map(rows).collect::<Vec<_>>()
    };
    for epoch in 0..2 {
        let mut seen = Vec::new();
        for step in 0..2 {
            let whole = step_rows(1, 24, epoch, step);
            seen.extend(whole.iter().filter(|row| row.0).map(|row| row.1));
            for (world, micro) in [(1, 5), (2, 12), (3, 8), (3, 3), (4, 6), (8, 2), (24, 1)] {
                assert_eq!(step_rows(world, micro, epoch, step), whole, "world {world}, micro-batch {micro}");
            }
        }
        assert_eq!(seen.len(), 31, "every sample exactly once");
        assert!(seen.into_iter().collect::<BTreeSet<_>>().into_iter().eq(0..31));
    }
}

#[test]
fn resuming_at_any_step_gives_the_uninterrupted_tail() {
    let (_folder, dataset) = dataset(10);
    let whole = take(&mut source(&dataset, &SPEC, 1 << 20), 14);
    for step in 0..6 {
        let mut resumed = source(&dataset, &SPEC, 1 << 20);
        let (epoch, within) = (step / 3, step % 3);
        let cursor = Cursor { epoch, step: within, ..resumed.start_cursor() };
        resumed.seek(&cursor).expect("our own cursor");
        assert_eq!(resumed.cursor(), cursor, "a cursor survives being restored without use");
        assert_eq!(take(&mut resumed, 4), whole[2 * step as usize..][..4], "from step {step}");
    }
    // A cursor saved right behind the last step of an epoch stands at the start of the next.
    let mut resumed = source(&dataset, &SPEC, 1 << 20);
    resumed.seek(&Cursor { step: 3, ..resumed.start_cursor() }).expect("the end of epoch 0");
    assert_eq!(take(&mut resumed, 2), whole[6..8]);
    assert!(resumed.seek(&Cursor { step: 4, ..resumed.start_cursor() }).is_err());
}

#[test]
fn a_cursor_counts_what_was_given_out_not_what_was_prefetched() {
    let (_folder, dataset) = dataset(10);
    let mut source = source(&dataset, &SPEC, 1 << 20);
    take(&mut source, 2);
    let cursor = source.cursor();
    assert_eq!((cursor.epoch, cursor.step), (0, 1));
    let next = take(&mut source, 3);
    source.seek(&cursor).expect("our own cursor");
    assert_eq!(take(&mut source, 3), next, "the same source can go back");
}

#[test]
fn foreign_cursors_are_refused() {
    let (_folder, dataset) = dataset(10);
    let mut source = source(&dataset, &SPEC, 1 << 20);
    let start = source.start_cursor();
    assert_eq!(start.spec, spec_fingerprint(&SPEC));
    let mut refuse = |cursor: Cursor, field: &str| {
        let fault = source.seek(&cursor).expect_err(field).to_string();
        assert!(fault.contains(field), "{fault}");
    };
    refuse(Cursor { version: 2, ..start.clone() }, "version");
    refuse(Cursor { spec: spec_fingerprint(&BatchSpec { seed: 1, ..SPEC }), ..start.clone() }, "spec");
    refuse(Cursor { fingerprint: vela_types::Fingerprint([1; 32]), ..start }, "fingerprint");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_prefetch_size_gives_the_same_batches(prefetch_bytes in prop_oneof![Just(0), 1usize..20_000]) {
        let (_folder, dataset) = dataset(10);
        let mut bounded = source(&dataset, &SPEC, prefetch_bytes);
        let expected = take(&mut source(&dataset, &SPEC, 1 << 20), 12);
        let largest = expected.iter().map(Batch::num_bytes).max().expect("batches");
        prop_assert_eq!(take(&mut bounded, 12), expected);
        let stats = bounded.stats();
        prop_assert_eq!(stats.num_taken, 12);
        prop_assert!(stats.peak_bytes <= prefetch_bytes.max(largest), "{:?}", stats);
    }
}

#[test]
fn a_slow_consumer_holds_the_worker_back_and_dropping_stops_it() {
    let (_folder, dataset) = dataset(40);
    let mut source = source(&dataset, &SPEC, 4_000);
    take(&mut source, 1);
    while source.stats().num_producer_waits == 0 {
        std::thread::yield_now();
    }
    let stats = source.stats();
    assert!(stats.bytes <= 4_000 && stats.depth > 0, "{stats:?}");
    drop(source);
    assert_eq!(Arc::strong_count(&dataset), 1, "the worker has ended");
}

#[test]
fn the_last_step_is_padded_with_masked_slots() {
    let (_folder, dataset) = dataset(9);
    let batch = |micro| dataset.batch(&SPEC, Partition::WHOLE, Position { epoch: 0, step: 2, micro }).expect("a batch");
    assert_eq!(batch(0).samples.iter().map(|slot| slot.valid).collect::<Vec<_>>(), [true, false]);
    let empty = batch(1);
    assert_eq!((empty.rows_and_columns(), empty.image_shape()), ((2, 1), None));
    assert_eq!(empty.step_label_tokens, batch(0).step_label_tokens);
    assert!(empty.samples.iter().all(|slot| !slot.valid));
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let (_folder, dataset) = dataset(9);
    let fault = |spec: BatchSpec, partition, position| {
        dataset.batch(&spec, partition, position).expect_err("refused").to_string()
    };
    let start = Position { epoch: 0, step: 0, micro: 0 };
    let short = fault(BatchSpec { max_length: 3, ..SPEC }, Partition::WHOLE, start);
    assert!(short.contains("`test/样本-") && short.contains("raise `max_length`"), "{short}");
    let short = BatchSpec { max_length: 12, shuffle: false, ..SPEC };
    let early = LocalSource::new(Arc::clone(&dataset), short, Partition::WHOLE, 0).expect_err("refused").to_string();
    assert!(early.contains("raise `max_length`"), "a stream says so before its first batch: {early}");
    assert!(fault(SPEC, Partition::WHOLE, Position { step: 3, ..start }).contains("step below 3"));
    assert!(fault(SPEC, Partition::WHOLE, Position { micro: 2, ..start }).contains("micro-batch below 2"));
    assert!(dataset.record(9).expect_err("past the end").to_string().contains("no record 9"));
    assert_eq!(dataset.record(8).expect("the last record"), record(8));
    let empty = tempfile::tempdir().expect("a folder");
    let fault = Dataset::open(empty.path().to_str().expect("a UTF-8 path")).expect_err("no manifest").to_string();
    assert!(fault.contains("pipeline build-shards"), "{fault}");
}

#[test]
fn a_file_url_opens_the_same_set() {
    let (folder, dataset) = dataset(5);
    let by_url = Dataset::open(&format!("file://{}", folder.path().display())).expect("a good set");
    assert_eq!(by_url.info(), dataset.info());
    by_url.verify().expect("every byte is right");
}

#[test]
fn a_set_in_a_bucket_gives_the_same_batches() {
    let (server, cache) = (vela_tests::s3::S3Server::start(), tempfile::tempdir().expect("a folder"));
    let (url, (_folder, local)) = (server.url("sets/one"), dataset(23));
    let store = || Arc::new(fixture::remote_store(&server, "sets/one", cache.path(), u64::MAX));
    let open = || Dataset::open_in(&url, store());
    let fault = open().expect_err("nothing there");
    assert!(fault.is_wrong_place() && fault.to_string().contains("s3://bucket/sets/one/manifest.json"), "{fault}");
    fixture::write_set_into(store(), &settings(), &records(23), 5);
    let remote = Arc::new(open().expect("a good set"));
    assert_eq!((remote.info(), remote.url()), (local.info(), url.clone()));
    let mut there = source(&remote, &SPEC, 5000);
    let steps = there.steps_per_epoch() as usize * 2;
    assert_eq!(take(&mut there, steps), take(&mut source(&local, &SPEC, 5000), steps));
    remote.verify().expect("every byte is right");
    server.remove("sets/one/shard-00002.parquet");
    let fault = open().expect_err("a shard is gone");
    assert!(fault.is_damage() && fault.to_string().contains("shard-00002.parquet"), "{fault}");
}
