//! Shard sets written by earlier builds stay readable. `tests/data/v1` was written by the first build of version 1.

mod fixture;

use std::path::{Path, PathBuf};

use fixture::{read_all, records, settings, store, write_set};
use vela_shard::{Manifest, ShardReader};

const NUM_RECORDS: u64 = 9;

fn v1() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1")
}

#[test]
fn version_1_shards_are_read() {
    let store = store(&v1());
    let manifest = Manifest::load(store.as_ref()).expect("a manifest of version 1");
    let lengths = manifest.open_lengths(store.as_ref()).expect("its lengths index");
    let read = manifest.shards.iter().flat_map(|entry| {
        let reader = ShardReader::open(store.as_ref(), entry).expect("a shard of version 1");
        reader.verify(entry).expect("equal bytes");
        read_all(&reader).expect("good rows")
    });
    assert_eq!(read.collect::<Vec<_>>(), records(NUM_RECORDS));
    assert!((0..NUM_RECORDS).all(|index| lengths.get(index) == fixture::record(index).lengths()));
}

/// If this fails after a library upgrade, resumed builds would mix two byte forms: say so in the change log.
#[test]
fn version_1_is_still_written_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(NUM_RECORDS), 4);
    for name in store(&v1()).list().expect("a listing") {
        let [old, new] =
            [v1(), folder.path().to_owned()].map(|folder| std::fs::read(folder.join(&name)).expect("a file"));
        assert!(old == new, "{name} has changed");
    }
}

/// Writes `tests/data/v1`; only ever run to start a new version's folder.
#[test]
#[ignore = "writes the reference files"]
fn write_version_1() {
    write_set(&v1(), &settings(), &records(NUM_RECORDS), 4);
}
