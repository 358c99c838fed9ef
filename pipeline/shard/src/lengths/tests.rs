use std::fs;
use std::path::Path;
use std::sync::Barrier;

use proptest::prelude::*;

use super::*;
use crate::local::LocalStore;

fn lengths(number: u64) -> RecordLengths {
    let mut draw = vela_types::SeedStream::named(5, "lengths", &number.to_string());
    let num_tokens = 2 + draw.below(900) as u32;
    RecordLengths { num_tokens, num_label_tokens: num_tokens / 2, num_images: draw.below(4) as u32 }
}

fn write(folder: &Path, rows: &[RecordLengths], block_rows: u64) -> LengthsFiles {
    let store = LocalStore::new(folder);
    let mut writer = LengthsWriter::with_block_rows(&store, block_rows).expect("a new index");
    rows.iter().for_each(|row| writer.push(row).expect("written"));
    writer.finish(&store).expect("published")
}

fn open(folder: &Path, files: &LengthsFiles, count: u64) -> Result<LengthsIndex, ShardError> {
    LengthsIndex::open(&LocalStore::new(folder), files, count)
}

/// The same groups by sorting.
fn grouped(rows: &[RecordLengths]) -> Vec<LengthGroup> {
    let mut numbers: Vec<u32> = rows.iter().map(|row| row.num_images).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let group = |num_images: u32| {
        let mut of_it: Vec<(u64, u32)> = (0..)
            .zip(rows)
            .filter(|(_, row)| row.num_images == num_images)
            .map(|(at, row)| (at, row.num_tokens))
            .collect();
        of_it.sort_by_key(|&(_, tokens)| std::cmp::Reverse(tokens));
        LengthGroup { num_images, num_tokens: of_it[0].1, num_records: of_it.len() as u64, longest: of_it[0].0 }
    };
    numbers.into_iter().map(group).collect()
}

