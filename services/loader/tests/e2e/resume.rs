//! A lost server changes nothing that the consumer sees.

use std::sync::Arc;
use std::time::Duration;

use vela_client::{ClientError, ClientOptions, RemoteSource};
use vela_dataset::{Dataset, LocalSource, Partition};
use vela_types::{Batch, BatchSource};

use crate::loader::{LoaderProcess, free_port, loopback};
use crate::shards::{self, Plan};

fn expected(folder: &std::path::Path, num: usize) -> Vec<Batch> {
    let dataset = Arc::new(Dataset::open(&folder.display().to_string()).expect("a data set"));
    let mut source = LocalSource::new(dataset, shards::spec(), Partition::WHOLE, 1 << 20).expect("a source");
    (0..num).map(|_| source.next_batch().expect("a batch")).collect()
}

fn connect(port: u16, options: ClientOptions) -> RemoteSource {
    let url = format!("http://{}", loopback(port));
    RemoteSource::connect_with(&url, shards::spec(), 0, 1, options).expect("a stream")
}

#[test]
fn each_micro_batch_comes_once_and_in_order_while_servers_are_killed() {
    const BATCHES: usize = 60;
    let folder = tempfile::tempdir().expect("a folder");
    // Batches of 250 KB against a budget of 1 MB: every kill hits some half way.
    shards::write(folder.path(), &Plan { side: 200, ..Plan::small() });
    let port = free_port();
    let mut server = LoaderProcess::start(folder.path(), port);
    let options = ClientOptions { prefetch_bytes: 1 << 20, ..ClientOptions::default() };
    let mut source = connect(port, options);
    let mut received = Vec::new();
    for index in 0..BATCHES {
        if [7, 8, 31].contains(&index) {
            server.kill();
            server = LoaderProcess::start(folder.path(), port);
        }
        received.push(source.next_batch().expect("a batch"));
    }
    assert_eq!(received, expected(folder.path(), BATCHES));
    assert!(source.stats().num_streams >= 3, "{:?}", source.stats());
}

#[test]
fn a_consumer_waits_for_a_server_that_comes_back_later() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan { side: 200, ..Plan::small() });
    let port = free_port();
    let mut server = LoaderProcess::start(folder.path(), port);
    let mut source = connect(port, ClientOptions { prefetch_bytes: 1, ..ClientOptions::default() });
    let mut received = vec![source.next_batch().expect("a batch")];
    server.kill();
    let path = folder.path().to_owned();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        LoaderProcess::start(&path, port)
    });
    received.extend((0..9).map(|_| source.next_batch().expect("a batch")));
    let _server = later.join().expect("no panic");
    assert_eq!(received, expected(folder.path(), 10));
}

#[test]
fn a_stream_gives_up_in_time_and_can_be_asked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan { side: 200, ..Plan::small() });
    let port = free_port();
    let mut server = LoaderProcess::start(folder.path(), port);
    let give_up_after = Duration::from_millis(400);
    let options = ClientOptions { prefetch_bytes: 1, give_up_after, ..ClientOptions::default() };
    let mut source = connect(port, options);
    let mut received = vec![source.next_batch().expect("a batch")];
    server.kill();
    let error = loop {
        match source.next_batch() {
            Ok(batch) => received.push(batch),
            Err(error) => break error,
        }
    };
    assert!(matches!(error.downcast_ref::<ClientError>(), Some(ClientError::GaveUp { .. })), "{error}");
    let _server = LoaderProcess::start(folder.path(), port);
    received.extend((0..3).map(|_| source.next_batch().expect("a batch")));
    assert_eq!(received, expected(folder.path(), received.len()));
}

#[test]
fn a_server_that_comes_back_with_other_data_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan { side: 200, ..Plan::small() });
    shards::write(other.path(), &Plan { side: 200, seed: 8, ..Plan::small() });
    let port = free_port();
    let mut server = LoaderProcess::start(folder.path(), port);
    let mut source = connect(port, ClientOptions { prefetch_bytes: 1, ..ClientOptions::default() });
    source.next_batch().expect("a batch");
    server.kill();
    let _server = LoaderProcess::start(other.path(), port);
    let error = (0..5).find_map(|_| source.next_batch().err()).expect("a refusal");
    let named = error.source().map(ToString::to_string).unwrap_or_default();
    assert!(named.contains("fingerprint"), "{error}: {named}");
}
