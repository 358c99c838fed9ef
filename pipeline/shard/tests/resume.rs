//! A build stopped between any two files goes on where it was and ends in the same bytes.

mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fixture::{BUILD, records, settings, store, write_set, write_shard};
use vela_shard::{BuildFolder, Claim, MANIFEST_FILE, Manifest, ShardError};
use vela_types::Fingerprint;

const SHARD_ROWS: usize = 4;
const NUM_SHARDS: u32 = 3;

fn open(folder: &Path) -> BuildFolder {
    BuildFolder::open(store(folder), BUILD, settings()).expect("our own folder")
}

/// What a build does: keep the good shards, make the others, commit. Gives the indices it made.
fn build(folder: &Path) -> Vec<u32> {
    let (build, records) = (open(folder), records(11));
    build.sweep().expect("nobody else is here");
    let parts = records.chunks(SHARD_ROWS).zip(0..NUM_SHARDS);
    let missing: Vec<u32> = parts
        .filter(|(_, index)| build.completed_shard(*index).expect("a readable folder").is_none())
        .map(|(part, index)| {
            write_shard(&build, index, part);
            index
        })
        .collect();
    build
        .commit(NUM_SHARDS, BTreeMap::from([("missing_image".to_owned(), 2)]), serde_json::json!({"source": "test"}))
        .expect("a commit");
    missing
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = store(folder).list().expect("a listing");
    names.into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).expect("a file"))).collect()
}

/// A finished set to compare with, and a folder in which shards 0 and 1 are complete.
fn stopped() -> (BTreeMap<String, Vec<u8>>, tempfile::TempDir) {
    let whole = tempfile::tempdir().expect("a folder");
    write_set(whole.path(), &settings(), &records(11), SHARD_ROWS);
    let folder = tempfile::tempdir().expect("a folder");
    let build = open(folder.path());
    records(11).chunks(SHARD_ROWS).take(2).enumerate().for_each(|(index, part)| {
        write_shard(&build, index as u32, part);
    });
    (contents(whole.path()), folder)
}

#[test]
fn a_kill_between_shards_costs_only_the_shards_not_made() {
    let (whole, folder) = stopped();
    assert!(matches!(Manifest::load(store(folder.path()).as_ref()), Err(ShardError::MissingManifest { .. })));
    assert_eq!(build(folder.path()), [2]);
    assert_eq!(contents(folder.path()), whole);
}

#[test]
fn a_kill_while_a_file_is_written_leaves_litter_that_the_next_build_removes() {
    let (whole, folder) = stopped();
    for name in ["shard-00002.parquet", "manifest.json", "lengths.bin", "lengths.sums"] {
        fs::write(folder.path().join(format!("{name}.0123456789abcdef.partial")), b"half").expect("litter");
    }
    // Killed after the shard was renamed and before its completion was.
    fs::write(folder.path().join("shard-00002.parquet"), b"whole but not vouched for").expect("a shard");
    assert_eq!(build(folder.path()), [2]);
    assert_eq!(contents(folder.path()), whole);
}

#[test]
fn files_that_others_are_writing_are_left_alone() {
    let (whole, folder) = stopped();
    let mine = "shard-00002.parquet.0123456789abcdef.partial";
    let strangers = ["thesis.partial", "x.0123456789ABCDEF.partial", ".0123456789abcdef.partial", "x.abc.partial"];
    assert_eq!(build(folder.path()), [2]);
    for name in strangers.iter().chain([&mine]) {
        fs::write(folder.path().join(name), b"half").expect("written");
    }
    let again = open(folder.path());
    let manifest = again.manifest().expect("read").expect("finished");
    again.clean(&manifest).expect("cleaned");
    assert!(folder.path().join(mine).exists(), "somebody may be writing it");
    again.sweep().expect("swept");
    assert!(!folder.path().join(mine).exists());
    for name in strangers {
        fs::remove_file(folder.path().join(name)).expect("a stranger's file is still there");
    }
    assert_eq!(contents(folder.path()), whole);
}

#[test]
fn a_kill_between_manifest_and_cleaning_is_a_finished_build() {
    let (whole, folder) = stopped();
    let completion = fs::read(folder.path().join("shard-00000.json")).expect("a completion");
    build(folder.path());
    fs::write(folder.path().join("shard-00000.json"), completion).expect("a completion left over");
    let again = open(folder.path());
    let manifest = again.manifest().expect("a readable folder").expect("the committed manifest");
    again.clean(&manifest).expect("a clean folder");
    assert_eq!(contents(folder.path()), whole);
}

