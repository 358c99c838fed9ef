//! What does not fit is refused at once and by name.

use std::time::{Duration, Instant};

use vela_client::{ClientError, RemoteSource};
use vela_loader::{LoaderError, ServeConfig, serve};
use vela_proto::ErrorKind;
use vela_proto::v1::batch_part::Part;
use vela_runtime::Shutdown;
use vela_tests::told;
use vela_types::{BatchSource, BatchSpec, Cursor, Fingerprint, Position};

use crate::calls;
use crate::loader::{LocalLoader, free_port, loopback};
use crate::shards::{self, Plan};

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
        (BatchSpec { micro_batch: 8 << 20, ..shards::spec() }, 0, 1, "spec.micro_batch"),
        (BatchSpec { max_length: 20, ..shards::spec() }, 0, 1, "raise `max_length`"),
        (shards::spec(), 4, 4, "partition.rank"),
        (shards::spec(), 2, 2, "partition.rank"),
    ];
    for (spec, rank, world, named) in cases {
        let error = RemoteSource::connect(&loader.url(), spec, rank, world, 1 << 20).expect_err(named);
        assert!(told(&error).contains(named) && !error.is_retryable(), "{}", told(&error));
    }
}

#[test]
fn a_micro_batch_beyond_the_byte_limit_is_refused_at_every_entrance_before_it_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let config = ServeConfig::new(folder.path().display().to_string(), loopback(0));
    let loader = LocalLoader::with(ServeConfig { max_batch_bytes: 256 << 20, ..config });
    let mut good = RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, 1 << 20).expect("a stream");
    let huge = BatchSpec { global_batch: 1 << 20, micro_batch: 1 << 20, ..shards::spec() };
    let error = RemoteSource::connect(&loader.url(), huge.clone(), 0, 1, 1 << 20).expect_err("refused");
    let ClientError::Service { source: by_describe, .. } = error else { panic!("{error}") };
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let by_stream =
        runtime.block_on(calls::open_stream(&loader.url(), &huge, &good.start_cursor(), 1)).expect_err("refused");
    let by_get = runtime.block_on(calls::get_batch(&loader.url(), &huge)).expect_err("refused");
    for error in [by_describe, by_stream.into(), by_get.into()] {
        assert_eq!(error.kind, ErrorKind::InvalidRequest, "{error}");
        let named = ["1048576 rows", "268435456", "--max-batch-bytes"];
        assert!(named.iter().all(|name| error.message.contains(name)), "{error}");
    }
    good.next_batch().expect("the loader serves on");
}

#[test]
fn a_record_longer_than_the_spec_is_refused_when_a_stream_opens() {
    let (_folder, loader) = small_loader();
    let short = BatchSpec { max_length: 20, ..shards::spec() };
    let source = RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, 1 << 20).expect("a stream");
    let cursor = Cursor { spec: vela_dataset::spec_fingerprint(&short), ..source.start_cursor() };
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let by_stream = runtime.block_on(calls::open_stream(&loader.url(), &short, &cursor, 1)).expect_err("refused");
    let by_get = runtime.block_on(calls::get_batch(&loader.url(), &short)).expect_err("refused");
    for status in [by_stream, by_get] {
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert!(status.message().contains("`made/") && status.message().contains("raise `max_length`"), "{status}");
    }
}

#[test]
fn batches_asked_for_by_position_count_as_consumers_until_they_are_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    // Larger than what connection and sockets take: the server still has parts to give.
    let plan = Plan { num_samples: 24, side: 1200, always_image: true, num_tokens: 5, seed: 3 };
    shards::write(folder.path(), &plan);
    let config = ServeConfig::new(folder.path().display().to_string(), loopback(0));
    let loader = LocalLoader::with(ServeConfig { max_consumers: 2, ..config });
    let spec = BatchSpec { micro_batch: 6, ..shards::spec() };
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let get = || runtime.block_on(calls::get_batch(&loader.url(), &spec));
    let (first, second) = (get().expect("a batch"), get().expect("a batch"));
    let status = get().expect_err("one too many");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(10);
    while get().is_err() {
        assert!(Instant::now() < deadline, "the place of a dropped call comes free");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(second);
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

/// The next epoch begins with its first micro-batch: a later one would leave samples out.
#[test]
fn the_end_of_an_epoch_goes_on_with_no_micro_batch_but_the_first() {
    let (_folder, loader) = small_loader();
    let source = RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, 1 << 20).expect("a stream");
    let steps = source.steps_per_epoch();
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let open = |step, micro| {
        let cursor = Cursor { step, ..source.start_cursor() };
        let first = runtime.block_on(async {
            let opened = calls::open_stream_at(&loader.url(), &shards::spec(), &cursor, micro, 1 << 20).await;
            opened?.parts.message().await
        });
        first.map(|part| match part.and_then(|part| part.part) {
            Some(Part::Header(header)) => header.position.map(|at| (at.epoch, at.step, at.micro)),
            _ => None,
        })
    };
    assert_eq!(open(steps - 1, 2).expect("the last of the epoch"), Some((0, steps - 1, 2)));
    assert_eq!(open(steps, 0).expect("the next epoch"), Some((1, 0, 0)));
    for micro in [1, 2] {
        let status = open(steps, micro).expect_err("samples would be missing");
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert!(status.message().contains("`open.micro`: expected 0"), "{status}");
    }
    for position in [Position { epoch: 0, step: steps, micro: 0 }, Position { epoch: 0, step: 0, micro: 3 }] {
        let got = runtime.block_on(calls::get_batch_at(&loader.url(), &shards::spec(), position));
        assert_eq!(got.expect_err("no such place").code(), tonic::Code::OutOfRange, "{position:?}");
    }
}

#[test]
fn a_damaged_record_ends_the_stream_with_its_name_and_is_not_retried() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan { side: 64, always_image: true, ..Plan::small() });
    shards::damage(&folder.path().join("shard-00001.parquet"));
    let loader = LocalLoader::start(folder.path());
    let mut source = RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, 1 << 20).expect("a stream");
    let error = (0..12).find_map(|_| source.next_batch().err()).expect("damage is found in the first epoch");
    let client_error = error.downcast_ref::<ClientError>().expect("a client error");
    assert!(
        matches!(client_error, ClientError::Service { source, .. } if source.kind == ErrorKind::Damaged),
        "{error}"
    );
    assert!(told(&*error).contains("shard-00001.parquet"), "{}", told(&*error));
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
    assert!(matches!(error, LoaderError::NoShards { .. }) && error.to_string().contains("/none"), "{error}");
    let error = fail(ServeConfig::new(&shards, "0.0.0.0:0".parse().expect("an address"))).await;
    assert!(matches!(error, LoaderError::RemotePlaintext { .. }), "{error}");
}
