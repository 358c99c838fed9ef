//! What does not fit is refused at once and by name.

use std::time::{Duration, Instant};

use vela_client::{ClientError, RemoteSource};
use vela_loader::{LoaderError, ServeConfig, serve};
use vela_proto::ErrorKind;
use vela_runtime::Shutdown;
use vela_types::{BatchSource, BatchSpec, Cursor, Fingerprint};

use crate::loader::{LocalLoader, free_port, loopback};
use crate::shards::{self, Plan};

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}

fn small_loader() -> (tempfile::TempDir, LocalLoader) {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let loader = LocalLoader::start(folder.path());
    (folder, loader)
}

#[test]
fn a_wrong_address_fails_fast_and_says_where() {
    let url = format!("http://{}", loopback(free_port()));
    let started = Instant::now();
    let error = RemoteSource::connect(&url, shards::spec(), 0, 1, 1 << 20).expect_err("nobody there");
    assert!(started.elapsed() < Duration::from_secs(6));
    assert!(matches!(error, ClientError::Unreachable { .. }) && error.to_string().contains(&url), "{error}");
    let error = RemoteSource::connect("http://", shards::spec(), 0, 1, 1 << 20).expect_err("no address");
    assert!(matches!(error, ClientError::Address { .. } | ClientError::Unreachable { .. }), "{error}");
}

#[test]
fn a_spec_that_does_not_fit_is_refused_by_its_field_on_connect() {
    let (_folder, loader) = small_loader();
    let cases = [
        (BatchSpec { global_batch: 0, ..shards::spec() }, 0, 1, "spec.global_batch"),
        (BatchSpec { image_tokens: 0, ..shards::spec() }, 0, 1, "spec.image_tokens"),
        (shards::spec(), 0, 4, "multiple of 4"),
        (shards::spec(), 2, 2, "partition.rank"),
    ];
    for (spec, rank, world, named) in cases {
        let error = RemoteSource::connect(&loader.url(), spec, rank, world, 1 << 20).expect_err(named);
        assert!(chain(&error).contains(named) && !error.is_retryable(), "{}", chain(&error));
    }
}

#[test]
fn a_cursor_of_other_data_or_another_spec_is_refused_by_name() {
    let (_folder, loader) = small_loader();
    let mut source = RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, 1 << 20).expect("a stream");
    let start = source.start_cursor();
    let cases = [
        (Cursor { fingerprint: Fingerprint([1; 32]), ..start.clone() }, "fingerprint"),
        (Cursor { spec: Fingerprint([1; 32]), ..start.clone() }, "spec"),
        (Cursor { version: 2, ..start.clone() }, "version"),
        (Cursor { step: 5, ..start }, "cursor step"),
    ];
    for (cursor, named) in cases {
        let error = source.seek(&cursor).expect_err(named).to_string();
        assert!(error.contains(named), "{error}");
    }
    source.next_batch().expect("a refused cursor changes nothing");
}

#[test]
fn a_damaged_record_ends_the_stream_with_its_name_and_is_not_retried() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan { side: 64, always_image: true, ..Plan::small() });
    let file = folder.path().join("shard-00001.parquet");
    let mut bytes = std::fs::read(&file).expect("a shard");
    for byte in bytes.iter_mut().skip(1000).take(40_000) {
        *byte ^= 0x55;
    }
    std::fs::write(&file, bytes).expect("written");
    let loader = LocalLoader::start(folder.path());
    let mut source = RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, 1 << 20).expect("a stream");
    let error = (0..12).find_map(|_| source.next_batch().err()).expect("damage is found in the first epoch");
    let client_error = error.downcast_ref::<ClientError>().expect("a client error");
    assert!(
        matches!(client_error, ClientError::Service { source, .. } if source.kind == ErrorKind::Damaged),
        "{error}"
    );
    assert!(chain(&*error).contains("shard-00001.parquet"), "{}", chain(&*error));
}

#[test]
fn one_consumer_too_many_is_told_to_wait_and_served_when_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let config = ServeConfig::new(folder.path().display().to_string(), loopback(0));
    let loader = LocalLoader::with(ServeConfig { max_consumers: 1, ..config });
    let connect = || RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, 1 << 20).expect("a source");
    let (mut first, mut second) = (connect(), connect());
    first.next_batch().expect("a batch");
    let waiter = std::thread::spawn(move || second.next_batch().map(|_| second.stats().num_streams));
    std::thread::sleep(Duration::from_millis(300));
    drop(first);
    let num_streams = waiter.join().expect("no panic").expect("a batch");
    assert!(num_streams > 1, "it was refused at first");
}

#[tokio::test]
async fn a_port_in_use_a_missing_set_and_an_open_address_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let shards = folder.path().display().to_string();
    let taken = std::net::TcpListener::bind(loopback(0)).expect("a port");
    let listen = taken.local_addr().expect("its address");
    let fail = async |config| serve(config, Shutdown::new()).await.expect_err("no loader");
    let error = fail(ServeConfig::new(&shards, listen)).await;
    assert!(matches!(error, LoaderError::Bind { .. }) && error.to_string().contains("port is in use"), "{error}");
    let error = fail(ServeConfig::new(format!("{shards}/none"), loopback(0))).await;
    assert!(matches!(error, LoaderError::Dataset { .. }) && error.to_string().contains("/none"), "{error}");
    let error = fail(ServeConfig::new(&shards, "0.0.0.0:0".parse().expect("an address"))).await;
    assert!(matches!(error, LoaderError::RemotePlaintext { .. }), "{error}");
}
