//! Saved before any step and restored into a fresh source, a run comes to the same end.

use std::sync::Arc;

use vela_client::{ClientError, ClientOptions, RemoteSource};
use vela_dataset::{BlendPart, Dataset, DatasetError, LocalSource, Partition};
use vela_loader::{DatasetConfig, ServeConfig};
use vela_types::{BatchSource, BatchSpec, Cursor, CursorMismatch, Fingerprint, PackingSpec, SourceError};

use crate::loader::{LocalLoader, loopback};
use crate::shards::{self, Plan};
use crate::work::{digest, ids, local, take_step};

/// Two data sets of small records, the second a blend, behind one loader.
struct House {
    plain: Arc<Dataset>,
    blend: Arc<Dataset>,
    loader: LocalLoader,
    _folders: [tempfile::TempDir; 2],
}

impl House {
    fn new() -> Self {
        let folders = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
        let small = |num_samples, seed| Plan { num_samples, side: 8, always_image: false, num_tokens: 8, seed };
        shards::write_shards(folders[0].path(), &small(25, 1), 5);
        shards::write_shards(folders[1].path(), &small(11, 2), 2);
        let [one, other] = [0, 1].map(|at: usize| folders[at].path().display().to_string());
        let blend: Vec<BlendPart> =
            [one.clone(), format!("{other}*1.5")].map(|part| part.parse().expect("a part")).to_vec();
        let config = |name: &str, parts| DatasetConfig { name: name.to_owned(), parts };
        let datasets = vec![
            config("plain", vec![one.parse().expect("a part")]),
            config("blend", blend.clone()),
            config("other", vec![other.parse().expect("a part")]),
        ];
        let loader = LocalLoader::with(ServeConfig { datasets, ..ServeConfig::new("", loopback(0)) });
        let plain = Arc::new(Dataset::open(&one).expect("a set"));
        Self { plain, blend: Arc::new(Dataset::open_blend(&blend).expect("a blend")), loader, _folders: folders }
    }

    fn remote(&self, name: &str, spec: &BatchSpec, Partition { rank, world }: Partition) -> RemoteSource {
        let options = ClientOptions { dataset: name.to_owned(), prefetch_bytes: 64 << 10, ..ClientOptions::default() };
        RemoteSource::connect_with(&self.loader.url(), spec.clone(), rank, world, options).expect("a source")
    }
}

fn packed() -> BatchSpec {
    BatchSpec { packing: Some(PackingSpec { max_images: 4, window: 8 }), max_length: 128, ..shards::spec() }
}

/// A source that knows its place.
trait Resumable: BatchSource {
    fn place(&self) -> Cursor;
}

impl Resumable for LocalSource {
    fn place(&self) -> Cursor {
        self.cursor()
    }
}

impl Resumable for RemoteSource {
    fn place(&self) -> Cursor {
        self.cursor()
    }
}

/// One step of one rank.
fn step(source: &mut dyn Resumable) -> Vec<Fingerprint> {
    take_step(source).iter().map(digest).collect()
}

/// The cursor as a checkpoint keeps it.
fn saved(source: &dyn Resumable) -> String {
    serde_json::to_string(&source.place()).expect("plain data")
}

fn restored(text: &str) -> Cursor {
    assert!(text.len() < 1024);
    serde_json::from_str(text).expect("a cursor")
}

/// `steps` steps, and what was saved before each of them and after the last.
fn run(source: &mut dyn Resumable, steps: u64) -> (Vec<Vec<Fingerprint>>, Vec<String>) {
    let mut saves = vec![saved(source)];
    let done = (0..steps).map(|_| {
        let batches = step(source);
        saves.push(saved(source));
        batches
    });
    (done.collect(), saves)
}

fn assert_goes_on(mut source: impl Resumable, save: &str, tail: &[Vec<Fingerprint>], case: &str) {
    let cursor = restored(save);
    source.seek(&cursor).expect("its own cursor");
    assert_eq!(saved(&source), save, "{case}: saved right after it was restored");
    source.seek(&cursor).expect("its own cursor");
    let (found, saves) = run(&mut source, tail.len() as u64);
    assert!(found == tail, "{case}: another tail");
    assert_eq!(saves[0], save, "{case}");
}

#[test]
fn a_run_restored_before_any_step_has_the_same_tail() {
    let house = House::new();
    let kinds = [
        ("plain", BatchSpec { shuffle: false, ..shards::spec() }),
        ("plain", shards::spec()),
        ("plain", BatchSpec { shuffle_window: 2, ..shards::spec() }),
        ("plain", packed()),
        ("blend", shards::spec()),
        ("blend", BatchSpec { shuffle_window: 1, ..packed() }),
    ];
    let mut restores = 0;
    for (name, spec) in kinds {
        let dataset = if name == "plain" { &house.plain } else { &house.blend };
        for (rank, world) in [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)] {
            let partition = Partition { rank, world };
            let case = format!("{name} {spec:?} rank {rank} of {world}");
            let mut source = local(dataset, &spec, partition);
            let steps = 2 * source.steps_per_epoch();
            let (whole, saves) = run(&mut source, steps);
            assert_eq!(run(&mut house.remote(name, &spec, partition), steps), (whole.clone(), saves.clone()), "{case}");
            // One step of the third epoch, so that the save after the last step has a tail, too.
            let last = step(&mut source);
            let whole = [whole, vec![last]].concat();
            for (before, save) in saves.iter().enumerate() {
                let case = format!("{case}, step {before}");
                assert_goes_on(local(dataset, &spec, partition), save, &whole[before..], &case);
                // A client is asked for one rank of each world: what it asks of a server is the same for all.
                if rank + 1 == world {
                    assert_goes_on(house.remote(name, &spec, partition), save, &whole[before..], &case);
                    restores += 1;
                }
            }
        }
    }
    assert!(restores >= 3 * 6 * 5, "{restores}");
}

