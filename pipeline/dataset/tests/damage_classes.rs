//! Every kind of wrong byte under every policy: what exactly happens, and that nothing else changes.

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use fixture::{image, record, records, remote_store, settings, write_set, write_set_into};
use vela_dataset::{DamagePolicy, Dataset, DatasetError, Partition};
use vela_shard::{Manifest, Store, open_store};
use vela_tests::s3::S3Server;
use vela_tests::told;
use vela_types::{Batch, BatchSpec, Position};

const NUM_RECORDS: u64 = 12;
/// Of three shards.
const SHARD_ROWS: usize = 4;

/// One record, one batch: what happens to a record is seen apart from its neighbours.
const SPEC: BatchSpec = fixture::ONE_BY_ONE;

/// What a kind of damage leads to.
enum Outcome {
    /// The set does not open; the message has this in it.
    Unopened(&'static str),
    /// These records are damaged, with this in the message; all others are as they were.
    Damaged(Vec<u64>, &'static str),
}
use Outcome::{Damaged, Unopened};

fn batch(dataset: &Dataset, index: u64) -> Result<Batch, DatasetError> {
    dataset.batch(&SPEC, Partition::WHOLE, Position { epoch: 0, step: index, micro: 0 })
}

struct Case<'a> {
    name: &'a str,
    store: Arc<dyn Store>,
    good: &'a [Batch],
}

impl Case<'_> {
    fn open(&self, policy: DamagePolicy) -> Result<Dataset, DatasetError> {
        Ok(Dataset::open_in("the set", Arc::clone(&self.store))?.with_damage_policy(policy))
    }

    fn assert(&self, outcome: &Outcome) {
        match outcome {
            Unopened(message) => {
                for policy in [DamagePolicy::Fail, DamagePolicy::Mask, DamagePolicy::Budget(u64::MAX)] {
                    let fault = told(&self.open(policy).expect_err(self.name));
                    assert!(fault.contains(message), "{}: expected `{message}` in: {fault}", self.name);
                }
            }
            Damaged(rows, message) => self.assert_rows(&rows.iter().copied().collect(), message),
        }
    }

    fn assert_rows(&self, damaged: &BTreeSet<u64>, message: &str) {
        let open = |policy| self.open(policy).expect(self.name);
        let failing = open(DamagePolicy::Fail);
        for (index, good) in (0..).zip(self.good) {
            match (batch(&failing, index), damaged.contains(&index)) {
                (Ok(found), false) => assert_eq!(&found, good, "{}: record {index} changed", self.name),
                (Err(fault), true) => {
                    let fault = told(&fault);
                    assert!(fault.contains(message), "{}: expected `{message}` in: {fault}", self.name);
                }
                (Ok(_), true) => panic!("{}: record {index} was served", self.name),
                (Err(fault), false) => panic!("{}: record {index}: {}", self.name, told(&fault)),
            }
        }
        for policy in [DamagePolicy::Mask, DamagePolicy::Budget(damaged.len() as u64)] {
            let masking = open(policy);
            for (index, good) in (0..).zip(self.good) {
                let found = batch(&masking, index).expect(self.name);
                match damaged.contains(&index) {
                    false => assert_eq!(&found, good, "{}: record {index} changed", self.name),
                    true => {
                        let slots: Vec<_> = found.samples.iter().map(|slot| (slot.index, slot.valid)).collect();
                        assert_eq!((slots, found.step_label_tokens), (vec![(index, false)], 0), "{}", self.name);
                        assert!(found.pixels.data().is_empty(), "{}", self.name);
                    }
                }
            }
            assert_eq!(masking.num_damaged(), damaged.len() as u64, "{}", self.name);
        }
        self.assert_budget(damaged, message);
    }

    /// One record fewer than are damaged: the last of them is an error, everything before is not.
    fn assert_budget(&self, damaged: &BTreeSet<u64>, message: &str) {
        let Some(&last) = damaged.last() else { return };
        let dataset = self.open(DamagePolicy::Budget(damaged.len() as u64 - 1)).expect(self.name);
        for index in 0..NUM_RECORDS {
            match batch(&dataset, index) {
                Ok(_) => assert_ne!(index, last, "{}: beyond the budget", self.name),
                Err(fault) => {
                    assert!(
                        index == last && matches!(fault, DatasetError::BudgetSpent { .. }),
                        "{}: {index}",
                        self.name
                    );
                    assert!(told(&fault).contains(message), "{}: {}", self.name, told(&fault));
                    let again = batch(&dataset, index).expect_err("refused once, refused again");
                    assert!(matches!(again, DatasetError::BudgetSpent { .. }), "{}: {}", self.name, told(&again));
                }
            }
        }
    }
}

