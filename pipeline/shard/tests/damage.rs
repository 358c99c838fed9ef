//! A wrong byte is found wherever it stands, by name, without a panic.

mod fixture;

use std::fs;
use std::path::Path;

use fixture::{read_all, records, settings, store, write_set};
use vela_shard::{Manifest, ShardEntry, ShardError, ShardReader};
use vela_types::Record;

fn open(folder: &Path, entry: &ShardEntry) -> Result<ShardReader, ShardError> {
    ShardReader::open(store(folder).as_ref(), entry)
}

/// Opens and reads everything; `Ok(true)` if all came out as written and only the whole-file check noticed.
fn outcome(folder: &Path, entry: &ShardEntry, expected: &[Record]) -> Result<bool, ShardError> {
    let reader = open(folder, entry)?;
    let read = read_all(&reader)?;
    assert_eq!(read, expected, "damage was served as data");
    reader.verify(entry).map(|()| false).or(Ok(true))
}

#[test]
fn a_flipped_byte_anywhere_in_a_shard_is_detected_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let records = records(3);
    let entry = write_set(folder.path(), &settings(), &records, 4).shards.remove(0);
    let path = folder.path().join(&entry.file);
    let good = fs::read(&path).expect("the shard");
    let mut only_whole_file = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).expect("a damaged shard");
        match outcome(folder.path(), &entry, &records) {
            Ok(noticed) => {
                assert!(noticed, "byte {at} of {} went unnoticed", good.len());
                only_whole_file += 1;
            }
            Err(fault) => {
                assert!(fault.is_damage() && fault.to_string().contains("shard-00000.parquet"), "byte {at}: {fault}");
            }
        }
    }
    // Bytes that do not change what is read: the two level runs of a page, whose content the row structure implies.
    assert!(only_whole_file * 5 < good.len(), "{only_whole_file} of {} bytes", good.len());
}

#[test]
fn a_damaged_row_names_its_file_row_and_id_and_leaves_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let records = records(6);
    let entry = write_set(folder.path(), &settings(), &records, 6).shards.remove(0);
    let path = folder.path().join(&entry.file);
    let mut content = fs::read(&path).expect("the shard");
    let pixels = &records[4].images[0].data;
    let at = content.windows(pixels.len()).position(|window| window == &pixels[..]).expect("stored pixels");
    content[at + 11] ^= 0x10;
    fs::write(&path, &content).expect("a damaged shard");
    let reader = open(folder.path(), &entry).expect("the index is whole");
    let fault = reader.read(4).expect_err("damaged pixels").to_string();
    assert!(
        fault.contains("shard-00000.parquet") && fault.contains("row 4") && fault.contains("test/样本-4"),
        "{fault}"
    );
    assert_eq!(reader.read(0).expect("a good row"), records[0]);
    assert!(matches!(reader.read(6), Err(ShardError::NoSuchRow { row: 6, rows: 6, .. })));
}

#[test]
fn a_shard_cut_anywhere_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let entry = write_set(folder.path(), &settings(), &records(3), 3).shards.remove(0);
    let path = folder.path().join(&entry.file);
    let good = fs::read(&path).expect("the shard");
    for length in (0..good.len()).step_by(7) {
        fs::write(&path, &good[..length]).expect("a cut shard");
        let fault = open(folder.path(), &entry).expect_err("a cut shard").to_string();
        assert!(fault.contains("size in bytes"), "{fault}");
        // Even if the manifest agreed on the size, no prefix of a shard opens.
        let cut = ShardEntry { bytes: length as u64, ..entry.clone() };
        assert!(open(folder.path(), &cut).is_err(), "{length} bytes");
    }
    fs::remove_file(&path).expect("the shard");
    assert!(matches!(open(folder.path(), &entry), Err(ShardError::MissingFile { .. })));
}

#[test]
fn shards_that_swapped_names_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = write_set(folder.path(), &settings(), &records(8), 4);
    let [first, second] = &manifest.shards[..] else { panic!("two shards") };
    let [a, b, c] = [&first.file, &second.file, "aside"].map(|name| folder.path().join(name));
    [(&a, &c), (&b, &a), (&c, &b)].iter().for_each(|(from, to)| fs::rename(from, to).expect("a rename"));
    assert!(open(folder.path(), first).is_err() && open(folder.path(), second).is_err());
}

#[test]
fn a_changed_manifest_or_lengths_index_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(5), 3);
    let store = store(folder.path());
    for name in ["manifest.json", "lengths.sums", "lengths.bin"] {
        let path = folder.path().join(name);
        let good = fs::read(&path).expect("the file");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 7);
            fs::write(&path, &bad).expect("a damaged file");
            let lengths = Manifest::load(store.as_ref()).and_then(|manifest| manifest.open_lengths(store.as_ref()));
            let fault = lengths.and_then(|lengths| (0..5).try_for_each(|record| lengths.get(record).map(drop)));
            let fault = fault.expect_err(&format!("byte {at} of {name} went unnoticed")).to_string();
            assert!(fault.contains(name), "byte {at}: {fault}");
        }
        fs::write(&path, &good).expect("the good file");
    }
    assert!(Manifest::load(store.as_ref()).is_ok());
}

#[test]
fn unknown_keys_other_versions_and_absent_manifests_say_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(folder.path());
    let load = || Manifest::load(store.as_ref()).expect_err("no good manifest").to_string();
    assert!(load().contains("pipeline build-shards"), "{}", load());
    write_set(folder.path(), &settings(), &records(2), 2);
    let path = folder.path().join("manifest.json");
    let good = fs::read_to_string(&path).expect("the manifest");
    let cases = [
        (good.replacen("\"version\": 2", "\"version\": 3", 1), "reads version 2"),
        (good.replacen("\"totals\"", "\"extra\": 0,\n  \"totals\"", 1), "not a valid manifest"),
        (good.replacen("\"vocab_size\"", "\"extra\": 0, \"vocab_size\"", 1), "form of the manifest"),
        ("[]".to_owned(), "not a valid manifest"),
        (String::new(), "not a valid manifest"),
    ];
    for (content, message) in cases {
        fs::write(&path, content).expect("a wrong manifest");
        assert!(load().contains(message), "expected `{message}` in: {}", load());
    }
}

#[test]
fn places_this_build_cannot_open_are_refused() {
    for url in ["ftp://host/set", "s3://", "s3:///set", "s3://bucket/a//b", "s3://bucket/../set", "file://relative"] {
        let fault = vela_shard::open_store(url).expect_err("no such place").to_string();
        assert!(fault.contains(url) && fault.contains("file://"), "{fault}");
    }
    for url in ["s3://key:secret@bucket/set", "s3://bucket/set?X-Amz-Signature=secret"] {
        let fault = vela_shard::open_store(url).expect_err("credentials in a url").to_string();
        assert!(fault.contains("bucket/set") && !fault.contains("secret"), "{fault}");
    }
    assert!(vela_shard::open_store("file:///tmp").is_ok() && vela_shard::open_store("relative/path").is_ok());
}