#[test]
fn damaged_shards_and_completions_are_made_again() {
    type Damage = (&'static str, fn(&mut Vec<u8>));
    let damage: [Damage; 4] = [
        ("shard-00001.parquet", |content| content[100] ^= 1),
        ("shard-00001.parquet", |content| content.truncate(50)),
        ("shard-00001.json", |content| content.truncate(50)),
        ("shard-00001.json", |content| content.clear()),
    ];
    for (name, change) in damage {
        let (whole, folder) = stopped();
        let path = folder.path().join(name);
        let mut content = fs::read(&path).expect("the file");
        change(&mut content);
        fs::write(&path, content).expect("a damaged file");
        assert_eq!(build(folder.path()), [1, 2], "{name}");
        assert_eq!(contents(folder.path()), whole, "{name}");
    }
}

#[test]
fn shards_of_other_inputs_or_settings_are_not_kept() {
    let (_, folder) = stopped();
    let other = BuildFolder::open(store(folder.path()), Fingerprint([1; 32]), settings()).expect("no manifest yet");
    assert!(other.completed_shard(0).expect("a readable folder").is_none());
    let fault = other.commit(2, BTreeMap::new(), serde_json::Value::Null).expect_err("nothing is complete");
    assert!(matches!(fault, ShardError::Incomplete { index: 0, .. }));
    build(folder.path());
    let fault = BuildFolder::open(store(folder.path()), Fingerprint([1; 32]), settings()).expect_err("a finished set");
    assert!(fault.to_string().contains("choose another output folder"), "{fault}");
    assert!(folder.path().join(MANIFEST_FILE).exists(), "nothing was touched");
}

#[test]
fn of_many_writers_of_a_folder_exactly_one_finds_its_content_there() {
    let folder = tempfile::tempdir().expect("a folder");
    for race in 0..20 {
        let start = std::sync::Barrier::new(8);
        let name = format!("claim-{race}");
        let claim = |writer: usize| {
            start.wait();
            store(folder.path()).create_new(&name, format!("writer {writer}").as_bytes()).expect("a sound folder")
        };
        let claims: Vec<Claim> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let claim = &claim;
                    scope.spawn(move || claim(writer))
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        let winners: Vec<usize> = (0..8).filter(|&writer| claims[writer] == Claim::Won).collect();
        let [winner] = winners[..] else { panic!("{claims:?}") };
        let content = fs::read_to_string(folder.path().join(&name)).expect("the winner's");
        assert_eq!(content, format!("writer {winner}"));
        let lost = Claim::Lost(content.into());
        assert!((0..8).all(|writer| writer == winner || claims[writer] == lost), "{claims:?}");
    }
    assert_eq!(store(folder.path()).list().expect("a listing").len(), 20, "no partial file is left");
}

#[test]
fn notes_come_back_with_the_shard() {
    let (_, folder) = stopped();
    let (shard, notes) = open(folder.path()).completed_shard(1).expect("a readable folder").expect("a complete shard");
    assert_eq!((shard.entry.rows, shard.lengths.len()), (4, 4));
    assert_eq!(notes, serde_json::json!({"rejects": {}}));
}

#[test]
fn a_damaged_or_lost_lengths_index_is_made_again_from_the_shards() {
    let (whole, folder) = stopped();
    build(folder.path());
    let build = open(folder.path());
    let manifest = build.manifest().expect("a readable folder").expect("a manifest");
    assert!(!build.repair_lengths(&manifest).expect("a good index"));
    for name in ["lengths.bin", "lengths.sums"] {
        let path = folder.path().join(name);
        let mut content = fs::read(&path).expect("the index");
        content[20] ^= 4;
        fs::write(&path, content).expect("a damaged index");
        assert!(build.repair_lengths(&manifest).expect("made again"), "{name}");
        assert_eq!(contents(folder.path()), whole);
        fs::remove_file(&path).expect("removed");
        assert!(build.repair_lengths(&manifest).expect("made again"), "{name}");
        assert_eq!(contents(folder.path()), whole);
    }
}

#[test]
fn a_lengths_index_that_comes_out_otherwise_replaces_nothing() {
    let (_, folder) = stopped();
    build(folder.path());
    let (build, path) = (open(folder.path()), folder.path().join("lengths.bin"));
    let mut manifest = build.manifest().expect("a readable folder").expect("a manifest");
    manifest.lengths.checksum.0[0] ^= 1;
    let before = contents(folder.path());
    let fault = build.repair_lengths(&manifest).expect_err("the shards say otherwise");
    assert!(fault.is_damage() && fault.to_string().contains(path.to_str().expect("UTF-8")), "{fault}");
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn the_fingerprint_follows_the_content_and_the_plan_does_not() {
    let manifest = |records: &[vela_types::Record], plan: u8| {
        let folder = tempfile::tempdir().expect("a folder");
        let build = BuildFolder::open(store(folder.path()), Fingerprint([plan; 32]), settings()).expect("a folder");
        write_shard(&build, 0, records);
        build.commit(1, BTreeMap::new(), serde_json::json!({"seed": 1})).expect("a commit")
    };
    let first = manifest(&records(4), 1);
    let mut other = records(4);
    let image = &mut other[1].images[0];
    image.data = image.data.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>().into();
    image.hash = Fingerprint(*blake3::hash(&image.data).as_bytes());
    assert_ne!(first.fingerprint, manifest(&other, 1).fingerprint, "other pixels");
    let replanned = manifest(&records(4), 2);
    assert_eq!(first.fingerprint, replanned.fingerprint, "equal bytes");
    assert_eq!((first.plan, replanned.plan), (Fingerprint([1; 32]), Fingerprint([2; 32])));
}