fn good_batches() -> Vec<Batch> {
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(NUM_RECORDS), SHARD_ROWS);
    let dataset = Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a good set");
    (0..NUM_RECORDS).map(|index| batch(&dataset, index).expect("a batch")).collect()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = fs::read(path).expect("a file");
    change(&mut content);
    fs::write(path, content).expect("a file");
}

/// Writes a manifest that is whole in itself and says something wrong.
fn rewrite_manifest(folder: &Path, change: impl FnOnce(&mut Manifest)) {
    let store = open_store(folder.to_str().expect("a UTF-8 path")).expect("a folder");
    let mut manifest = Manifest::load(store.as_ref()).expect("a manifest");
    fs::remove_file(folder.join("manifest.json")).expect("a manifest");
    change(&mut manifest);
    manifest.totals = vela_shard::Totals::of(&manifest.shards);
    manifest.commit(store.as_ref()).expect("sealed");
}

fn shard(folder: &Path, number: u32) -> std::path::PathBuf {
    folder.join(format!("shard-{number:05}.parquet"))
}

fn turn(path: &Path, at: usize) {
    change(path, |content| content[at] ^= 4);
}

/// Where the pixels of image `number` stand.
fn pixels_at(path: &Path, number: u64) -> usize {
    let pixels = image(number, fixture::SHAPE).data;
    let content = fs::read(path).expect("a shard");
    content.windows(pixels.len()).position(|window| window == &pixels[..]).expect("stored pixels")
}

type Damage = fn(&Path);

#[test]
fn each_kind_of_damage_does_exactly_this() {
    let shares = |number| {
        move |index: &u64| record(*index).images.iter().any(|it| it.hash == image(number, fixture::SHAPE).hash)
    };
    let of_image: Vec<u64> = (4..8).filter(shares(3)).collect();
    assert_eq!(of_image, [5, 7], "one image of two records");
    let all = || (4..8).collect::<Vec<u64>>();
    let cases: [(&str, Damage, Outcome); 19] = [
        ("nothing", |_| {}, Damaged(vec![], "")),
        ("header", |folder| turn(&shard(folder, 1), 2), Damaged(all(), "first bytes")),
        (
            "pixels",
            |folder| turn(&shard(folder, 1), pixels_at(&shard(folder, 1), 3) + 7),
            Damaged(of_image, "shard-00001.parquet"),
        ),
        (
            "index",
            |folder| {
                let index = {
                    let store = open_store(folder.to_str().expect("a UTF-8 path")).expect("a folder");
                    Manifest::load(store.as_ref()).expect("a manifest").shards[1].index_offset
                };
                turn(&shard(folder, 1), index as usize + 3);
            },
            Damaged(all(), "checksum of index and footer"),
        ),
        (
            "footer",
            |folder| change(&shard(folder, 1), |content| *content.last_mut().expect("bytes") ^= 1),
            Damaged(all(), "checksum of index and footer"),
        ),
        ("truncation", |folder| change(&shard(folder, 1), |content| _ = content.pop()), Unopened("size in bytes")),
        ("zero length", |folder| change(&shard(folder, 1), Vec::clear), Unopened("size in bytes")),
        ("absent", |folder| fs::remove_file(shard(folder, 1)).expect("a shard"), Unopened("is missing")),
        (
            "wrong digest of the index",
            |folder| rewrite_manifest(folder, |it| it.shards[1].index_checksum.0[0] ^= 1),
            Damaged(all(), "checksum of index and footer"),
        ),
        // Rows have checksums of their own, and so have blocks of lengths; those of the files are compared by `verify` and by caches.
        (
            "wrong digest of the file",
            |folder| rewrite_manifest(folder, |it| it.shards[1].checksum.0[0] ^= 1),
            Damaged(vec![], ""),
        ),
        (
            "wrong digest of the lengths",
            |folder| rewrite_manifest(folder, |it| it.lengths.checksum.0[0] ^= 1),
            Damaged(vec![], ""),
        ),
        // Of so few records there is one block.
        (
            "a bit of the lengths",
            |folder| turn(&folder.join("lengths.bin"), 40),
            Damaged((0..NUM_RECORDS).collect(), "lengths.bin` block 0 (records 0 to 11)"),
        ),
        (
            "truncation of the lengths",
            |folder| change(&folder.join("lengths.bin"), |content| _ = content.pop()),
            Unopened("lengths.bin"),
        ),
        (
            "wrong digest of the sums",
            |folder| rewrite_manifest(folder, |it| it.lengths_sums.checksum.0[0] ^= 1),
            Unopened("lengths.sums"),
        ),
        ("a bit of the sums", |folder| turn(&folder.join("lengths.sums"), 60), Unopened("lengths.sums")),
        (
            "no sums",
            |folder| fs::remove_file(folder.join("lengths.sums")).expect("the sums"),
            Unopened("lengths.sums` is missing"),
        ),
        ("swapped names", |folder| swap_names(folder), Unopened("size in bytes")),
        (
            "duplicate name",
            |folder| rewrite_manifest(folder, |it| it.shards[1] = it.shards[0].clone()),
            Unopened("more than once"),
        ),
        (
            "duplicate of the lengths' name",
            |folder| rewrite_manifest(folder, |it| it.shards[1].file = it.lengths.file.clone()),
            Unopened("more than once"),
        ),
    ];
    let good = good_batches();
    for (name, damage, outcome) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        write_set(folder.path(), &settings(), &records(NUM_RECORDS), SHARD_ROWS);
        damage(folder.path());
        let store = open_store(folder.path().to_str().expect("a UTF-8 path")).expect("a folder");
        let case = Case { name, store, good: &good };
        case.assert(&outcome);
        if let (Damaged(..), true) = (&outcome, name != "nothing") {
            assert!(case.open(DamagePolicy::Fail).expect(name).verify().is_err(), "{name}: not verified");
        }
    }
}

