//! Damage in a shard: `fail` names it, `mask` keeps its slot and changes nothing else.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::fs;
use std::path::Path;

use fixture::{records, settings, write_set};
use vela_dataset::{DamagePolicy, Dataset, LocalSource, Partition};
use vela_types::{Batch, BatchSource, BatchSpec, IGNORE_LABEL, Position};

const SPEC: BatchSpec = BatchSpec { global_batch: 5, micro_batch: 5, ..fixture::ONE_BY_ONE };

fn open(folder: &Path, policy: DamagePolicy) -> Dataset {
    Dataset::open(folder.to_str().expect("a UTF-8 path")).expect("a set").with_damage_policy(policy)
}

fn batch(dataset: &Dataset, step: u64) -> Result<Batch, vela_dataset::DatasetError> {
    dataset.batch(&SPEC, Partition::WHOLE, Position { epoch: 0, step, micro: 0 })
}

/// Labels that a loss over `batches` counts: all but the first column, which nothing predicts.
fn label_tokens(batches: &[&Batch]) -> u64 {
    let count = |batch: &&Batch| {
        let labels = batch.labels.to_i32().expect("i32");
        let rows = labels.chunks(batch.rows_and_columns().1);
        rows.flat_map(|row| row.iter().skip(1)).filter(|&&label| label != IGNORE_LABEL).count() as u64
    };
    batches.iter().map(count).sum()
}

/// Ten records in two shards; the pixels that record 8 brings are damaged.
fn damaged_set() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let records = records(10);
    write_set(folder.path(), &settings(), &records, 5);
    let path = folder.path().join("shard-00001.parquet");
    let mut content = fs::read(&path).expect("a shard");
    let pixels = &records[8].images[1].data;
    let at = content.windows(pixels.len()).position(|window| window == &pixels[..]).expect("stored pixels");
    content[at] ^= 1;
    fs::write(path, content).expect("a damaged shard");
    folder
}

#[test]
fn by_default_a_damaged_record_fails_its_batch_by_name() {
    let folder = damaged_set();
    let dataset = open(folder.path(), DamagePolicy::Fail);
    assert!(batch(&dataset, 0).is_ok(), "other batches are served");
    let fault = batch(&dataset, 1).expect_err("a damaged record").to_string();
    assert!(
        fault.contains("shard-00001.parquet") && fault.contains("row 3") && fault.contains("test/样本-8"),
        "{fault}"
    );
    assert!(dataset.verify().is_err());
}

#[test]
fn masking_keeps_the_slot_and_every_other_sample() {
    let folder = damaged_set();
    let dataset = open(folder.path(), DamagePolicy::Mask);
    let masked = batch(&dataset, 1).expect("a masked batch");
    let valid: Vec<(u64, bool)> = masked.samples.iter().map(|slot| (slot.index, slot.valid)).collect();
    assert_eq!(valid, [(5, true), (6, true), (7, true), (8, false), (9, true)]);
    let whole = tempfile::tempdir().expect("a folder");
    write_set(whole.path(), &settings(), &records(10), 5);
    let good = batch(&open(whole.path(), DamagePolicy::Fail), 1).expect("a batch");
    assert_eq!(masked.step_label_tokens, label_tokens(&[&masked]), "the divisor counts what is there");
    assert_eq!(good.step_label_tokens, label_tokens(&[&good]));
    assert!(masked.step_label_tokens < good.step_label_tokens);
    let (_, columns) = masked.rows_and_columns();
    let labels = masked.labels.to_i32().expect("i32");
    assert!(labels[3 * columns..4 * columns].iter().all(|&label| label == IGNORE_LABEL));
    let spans = |batch: &Batch| batch.image_spans.iter().copied().filter(|span| span.row != 3).collect::<Vec<_>>();
    assert_eq!(spans(&masked), spans(&good));
    assert!(masked.image_spans.iter().all(|span| span.row != 3));
    assert_eq!(masked.image_spans.len() * fixture::SHAPE.num_elements(), masked.pixels.data().len());
}