fn any_lengths() -> impl Strategy<Value = RecordLengths> {
    (any::<u32>(), any::<u32>(), 0u32..5).prop_map(|(num_tokens, num_label_tokens, num_images)| RecordLengths {
        num_tokens,
        num_label_tokens,
        num_images,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_what_is_read_whatever_the_blocks(
        rows in prop::collection::vec(any_lengths(), 0..200), block_rows in 1u64..70, order: prop::sample::Index,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let count = rows.len() as u64;
        let files = write(folder.path(), &rows, block_rows);
        let index = open(folder.path(), &files, count).expect("a good index");
        prop_assert_eq!((index.len(), index.is_empty()), (count, rows.is_empty()));
        prop_assert_eq!(index.groups(), &grouped(&rows)[..]);
        // From any record on, so that blocks are first touched in another order.
        let first = if rows.is_empty() { 0 } else { order.index(rows.len()) };
        for at in (first..rows.len()).chain(0..first) {
            prop_assert_eq!(index.get(at as u64).expect("a whole block"), rows[at]);
        }
        let is_past_the_end = matches!(index.get(count), Err(ShardError::NoSuchRow { .. }));
        prop_assert!(is_past_the_end);
        index.verify().expect("as it was written");
        // The documented layout, read by itself.
        let (content, sums) = (fs::read(folder.path().join("lengths.bin")).expect("the index"), fs::read(folder.path().join("lengths.sums")).expect("its sums"));
        let expected: Vec<u8> = content[8..].chunks(12 * block_rows as usize).flat_map(|block| *blake3::hash(block).as_bytes()).collect();
        prop_assert_eq!(&sums[32 + 24 * index.groups().len()..], &expected[..]);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(magic: bool, bytes in prop::collection::vec(any::<u8>(), 0..200), small in prop::collection::vec(0u64..4, 3)) {
        let mut content = if magic { b"VELASUM1".to_vec() } else { Vec::new() };
        small.iter().for_each(|word| content.extend(word.to_le_bytes()));
        content.extend(bytes);
        let entry = FileEntry { file: "lengths.sums".to_owned(), bytes: 0, checksum: Fingerprint(*blake3::hash(&content).as_bytes()) };
        if let Ok(sums) = LengthsSums::open("lengths.sums", content.into(), &entry, small[0]) {
            (0..sums.num_blocks()).for_each(|block| assert!(sums.records_of(block).end <= small[0], "{:?}", sums.sum(block)));
        }
    }
}

#[test]
fn one_wrong_bit_costs_its_block_alone_once_it_is_touched() {
    const BLOCK_ROWS: u64 = 7;
    let folder = tempfile::tempdir().expect("a folder");
    let rows: Vec<RecordLengths> = (0..40).map(lengths).collect();
    let files = write(folder.path(), &rows, BLOCK_ROWS);
    let path = folder.path().join("lengths.bin");
    let good = fs::read(&path).expect("the index");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).expect("a damaged index");
        let opened = open(folder.path(), &files, 40);
        let Some(byte) = at.checked_sub(MAGIC.len()) else {
            assert!(opened.expect_err("another magic").to_string().contains("lengths.bin"), "byte {at}");
            continue;
        };
        let (index, damaged) = (opened.expect("only touched blocks are looked at"), byte as u64 / (12 * BLOCK_ROWS));
        for (record, row) in (0..).zip(&rows) {
            match index.get(record) {
                Ok(found) => assert!(record / BLOCK_ROWS != damaged && found == *row, "byte {at}, record {record}"),
                Err(fault) => {
                    let (text, expected) = (fault.to_string(), format!("block {damaged} "));
                    assert!(fault.is_damage() && record / BLOCK_ROWS == damaged, "byte {at}, record {record}: {text}");
                    assert!(text.contains("lengths.bin") && text.contains(&expected), "{text}");
                }
            }
        }
        assert!(index.verify().expect_err("every byte is compared").is_damage());
    }
    for length in [0, 8, good.len() - 1] {
        fs::write(&path, &good[..length]).expect("a cut index");
        let fault = open(folder.path(), &files, 40).expect_err("cut").to_string();
        assert!(fault.contains("lengths.bin"), "{fault}");
    }
    fs::remove_file(&path).expect("removed");
    assert!(matches!(open(folder.path(), &files, 40), Err(ShardError::MissingFile { .. })));
}

#[test]
fn sums_that_are_damaged_or_gone_or_of_another_set_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows: Vec<RecordLengths> = (0..40).map(lengths).collect();
    let files = write(folder.path(), &rows, 7);
    let path = folder.path().join("lengths.sums");
    let good = fs::read(&path).expect("the sums");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).expect("damaged sums");
        let fault = open(folder.path(), &files, 40).expect_err("a wrong bit");
        assert!(fault.is_damage() && fault.to_string().contains("lengths.sums"), "byte {at}: {fault}");
        // Even if the manifest named these bytes, what they say is held against the other file and the manifest.
        let sums = FileEntry { checksum: Fingerprint(*blake3::hash(&bad).as_bytes()), ..files.sums.clone() };
        let named = LengthsFiles { sums, ..files.clone() };
        let is_sum = at >= good.len() - 6 * 32;
        match open(folder.path(), &named, 40) {
            Ok(index) if is_sum => {
                let block = (at - (good.len() - 6 * 32)) / 32;
                assert!(
                    (0..40).all(|record| index.get(record).is_err() == (record as usize / 7 == block)),
                    "byte {at}"
                );
            }
            Ok(index) => assert!(index.groups() != grouped(&rows), "byte {at} says nothing"),
            Err(fault) => assert!(fault.to_string().contains("lengths.sums"), "byte {at}: {fault}"),
        }
    }
    fs::write(&path, &good).expect("the good sums");
    let fault = open(folder.path(), &files, 41).expect_err("another set").to_string();
    assert!(fault.contains("expected 41, found 40"), "{fault}");
    fs::remove_file(&path).expect("removed");
    let fault = open(folder.path(), &files, 40).expect_err("gone");
    assert!(matches!(&fault, ShardError::MissingFile { path } if path.ends_with("lengths.sums")), "{fault}");
}

#[test]
fn threads_that_touch_a_block_first_at_the_same_time_all_see_what_it_is() {
    const RECORDS: u64 = 3000;
    const BLOCK_ROWS: u64 = 40;
    let folder = tempfile::tempdir().expect("a folder");
    let rows: Vec<RecordLengths> = (0..RECORDS).map(lengths).collect();
    let files = write(folder.path(), &rows, BLOCK_ROWS);
    let path = folder.path().join("lengths.bin");
    let mut content = fs::read(&path).expect("the index");
    content[8 + 12 * 1234] ^= 32;
    fs::write(&path, content).expect("a damaged index");
    for _ in 0..20 {
        let index = open(folder.path(), &files, RECORDS).expect("nothing is touched yet");
        let start = Barrier::new(8);
        let read = |thread: u64| {
            start.wait();
            // Half of them run towards the others.
            (0..RECORDS).all(|at| {
                let at = if thread.is_multiple_of(2) { at } else { RECORDS - 1 - at };
                match index.get(at) {
                    Ok(found) => found == rows[at as usize] && at / BLOCK_ROWS != 1234 / BLOCK_ROWS,
                    Err(fault) => fault.is_damage() && at / BLOCK_ROWS == 1234 / BLOCK_ROWS,
                }
            })
        };
        std::thread::scope(|scope| {
            let read = &read;
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || read(thread))).collect();
            threads.into_iter().for_each(|thread| assert!(thread.join().expect("no panic")));
        });
    }
}

#[test]
fn an_index_that_is_not_finished_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = LocalStore::new(folder.path());
    let mut writer = LengthsWriter::with_block_rows(&store, 2).expect("a new index");
    (0..5).for_each(|number| writer.push(&lengths(number)).expect("written"));
    drop(writer);
    assert!(store.list().expect("a listing").is_empty());
}