/// Files that exchanged their names.
fn swap_names(folder: &Path) {
    let aside = folder.join("aside");
    for (from, to) in
        [(shard(folder, 0), aside.clone()), (shard(folder, 1), shard(folder, 0)), (aside, shard(folder, 1))]
    {
        fs::rename(from, to).expect("a rename");
    }
}

/// A set whose shards 0 and 1 have equal sizes: the rows of both have the same lengths, `differ` makes the ids of shard 1.
fn equal_sizes(folder: &Path, differ: impl Fn(usize) -> String) -> Manifest {
    let twice = (0..8).map(|at| vela_types::Record {
        id: if at < 4 { format!("{at:02}") } else { differ(at) },
        ..record(at as u64 % 4)
    });
    let records: Vec<_> = twice.chain((9..13).map(record)).collect();
    let manifest = write_set(folder, &settings(), &records, SHARD_ROWS);
    assert_eq!(manifest.shards[0].bytes, manifest.shards[1].bytes);
    manifest
}

#[test]
fn swapped_shards_of_one_size_are_told_apart_by_their_index() {
    let folder = tempfile::tempdir().expect("a folder");
    // The same bytes in all, in other pages.
    equal_sizes(folder.path(), |at| ["5", "006", "7", "008"][at - 4].to_owned());
    let store = open_store(folder.path().to_str().expect("a UTF-8 path")).expect("a folder");
    let whole = Dataset::open_in("the set", Arc::clone(&store)).expect("a set");
    let good: Vec<_> = (0..NUM_RECORDS).map(|index| batch(&whole, index).expect("a batch")).collect();
    swap_names(folder.path());
    Case { name: "swapped names", store, good: &good }
        .assert(&Damaged((0..8).collect(), "checksum of index and footer"));
}

/// What stays open: the index says nothing of the rows, so shards whose pages are all as long as one another's are only told
/// apart by the checksum of the file.
#[test]
fn swapped_shards_of_one_layout_are_found_by_verify() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = equal_sizes(folder.path(), |at| format!("{at:02}"));
    assert_eq!(manifest.shards[0].index_checksum, manifest.shards[1].index_checksum);
    swap_names(folder.path());
    let dataset = Dataset::open(folder.path().to_str().expect("a UTF-8 path")).expect("a set");
    let fault = dataset.verify().expect_err("another file").to_string();
    assert!(fault.contains("shard-00000.parquet") && fault.contains("checksum of the file"), "{fault}");
}

#[test]
fn a_bit_turned_anywhere_in_a_shard_takes_its_own_records_alone() {
    let good = good_batches();
    let folder = tempfile::tempdir().expect("a folder");
    write_set(folder.path(), &settings(), &records(NUM_RECORDS), SHARD_ROWS);
    let path = shard(folder.path(), 1);
    let content = fs::read(&path).expect("a shard");
    let store = open_store(folder.path().to_str().expect("a UTF-8 path")).expect("a folder");
    let mut sizes = BTreeSet::new();
    for at in (0..content.len()).step_by(11) {
        turn(&path, at);
        let case = Case { name: &format!("byte {at}"), store: Arc::clone(&store), good: &good };
        let failing = case.open(DamagePolicy::Fail).expect("a set");
        let damaged: BTreeSet<u64> = (0..NUM_RECORDS).filter(|&index| batch(&failing, index).is_err()).collect();
        assert!(damaged.iter().all(|index| (4..8).contains(index)), "{at}: {damaged:?}");
        case.assert_rows(&damaged, "shard-00001.parquet");
        sizes.insert(damaged.len());
        fs::write(&path, &content).expect("a shard");
    }
    assert!(sizes.contains(&1) && sizes.contains(&4), "one record, or the whole shard: {sizes:?}");
}

