//! Whatever the world, the window, the packing and the blend: every sample once, the same steps for everybody.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fixture::{record, records, settings, write_set};
use proptest::prelude::*;
use vela_dataset::{BlendPart, Dataset, LocalSource, Partition, Weight};
use vela_types::{Batch, BatchSource, BatchSpec, Cursor, IGNORE_LABEL, PackingSpec, Position};

const SPEC: BatchSpec =
    BatchSpec { global_batch: 6, micro_batch: 2, seed: 11, shuffle: true, image_tokens: 3, ..fixture::ONE_BY_ONE };
const PACKED: BatchSpec = BatchSpec { packing: Some(PackingSpec { max_images: 5, window: 16 }), ..SPEC };

fn write(folder: &Path, first: u64, num_records: u64) -> String {
    let records: Vec<_> = (first..first + num_records).map(record).collect();
    write_set(folder, &settings(), &records, 5);
    folder.to_str().expect("a UTF-8 path").to_owned()
}

fn dataset(num_records: u64) -> (tempfile::TempDir, Arc<Dataset>) {
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(num_records), 5);
    let dataset = Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a good set");
    (folder, Arc::new(dataset))
}

/// The samples of each row of a step, rank after rank, without the masked rows.
fn step_rows(dataset: &Dataset, spec: &BatchSpec, world: u32, place: (u64, u64)) -> Vec<Vec<u64>> {
    let (epoch, step) = place;
    let mut rows = Vec::new();
    for rank in 0..world {
        let partition = Partition { rank, world };
        let plan = dataset.plan(spec, partition).expect("a good spec");
        for micro in 0..plan.num_micro() {
            let batch = dataset.batch(spec, partition, Position { epoch, step, micro }).expect("a batch");
            let mut of_rows = vec![Vec::new(); batch.rows_and_columns().0];
            for slot in batch.samples.iter().filter(|slot| slot.valid) {
                of_rows[slot.row as usize].push(slot.index);
            }
            rows.extend(of_rows.into_iter().filter(|row| !row.is_empty()));
        }
    }
    rows
}

fn steps(dataset: &Dataset, spec: &BatchSpec) -> u64 {
    dataset.plan(spec, Partition::WHOLE).expect("a good spec").steps_per_epoch()
}

fn epoch_samples(dataset: &Dataset, spec: &BatchSpec, epoch: u64) -> Vec<u64> {
    let rows = (0..steps(dataset, spec)).flat_map(|step| step_rows(dataset, spec, 1, (epoch, step)));
    rows.flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_sample_is_consumed_once_per_epoch_at_any_world_size(
        num_records in prop::sample::select(vec![1u64, 5, 6, 7, 13, 29]),
        world in 1u32..18,
        shuffle_window in 0u32..4,
        seed: u64,
        packs: bool,
    ) {
        let (_folder, dataset) = dataset(num_records);
        let spec = BatchSpec { shuffle_window, seed, ..if packs { PACKED } else { SPEC } };
        for epoch in 0..2 {
            let mut seen = Vec::new();
            for step in 0..steps(&dataset, &spec) {
                let rows = step_rows(&dataset, &spec, world, (epoch, step));
                prop_assert_eq!(&rows, &step_rows(&dataset, &spec, 1, (epoch, step)));
                seen.extend(rows.into_iter().flatten());
            }
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..num_records));
        }
    }
}

#[test]
fn ranks_do_equal_work_where_the_step_cannot_be_shared_evenly() {
    let (_folder, dataset) = dataset(13);
    for world in [1, 4, 5, 7, 16] {
        let shapes = |rank| {
            let partition = Partition { rank, world };
            let plan = dataset.plan(&SPEC, partition).expect("a good spec");
            let position = |step, micro| Position { epoch: 0, step, micro };
            let rows = |position| dataset.batch(&SPEC, partition, position).expect("a batch").rows_and_columns().0;
            let all =
                (0..plan.steps_per_epoch()).flat_map(|step| (0..plan.num_micro()).map(move |micro| (step, micro)));
            all.map(|(step, micro)| rows(position(step, micro))).collect::<Vec<_>>()
        };
        assert!((1..world).all(|rank| shapes(rank) == shapes(0)), "world {world}");
    }
}

#[test]
fn a_window_reads_few_shards_at_a_time() {
    let (_folder, dataset) = dataset(60);
    let spec = BatchSpec { shuffle_window: 2, global_batch: 10, ..SPEC };
    let shards_of = |step| {
        let samples = step_rows(&dataset, &spec, 1, (0, step)).concat();
        samples.into_iter().map(|sample| sample / 5).collect::<std::collections::BTreeSet<_>>()
    };
    assert!((0..6).all(|step| shards_of(step).len() == 2), "two shards of five records fill a step of ten");
    assert_ne!(epoch_samples(&dataset, &spec, 0), epoch_samples(&dataset, &spec, 1));
}

