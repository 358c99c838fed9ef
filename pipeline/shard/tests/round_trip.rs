//! What is written is what is read, once per image, and the same bytes each time.

mod fixture;

use fixture::{IMAGE_TOKEN, SHAPE, image, processor, read_all, record, records, settings, store, write_set};
use proptest::prelude::*;
use vela_shard::{Manifest, ShardReader, ShardSettings, ShardWriter, shard_file_name};
use vela_types::{IGNORE_LABEL, Language, Record};

fn write_and_read(records: &[Record], settings: &ShardSettings) -> (Vec<u8>, Vec<Record>) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(folder.path());
    let mut writer = ShardWriter::create(store.clone(), 0, settings).expect("a new shard");
    records.iter().for_each(|record| writer.push(record).expect("a good record"));
    let entry = writer.finish().expect("a finished shard").entry;
    let reader = ShardReader::open(store.as_ref(), &entry).expect("a good shard");
    reader.verify(&entry).expect("equal bytes");
    let content = std::fs::read(folder.path().join(&entry.file)).expect("the file");
    (content, read_all(&reader).expect("good rows"))
}

prop_compose! {
    fn any_record()(
        id in "[a-z0-9/ 图像]{1,24}",
        source in "[a-z]{0,6}",
        language in prop::sample::select(vec![Language::En, Language::Zh, Language::Other]),
        prompt in prop::collection::vec(0u32..500, 1..40),
        answer in prop::collection::vec(0u32..500, 1..40),
        numbers in prop::collection::vec(0u64..6, 0..5),
    ) -> Record {
        let images: Vec<_> = numbers.iter().map(|&number| image(number, SHAPE)).collect();
        let input_ids: Vec<u32> = prompt.into_iter().chain(images.iter().map(|_| IMAGE_TOKEN)).chain(answer.iter().copied()).collect();
        let silent = input_ids.len() - answer.len();
        let labels = std::iter::repeat_n(IGNORE_LABEL, silent).chain(answer.iter().map(|&id| id as i32)).collect();
        Record { id, source, language, input_ids, labels, images }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_records_survive_the_file(records in prop::collection::vec(any_record(), 1..20), group in 1usize..3000) {
        let settings = ShardSettings { row_group_bytes: group, ..settings() };
        let (content, read) = write_and_read(&records, &settings);
        prop_assert_eq!(&read, &records);
        prop_assert_eq!(content, write_and_read(&records, &settings).0, "equal records give equal bytes");
    }
}

#[test]
fn an_image_is_stored_once_per_shard_and_served_from_the_mapping() {
    let folder = tempfile::tempdir().expect("a folder");
    let shared: Vec<Record> =
        (0..6).map(|number| Record { images: vec![image(7, SHAPE)], ..record(3 * number + 1) }).collect();
    let manifest = write_set(folder.path(), &settings(), &shared, 6);
    assert_eq!((manifest.shards[0].num_images, manifest.shards[0].num_stored_images), (6, 1));
    let reader = ShardReader::open(store(folder.path()).as_ref(), &manifest.shards[0]).expect("a good shard");
    let address = |row| reader.read(row).expect("a good row").images[0].data.as_ptr();
    assert!((1..6).all(|row| address(row) == address(0)), "all rows point at the same mapped bytes");
}

#[test]
fn a_long_record_takes_one_page_whatever_its_length() {
    let input_ids: Vec<u32> = (0..5000).map(|token| token % 499).collect();
    let long =
        Record { labels: input_ids.iter().map(|&id| id as i32).collect(), input_ids, images: vec![], ..record(0) };
    let records = [record(1), long, record(2)];
    assert_eq!(write_and_read(&records, &settings()).1, records);
}

#[test]
fn the_manifest_adds_up_and_reads_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let records = records(23);
    let written = write_set(folder.path(), &settings(), &records, 5);
    let store = store(folder.path());
    let read = Manifest::load(store.as_ref()).expect("a manifest");
    assert_eq!(read, written);
    assert_eq!((read.shards.len(), read.totals.rows, read.rejects["missing_image"]), (5, 23, 2));
    let lengths = read.open_lengths(store.as_ref()).expect("a lengths index");
    assert!(
        records.iter().enumerate().all(|(index, record)| lengths.get(index as u64).expect("whole") == record.lengths())
    );
    let mut names: Vec<String> = (0..5).map(shard_file_name).collect();
    names.splice(0..0, ["lengths.bin", "lengths.sums", "manifest.json"].map(str::to_owned));
    assert_eq!(store.list().expect("a listing"), names, "the commit leaves only what the manifest names");
}

#[test]
fn records_that_break_an_invariant_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = ShardWriter::create(store(folder.path()), 0, &settings()).expect("a new shard");
    let good = record(1);
    let mut wrong_hash = image(1, SHAPE);
    wrong_hash.hash.0[0] ^= 1;
    let small = image(1, vela_types::ImageShape { height: 2, ..SHAPE });
    let refused = [
        (Record { labels: vec![], ..good.clone() }, "number of labels"),
        (Record { input_ids: vec![], labels: vec![], images: vec![], ..good.clone() }, "number of tokens"),
        (Record { images: vec![], ..good.clone() }, "number of images"),
        (Record { labels: vec![IGNORE_LABEL; good.labels.len()], ..good.clone() }, "predicted tokens"),
        (Record { labels: vec![1; good.labels.len()], ..good.clone() }, "label"),
        (Record { input_ids: vec![900; good.labels.len()], ..good.clone() }, "token id"),
        (Record { images: vec![wrong_hash], ..good.clone() }, "image hash"),
        (Record { images: vec![small], ..good.clone() }, "image shape"),
    ];
    for (record, what) in refused {
        let fault = writer.push(&record).expect_err(what).to_string();
        assert!(fault.contains("test/样本-1") && fault.contains(what), "{fault}");
    }
    writer.push(&good).expect("a refused record leaves the shard as it was");
    assert_eq!(writer.finish().expect("a finished shard").entry.rows, 1);
}

#[test]
fn an_abandoned_shard_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(folder.path());
    let mut writer = ShardWriter::create(store.clone(), 0, &ShardSettings::new(processor(SHAPE))).expect("a new shard");
    writer.push(&record(1)).expect("a good record");
    drop(writer);
    assert!(store.list().expect("a listing").is_empty());
}