/// A remote set whose three shards and lengths are in the cache, or would be.
struct Remote {
    server: S3Server,
    cache: tempfile::TempDir,
    manifest: Manifest,
}

type RemoteDamage = fn(&Remote);

impl Remote {
    fn new() -> Self {
        let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
        let store = Arc::new(remote_store(&server, "set", cache.path(), u64::MAX));
        let manifest = write_set_into(store, &settings(), &records(NUM_RECORDS), SHARD_ROWS);
        Self { server, cache, manifest }
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(remote_store(&self.server, "set", self.cache.path(), u64::MAX))
    }

    /// Fills the cache.
    fn read(&self) {
        let dataset = Dataset::open_in("the set", self.store()).expect("a set");
        (0..NUM_RECORDS).for_each(|index| _ = batch(&dataset, index).expect("a batch"));
    }

    fn copy(&self, shard: usize) -> std::path::PathBuf {
        self.cache.path().join(self.manifest.shards[shard].checksum.to_string())
    }

    fn partial(&self, shard: usize) -> std::path::PathBuf {
        self.copy(shard).with_extension("partial")
    }

    fn change_object(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut content = self.server.objects("set/")["shard-00001.parquet"].clone();
        change(&mut content);
        self.server.put("set/shard-00001.parquet", content);
    }
}

#[test]
fn copies_that_are_wrong_are_fetched_again_and_cost_no_record() {
    let good = good_batches();
    let cases: [(&str, RemoteDamage); 8] = [
        ("stale: another content of the same size", |it| {
            it.read();
            change(&it.copy(1), |content| content.reverse());
        }),
        ("stale: the copy of another shard", |it| {
            it.read();
            fs::copy(it.copy(0), it.copy(1)).expect("copied");
        }),
        ("a bit of the pixels", |it| {
            it.read();
            let at = pixels_at(&it.copy(1), 3);
            turn(&it.copy(1), at);
        }),
        ("a bit of the lengths", |it| {
            it.read();
            turn(&it.cache.path().join(it.manifest.lengths.checksum.to_string()), 40);
        }),
        ("shorter", |it| {
            it.read();
            change(&it.copy(1), |content| content.truncate(100));
        }),
        ("empty", |it| {
            it.read();
            change(&it.copy(1), Vec::clear);
        }),
        ("half a download of a killed process", |it| {
            it.read();
            fs::rename(it.copy(1), it.partial(1)).expect("renamed");
            change(&it.partial(1), |content| content.truncate(100));
        }),
        ("a whole download that was not renamed, with a wrong bit", |it| {
            it.read();
            fs::rename(it.copy(1), it.partial(1)).expect("renamed");
            turn(&it.partial(1), 50);
        }),
    ];
    for (name, damage) in cases {
        let policies = [DamagePolicy::Fail, DamagePolicy::Mask, DamagePolicy::Budget(0)];
        for policy in policies {
            let remote = Remote::new();
            damage(&remote);
            let dataset = Dataset::open_in("the set", remote.store()).expect(name).with_damage_policy(policy);
            for (index, good) in (0..).zip(&good) {
                let found = batch(&dataset, index).unwrap_or_else(|fault| panic!("{name}: {}", told(&fault)));
                assert_eq!(&found, good, "{name}: record {index} under {policy:?}");
            }
            assert_eq!(dataset.num_damaged(), 0, "{name}");
            assert!(!remote.partial(1).exists() && remote.copy(1).exists(), "{name}");
        }
    }
}

#[test]
fn objects_that_are_wrong_are_damage_by_the_shard() {
    let good = good_batches();
    let cases: [(&str, RemoteDamage, Outcome); 5] = [
        (
            "another content",
            |it| it.change_object(|content| content[60] ^= 1),
            Damaged((4..8).collect(), "checksum of the file"),
        ),
        (
            "other lengths",
            |it| {
                let mut content = it.server.objects("set/")["lengths.bin"].clone();
                content[40] ^= 1;
                it.server.put("set/lengths.bin", content);
            },
            Unopened("lengths.bin"),
        ),
        ("cut", |it| it.change_object(|content| _ = content.pop()), Unopened("size in bytes")),
        ("empty", |it| it.change_object(Vec::clear), Unopened("size in bytes")),
        ("absent", |it| it.server.remove("set/shard-00001.parquet"), Unopened("is missing")),
    ];
    for (name, damage, outcome) in cases {
        let remote = Remote::new();
        damage(&remote);
        Case { name, store: remote.store(), good: &good }.assert(&outcome);
        let copies = fs::read_dir(remote.cache.path()).expect("the cache").map(|it| it.expect("a file").path());
        assert!(copies.into_iter().all(|path| path != remote.copy(1)), "{name}: kept");
    }
}