#[test]
fn every_micro_batch_and_rank_divides_by_the_labels_that_the_masked_step_has() {
    let folder = damaged_set();
    let spec = BatchSpec { global_batch: 10, micro_batch: 2, shuffle: true, ..SPEC };
    let mut batches = Vec::new();
    for rank in 0..2 {
        // A data set of its own for each batch: what one has read is of no help to another.
        for micro in 0..3 {
            let dataset = open(folder.path(), DamagePolicy::Mask);
            let position = Position { epoch: 3, step: 0, micro };
            batches.push(dataset.batch(&spec, Partition { rank, world: 2 }, position).expect("a masked batch"));
        }
    }
    let expected = label_tokens(&batches.iter().collect::<Vec<_>>());
    assert!(batches.iter().any(|batch| batch.samples.iter().any(|slot| slot.index == 8 && !slot.valid)));
    assert_eq!(batches.iter().map(|batch| batch.step_label_tokens).collect::<Vec<_>>(), [expected; 6]);
}

#[test]
fn a_masked_record_stays_masked_in_later_epochs() {
    let folder = damaged_set();
    let dataset = open(folder.path(), DamagePolicy::Mask);
    let epoch = |epoch| dataset.batch(&SPEC, Partition::WHOLE, Position { epoch, step: 1, micro: 0 }).expect("a batch");
    let (first, second) = (epoch(0), epoch(1));
    assert_eq!((first.samples, first.labels), (second.samples, second.labels));
    assert_eq!(first.step_label_tokens, second.step_label_tokens);
}

#[test]
fn a_damaged_index_masks_its_whole_shard() {
    let folder = damaged_set();
    let path = folder.path().join("shard-00000.parquet");
    let mut content = fs::read(&path).expect("a shard");
    let last = content.len() - 9;
    content[last] ^= 1;
    fs::write(path, content).expect("a damaged shard");
    let fault = batch(&open(folder.path(), DamagePolicy::Fail), 0).expect_err("a damaged shard").to_string();
    assert!(fault.contains("shard-00000.parquet") && fault.contains("index and footer"), "{fault}");
    let masked = batch(&open(folder.path(), DamagePolicy::Mask), 0).expect("a masked batch");
    assert!(masked.samples.iter().all(|slot| !slot.valid));
    assert_eq!(masked.step_label_tokens, 0);
    // A stream opens shards ahead of its batches: that is no other policy.
    for (policy, fails) in [(DamagePolicy::Mask, false), (DamagePolicy::Budget(100), false), (DamagePolicy::Fail, true)]
    {
        let dataset = std::sync::Arc::new(open(folder.path(), policy));
        let mut source = LocalSource::new(dataset, SPEC, Partition::WHOLE, 1 << 20).expect("a source");
        match source.next_batch() {
            Ok(batch) => assert!(!fails && batch == masked),
            Err(fault) => assert!(fails && format!("{fault:?}").contains("shard-00000.parquet"), "{fault:?}"),
        }
    }
}

#[test]
fn missing_and_cut_shards_are_named_at_open() {
    let folder = damaged_set();
    let url = folder.path().to_str().expect("a UTF-8 path").to_owned();
    let path = folder.path().join("shard-00001.parquet");
    let content = fs::read(&path).expect("a shard");
    fs::write(&path, &content[..content.len() / 2]).expect("a cut shard");
    let fault = Dataset::open(&url).expect_err("a cut shard").to_string();
    assert!(fault.contains("shard-00001.parquet") && fault.contains("size in bytes"), "{fault}");
    fs::remove_file(&path).expect("a shard");
    let fault = Dataset::open(&url).expect_err("a missing shard").to_string();
    assert!(fault.contains("shard-00001.parquet") && fault.contains("is missing"), "{fault}");
}