#[test]
fn the_edge_of_an_epoch_is_one_place_however_it_is_written() {
    let house = House::new();
    let partition = Partition { rank: 1, world: 2 };
    let spec = shards::spec();
    let mut source = local(&house.plain, &spec, partition);
    let steps = source.steps_per_epoch();
    let (_, saves) = run(&mut source, steps);
    let edge = restored(&saves[steps as usize]);
    assert_eq!((edge.epoch, edge.step), (1, 0));
    let expected = run(&mut source, steps).0;
    let other = Cursor { epoch: 0, step: steps, ..edge.clone() };
    for cursor in [edge.clone(), other] {
        let mut remote = house.remote("plain", &spec, partition);
        remote.seek(&cursor).expect("the edge");
        assert_eq!(remote.cursor(), edge, "one name for one place");
        assert_eq!(run(&mut remote, steps).0, expected);
    }
}

#[test]
fn a_run_goes_on_with_other_ranks_over_the_wire() {
    let house = House::new();
    let spec = BatchSpec { shuffle_window: 2, ..shards::spec() };
    let samples = |world: u32, cursor: &Cursor, steps: u64| -> (Vec<Vec<u64>>, Cursor) {
        let mut of_steps = vec![Vec::new(); steps as usize];
        let mut next = cursor.clone();
        for rank in 0..world {
            let mut source = house.remote("blend", &spec, Partition { rank, world });
            source.seek(cursor).expect("its own cursor");
            for of_step in &mut of_steps {
                of_step.extend(take_step(&mut source).iter().flat_map(ids));
            }
            next = source.cursor();
        }
        (of_steps, next)
    };
    let start = house.blend.start_cursor(&spec);
    let (whole, end) = samples(1, &start, 12);
    let mut cursor = start;
    let mut chained = Vec::new();
    for world in [4, 1, 3, 8] {
        let (steps, next) = samples(world, &cursor, 3);
        chained.extend(steps);
        cursor = next;
    }
    assert_eq!((chained, cursor), (whole, end));
}

/// The name of what is wrong with a cursor, in process and remote.
fn refusals(house: &House, cursor: &Cursor) -> [&'static str; 2] {
    let mut local = local(&house.plain, &shards::spec(), Partition::WHOLE);
    let mut remote = house.remote("plain", &shards::spec(), Partition::WHOLE);
    let untouched = (local.cursor(), remote.cursor());
    let faults: [SourceError; 2] =
        [local.seek(cursor).expect_err("another's cursor"), remote.seek(cursor).expect_err("another's cursor")];
    assert_eq!((local.cursor(), remote.cursor()), untouched, "a refused cursor changes nothing");
    faults.map(|fault| {
        let local = fault.downcast_ref::<DatasetError>();
        let remote = fault.downcast_ref::<ClientError>();
        match (local, remote) {
            (Some(DatasetError::Cursor(CursorMismatch { field, .. })), _)
            | (_, Some(ClientError::Cursor(CursorMismatch { field, .. }))) => field,
            (Some(DatasetError::Position { .. }), _) | (_, Some(ClientError::CursorStep { .. })) => "step",
            _ => panic!("{fault:?}"),
        }
    })
}

#[test]
fn each_mismatch_is_refused_by_its_own_name() {
    let house = House::new();
    let good = house.plain.start_cursor(&shards::spec());
    let steps = local(&house.plain, &shards::spec(), Partition::WHOLE).steps_per_epoch();
    let of_spec = |spec: BatchSpec| ("spec", house.plain.start_cursor(&spec));
    let spec = shards::spec;
    let cases = [
        ("version", Cursor { version: good.version + 1, ..good.clone() }),
        ("version", Cursor { version: 0, ..good.clone() }),
        ("fingerprint", house.blend.start_cursor(&spec())),
        ("fingerprint", Cursor { fingerprint: Fingerprint([7; 32]), ..good.clone() }),
        of_spec(BatchSpec { global_batch: 7, ..spec() }),
        of_spec(BatchSpec { seed: 12, ..spec() }),
        of_spec(BatchSpec { shuffle: false, ..spec() }),
        of_spec(BatchSpec { image_tokens: 5, ..spec() }),
        of_spec(BatchSpec { max_length: 4095, ..spec() }),
        of_spec(BatchSpec { shuffle_window: 1, ..spec() }),
        of_spec(packed()),
        of_spec(BatchSpec { packing: Some(PackingSpec { max_images: 4, window: 9 }), ..packed() }),
        ("step", Cursor { step: steps + 1, ..good.clone() }),
    ];
    for (name, cursor) in cases {
        assert_eq!(refusals(&house, &cursor), [name; 2], "{cursor:?}");
    }
    // What a run may change: how a step is cut.
    let cut = house.plain.start_cursor(&BatchSpec { micro_batch: 1, ..spec() });
    assert_eq!(cut, good);
}
