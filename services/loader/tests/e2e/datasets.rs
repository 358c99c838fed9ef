//! Several data sets under one roof: by name, blended, packed, and back to where a sample came from.

use vela_client::{ClientOptions, RemoteSource};
use vela_dataset::{Dataset, LocalSource, Partition};
use vela_loader::{DatasetConfig, ServeConfig};
use vela_types::{BatchSource, BatchSpec, PackingSpec};

use crate::loader::{LocalLoader, loopback};
use crate::shards;

fn write(num_samples: u64, seed: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = shards::Plan { num_samples, side: 8, always_image: false, num_tokens: 12, seed };
    shards::write(folder.path(), &plan);
    folder
}

fn parse(text: &str) -> DatasetConfig {
    text.parse().expect("a data set")
}

fn options(dataset: &str) -> ClientOptions {
    ClientOptions { dataset: dataset.to_owned(), prefetch_bytes: 1 << 20, ..ClientOptions::default() }
}

#[test]
fn named_and_blended_data_sets_come_as_they_are_in_process() {
    let (one, other) = (write(20, 1), write(14, 2));
    let (one, other) = (one.path().display(), other.path().display());
    let datasets = vec![parse(&format!("train={one},{other}*0.5")), parse(&format!("val={other}"))];
    let blend = Dataset::open_blend(&datasets[0].parts).expect("a blend");
    let loader = LocalLoader::with(ServeConfig { datasets, ..ServeConfig::new("", loopback(0)) });
    let packed =
        BatchSpec { packing: Some(PackingSpec { max_images: 4, window: 8 }), max_length: 128, ..shards::spec() };
    let val = Dataset::open(&other.to_string()).expect("a set");
    for (name, dataset) in [("train", std::sync::Arc::new(blend)), ("val", std::sync::Arc::new(val))] {
        for spec in [shards::spec(), packed.clone(), BatchSpec { shuffle_window: 1, ..shards::spec() }] {
            for (rank, world) in [(0, 1), (1, 4)] {
                let mut remote = RemoteSource::connect_with(&loader.url(), spec.clone(), rank, world, options(name))
                    .expect("a data set of that name");
                let partition = Partition { rank, world };
                let mut local =
                    LocalSource::new(dataset.clone(), spec.clone(), partition, 1 << 20).expect("a good spec");
                assert_eq!((remote.info(), remote.steps_per_epoch()), (local.info(), local.steps_per_epoch()));
                for _ in 0..2 * local.steps_per_epoch() {
                    assert_eq!(remote.next_batch().expect("a batch"), local.next_batch().expect("a batch"));
                }
            }
        }
    }
    let unnamed = RemoteSource::connect_with(&loader.url(), shards::spec(), 0, 1, options("")).expect_err("which?");
    let told = format!("{:?}", unnamed);
    assert!(told.contains("`train`, `val`") && !unnamed.is_retryable(), "{told}");
}

#[test]
fn a_sample_of_a_batch_is_found_in_its_shard() {
    let folder = write(20, 1);
    let loader = LocalLoader::start(folder.path());
    let mut source = RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, 1 << 20).expect("a loader");
    let batch = source.next_batch().expect("a batch");
    let slot = &batch.samples[0];
    let found = crate::calls::lookup(&loader.url(), slot.index).expect("a record");
    assert_eq!(found.id, slot.id);
    assert!(found.file.ends_with(".parquet") && found.shards == folder.path().display().to_string(), "{found:?}");
    let beyond = crate::calls::lookup(&loader.url(), 20).expect_err("no such record");
    assert_eq!(beyond.code(), tonic::Code::OutOfRange);
}