/// What a document of a packed batch holds: ids, labels, positions, and the pixels of its images.
fn documents(batch: &Batch, image_bytes: usize) -> Vec<(u64, Vec<[i32; 3]>, Vec<u8>)> {
    let (_, columns) = batch.rows_and_columns();
    let [ids, labels, positions, numbers] =
        [&batch.input_ids, &batch.labels, &batch.position_ids, &batch.document_ids].map(|t| t.to_i32().expect("i32"));
    let mut seen = BTreeMap::new();
    let mut found = Vec::new();
    for slot in batch.samples.iter().filter(|slot| slot.valid) {
        let number = seen.entry(slot.row).or_insert(0);
        *number += 1;
        let row = slot.row as usize * columns..(slot.row as usize + 1) * columns;
        let of_document = row.clone().filter(|&at| numbers[at] == *number);
        let at: Vec<usize> = of_document.collect();
        let images = batch
            .image_spans
            .iter()
            .enumerate()
            .filter(|(_, span)| span.row == slot.row && at.contains(&(row.start + span.start as usize)));
        let pixels = images.flat_map(|(image, _)| batch.pixels.data()[image * image_bytes..][..image_bytes].to_vec());
        let pixels = pixels.collect();
        found.push((slot.index, at.into_iter().map(|at| [ids[at], labels[at], positions[at]]).collect(), pixels));
    }
    found
}

#[test]
fn a_packed_document_is_what_it_would_be_alone() {
    let (_folder, dataset) = dataset(40);
    let image_bytes = fixture::SHAPE.num_elements();
    let by_sample = |spec: &BatchSpec| {
        let mut found = BTreeMap::new();
        let mut label_tokens = 0;
        for step in 0..steps(&dataset, spec) {
            let plan = dataset.plan(spec, Partition::WHOLE).expect("a good spec");
            for micro in 0..plan.num_micro() {
                let position = Position { epoch: 1, step, micro };
                let batch = dataset.batch(spec, Partition::WHOLE, position).expect("a batch");
                label_tokens += if micro == 0 { batch.step_label_tokens } else { 0 };
                for (sample, mut tokens, pixels) in documents(&batch, image_bytes) {
                    // The first label of a row is never predicted, that of a later document is taken out.
                    tokens[0][1] = IGNORE_LABEL;
                    assert!(found.insert(sample, (tokens, pixels)).is_none());
                }
            }
        }
        (found, label_tokens)
    };
    let (alone, alone_labels) = by_sample(&SPEC);
    let (packed, packed_labels) = by_sample(&PACKED);
    assert_eq!(alone.len(), 40);
    assert_eq!(packed, alone);
    assert_eq!(packed_labels, alone_labels);
    let counted: usize =
        packed.values().map(|(tokens, _)| tokens.iter().filter(|token| token[1] != IGNORE_LABEL).count()).sum();
    assert_eq!(counted as u64, packed_labels, "the divisor is the number of labels in the tensors");
    assert!(steps(&dataset, &PACKED) * 2 <= steps(&dataset, &SPEC), "rows hold several samples");
}

#[test]
fn rows_are_the_same_in_every_epoch_and_come_in_another_order() {
    let (_folder, dataset) = dataset(40);
    let rows = |epoch| {
        let rows = (0..steps(&dataset, &PACKED)).flat_map(|step| step_rows(&dataset, &PACKED, 1, (epoch, step)));
        rows.collect::<Vec<_>>()
    };
    let (mut first, mut second) = (rows(0), rows(1));
    assert_ne!(first, second);
    first.sort_unstable();
    second.sort_unstable();
    assert_eq!(first, second);
    for row in first {
        let columns: usize =
            row.iter().map(|&index| record(index).input_ids.len() + 2 * record(index).images.len()).sum();
        assert!(columns <= 64 && row.iter().map(|&index| record(index).images.len()).sum::<usize>() <= 5);
    }
}

#[test]
fn a_sample_that_no_row_can_hold_is_refused_by_its_name() {
    let (_folder, dataset) = dataset(40);
    let spec = BatchSpec { packing: Some(PackingSpec { max_images: 1, window: 16 }), ..PACKED };
    let told = dataset.plan(&spec, Partition::WHOLE).expect_err("two images").to_string();
    assert!(told.contains("test/样本-") && told.contains("at most 64 tokens and 1 images"), "{told}");
}

fn weighted(shards: &str, weight: f64) -> BlendPart {
    BlendPart { shards: shards.to_owned(), weight: Weight::new(weight).expect("a good weight") }
}

