//! Several replicas over the same data: whichever answers, the stream is the same.

use std::time::Duration;

use vela_client::{ClientOptions, RemoteSource};
use vela_dataset::{Dataset, LocalSource, Partition};
use vela_types::BatchSource;

use crate::loader::{LocalLoader, free_port};
use crate::shards;

fn options() -> ClientOptions {
    ClientOptions { prefetch_bytes: 4 << 10, give_up_after: Duration::from_secs(5), ..ClientOptions::default() }
}

#[test]
fn a_stream_goes_on_at_the_next_replica_without_losing_or_repeating_a_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &shards::Plan::small());
    let dataset = std::sync::Arc::new(Dataset::open(&folder.path().display().to_string()).expect("a set"));
    let mut expected = LocalSource::new(dataset, shards::spec(), Partition::WHOLE, 1 << 20).expect("a good spec");
    let mut replicas: Vec<LocalLoader> = (0..4).map(|_| LocalLoader::start(folder.path())).collect();
    let absent = format!("127.0.0.1:{}", free_port());
    let urls: Vec<String> = std::iter::once(absent).chain(replicas.iter().map(LocalLoader::url)).collect();
    let mut source = RemoteSource::connect_with(&urls.join(","), shards::spec(), 0, 1, options()).expect("a replica");
    for number in 0..40 {
        assert_eq!(source.next_batch().expect("a batch"), expected.next_batch().expect("a batch"), "batch {number}");
        // The first of the list is the one that the stream is at.
        if number % 10 == 9 && replicas.len() > 1 {
            replicas.remove(0).stop();
        }
    }
    assert!(source.stats().num_streams >= 4);
    drop(replicas);
    let fault = (0..40).find_map(|_| source.next_batch().err()).expect("nobody is left");
    assert!(fault.to_string().contains("gave up"), "{fault}");
}

#[test]
fn what_no_replica_can_cure_is_told_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &shards::Plan::small());
    let replica = LocalLoader::start(folder.path());
    let options = ClientOptions { dataset: "absent".to_owned(), ..options() };
    let urls = format!("{},{}", replica.url(), replica.url());
    let fault = RemoteSource::connect_with(&urls, shards::spec(), 0, 1, options).expect_err("no such data set");
    assert!(!fault.is_retryable() && format!("{fault:?}").contains("`absent`"), "{fault:?}");
}
