//! Shard sets written by earlier builds stay readable. `tests/data/v2` was written by the first build of version 2; version 1, of which `tests/data/v1`
//! is a set, was never released and is refused.

mod fixture;

use std::path::{Path, PathBuf};

use fixture::{read_all, records, settings, store, write_set};
use vela_shard::{Manifest, ShardEntry, ShardError, ShardReader};

const NUM_RECORDS: u64 = 9;

fn data(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(version)
}

fn v2() -> PathBuf {
    data("v2")
}

#[test]
fn version_2_shards_are_read() {
    let store = store(&v2());
    let manifest = Manifest::load(store.as_ref()).expect("a manifest of version 2");
    let lengths = manifest.open_lengths(store.as_ref()).expect("its lengths index");
    let read = manifest.shards.iter().flat_map(|entry| {
        let reader = ShardReader::open(store.as_ref(), entry).expect("a shard of version 2");
        reader.verify(entry).expect("equal bytes");
        read_all(&reader).expect("good rows")
    });
    assert_eq!(read.collect::<Vec<_>>(), records(NUM_RECORDS));
    assert!((0..NUM_RECORDS).all(|index| lengths.get(index).expect("whole") == fixture::record(index).lengths()));
}

#[test]
fn a_set_of_version_1_is_refused_with_the_remedy() {
    let store = store(&data("v1"));
    let fault = Manifest::load(store.as_ref()).expect_err("an old set");
    assert!(matches!(fault, ShardError::Version { expected: 2, found: 1, .. }), "{fault}");
    assert!(
        fault.to_string().contains("manifest.json") && fault.to_string().contains("build the shards again"),
        "{fault}"
    );
    // Nor is one of its shards taken for one of today's.
    let old: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data("v1").join("manifest.json")).expect("the file")).expect("JSON");
    let entry: ShardEntry = serde_json::from_value(old["shards"][0].clone()).expect("an entry");
    let fault = ShardReader::open(store.as_ref(), &entry).expect_err("an old shard").to_string();
    assert!(fault.contains("shard-00000.parquet") && fault.contains("version 1"), "{fault}");
}

/// If this fails after a library upgrade, resumed builds would mix two byte forms: say so in the change log.
#[test]
fn version_2_is_still_written_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(NUM_RECORDS), 4);
    for name in store(&v2()).list().expect("a listing") {
        let [old, new] =
            [v2(), folder.path().to_owned()].map(|folder| std::fs::read(folder.join(&name)).expect("a file"));
        assert!(old == new, "{name} has changed");
    }
}

/// Writes `tests/data/v2`; only ever run to start a new version's folder.
#[test]
#[ignore = "writes the reference files"]
fn write_version_2() {
    write_set(&v2(), &settings(), &records(NUM_RECORDS), 4);
}