#[test]
fn a_blend_holds_each_part_as_often_as_its_weight_says() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let urls = [(0, 20), (20, 8), (28, 30)]
        .map(|(first, count)| write(folders[(first as usize).min(28) / 14].path(), first, count));
    let parts = [weighted(&urls[0], 1.0), weighted(&urls[1], 2.5), weighted(&urls[2], 0.4)];
    let dataset = Dataset::open_blend(&parts).expect("a blend");
    assert_eq!((dataset.info().num_samples, dataset.num_records()), (20 + 20 + 12, 58));
    for spec in [SPEC, BatchSpec { shuffle: false, ..SPEC }, BatchSpec { shuffle_window: 2, ..SPEC }] {
        let mut uses = vec![0; 58];
        for epoch in 0..10 {
            let samples = epoch_samples(&dataset, &spec, epoch);
            let parts = samples.iter().map(|&sample| [0, 20, 28].iter().filter(|&&first| first <= sample).count() - 1);
            let parts: Vec<usize> = parts.collect();
            assert_eq!([0, 1, 2].map(|part| parts.iter().filter(|&&found| found == part).count()), [20, 20, 12]);
            let stretch = parts[..13].iter().filter(|&&part| part == 0).count();
            assert!((4..=6).contains(&stretch), "the parts come evenly: {parts:?}");
            samples.into_iter().for_each(|sample| uses[sample as usize] += 1);
        }
        // Ten epochs of weight 2.5 are 25 passes, of 0.4 four: nobody is favoured.
        assert!(uses[..20].iter().all(|&n| n == 10) && uses[20..28].iter().all(|&n| n == 25));
        assert!(uses[28..].iter().all(|&n| n == 4), "{uses:?}");
    }
    let packed = BatchSpec { packing: PACKED.packing, ..SPEC };
    let mut samples = epoch_samples(&dataset, &packed, 0);
    samples.retain(|&sample| sample < 20);
    samples.sort_unstable();
    assert!(samples.into_iter().eq(0..20), "a part of weight 1 stands whole in every packed epoch");
}

#[test]
fn blends_differ_by_parts_and_weights_and_one_whole_part_is_itself() {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let (one, other) = (write(folders[0].path(), 0, 9), write(folders[1].path(), 9, 7));
    let name = |parts: &[BlendPart]| Dataset::open_blend(parts).expect("a blend").info().fingerprint;
    let alone = Dataset::open(&one).expect("a set").info().fingerprint;
    assert_eq!(name(&[weighted(&one, 1.0)]), alone);
    let names = [
        name(&[weighted(&one, 2.0)]),
        name(&[weighted(&one, 1.0), weighted(&other, 1.0)]),
        name(&[weighted(&other, 1.0), weighted(&one, 1.0)]),
        name(&[weighted(&one, 1.0), weighted(&other, 0.5)]),
        alone,
    ];
    assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    let blend = Dataset::open_blend(&[weighted(&one, 1.0), weighted(&other, 1.0)]).expect("a blend");
    let found = blend.provenance(9 + 6).expect("the last record");
    assert_eq!((found.id, found.file, found.row), (record(15).id, "shard-00001.parquet".to_owned(), 1));
    assert!(found.shards == other && blend.provenance(16).is_err());
    assert!(Dataset::open_blend(&[]).is_err());
}

#[test]
fn a_run_may_go_on_with_other_worlds_and_comes_to_the_same_end() {
    let (_folder, dataset) = dataset(50);
    for spec in [SPEC, PACKED, BatchSpec { shuffle_window: 3, ..PACKED }] {
        let all = steps(&dataset, &spec);
        let whole: Vec<_> =
            (0..2 * all).flat_map(|step| step_rows(&dataset, &spec, 1, (step / all, step % all))).collect();
        let mut cursor = dataset.start_cursor(&spec);
        let mut chained = Vec::new();
        for world in [8, 3, 16, 1] {
            let steps_here = (2 * all).div_ceil(4);
            let mut of_ranks = Vec::new();
            for rank in 0..world {
                let partition = Partition { rank, world };
                let mut source =
                    LocalSource::new(Arc::clone(&dataset), spec.clone(), partition, 1 << 16).expect("a good spec");
                source.seek(&cursor).expect("our own cursor");
                let num_micro = dataset.plan(&spec, partition).expect("a good spec").num_micro();
                let rows = (0..steps_here).map(|_| {
                    let batches: Vec<Batch> = (0..num_micro).map(|_| source.next_batch().expect("a batch")).collect();
                    batches.iter().flat_map(rows_of).collect::<Vec<_>>()
                });
                of_ranks.push(rows.collect::<Vec<_>>());
                if rank + 1 == world {
                    cursor = source.cursor();
                }
            }
            let steps =
                (0..steps_here as usize).flat_map(|step| of_ranks.iter().flat_map(move |rank| rank[step].clone()));
            chained.extend(steps);
        }
        assert_eq!(chained[..whole.len()], whole);
        assert!(cursor.epoch * all + cursor.step >= 2 * all);
        assert_eq!(dataset.position_of(&spec, &Cursor { step: all, epoch: 0, ..cursor }).expect("the end").epoch, 1);
    }
}

fn rows_of(batch: &Batch) -> Vec<Vec<u64>> {
    let mut rows = vec![Vec::new(); batch.rows_and_columns().0];
    batch.samples.iter().filter(|slot| slot.valid).for_each(|slot| rows[slot.row as usize].push(slot.index));
    rows.into_iter().filter(|row| !row.is_empty()).collect()
}
