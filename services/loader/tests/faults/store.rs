//! A loader over a store that refuses, cuts, shortens and delays.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tonic::Code;
use vela_client::{ClientOptions, RemoteSource};
use vela_dataset::{Dataset, Partition};
use vela_shard::{RemoteOptions, RemoteStore};
use vela_tests::s3::{Fault, S3Server};
use vela_types::{BatchSource, BatchSpec, Cursor};

use crate::loader::{LoaderProcess, free_port, loopback, serve_command};
use crate::shards::{self, Plan};
use crate::work::{assert_exactly_once, connect_patiently, consume, expected, wait_until};
use crate::{calls, note};

/// Longer than a test waits for what does not depend on it.
const LATE: Fault = Fault::Delay(Duration::from_secs(15));

/// Writes the set below `set/` of the bucket.
pub(crate) fn upload(server: &S3Server, plan: &Plan, num_shards: u32) {
    let cache = tempfile::tempdir().expect("a folder");
    let options = RemoteOptions { settings: server.settings(), ..RemoteOptions::new(cache.path().to_owned()) };
    let store = RemoteStore::open(&server.url("set"), &options).expect("a store");
    shards::write_to(Arc::new(store), plan, num_shards);
}

/// `loader serve` of that set, with its cache in `cache` and its log beside.
pub(crate) fn serve_remote(server: &S3Server, cache: &Path, port: u16) -> Command {
    let mut serve = serve_command(&server.url("set"), port);
    serve.envs(server.settings().into_iter().map(|(name, value)| (name.to_uppercase(), value)));
    serve.env("VELA_CACHE", cache.join("copies")).env_remove("RUST_LOG");
    serve.stderr(File::options().create(true).append(true).open(cache.join("log")).expect("a log"));
    serve
}

#[test]
fn a_loader_over_a_flaky_store_serves_whole_epochs_and_tells_what_failed() {
    let plan = Plan { num_samples: 90, side: 24, always_image: false, num_tokens: 5, seed: 21 };
    let folder = tempfile::tempdir().expect("a folder");
    shards::write_shards(folder.path(), &plan, 15);
    let dataset = Arc::new(Dataset::open(&folder.path().display().to_string()).expect("a set"));
    let expected = expected(&dataset, &shards::spec(), Partition::WHOLE, 1);
    let server = S3Server::start();
    upload(&server, &plan, 15);
    server.make_flaky(3, 30);
    let mut logs = String::new();
    for life in 0..2 {
        let (cache, port) = (tempfile::tempdir().expect("a folder"), free_port());
        server.strike("GET", &format!("shard-0000{life}"), Fault::FlipBit, 1);
        let _loader = LoaderProcess::spawn(serve_remote(&server, cache.path(), port), port);
        let options = ClientOptions { prefetch_bytes: 32 << 10, ..ClientOptions::default() };
        let url = format!("http://{}", loopback(port));
        let mut source = connect_patiently(&url, &shards::spec(), Partition::WHOLE, &options);
        let consumed = consume(&mut source, 1);
        assert_exactly_once(std::slice::from_ref(&consumed), plan.num_samples, 1);
        assert!(consumed == expected, "other batches than those of the local set");
        logs += &fs::read_to_string(cache.path().join("log")).expect("a log");
    }
    let flakes: BTreeMap<String, u64> = server.flakes();
    assert!(flakes.len() >= 6 && flakes.values().sum::<u64>() >= 15, "{flakes:?}");
    for told in ["status 429", "status 500", "retry", "shard-00000.parquet", "another checksum"] {
        assert!(logs.contains(told), "expected `{told}` in the log of a flaky store ({flakes:?}):\n{logs}");
    }
    note(&format!("faults of the store: {flakes:?}"));
}

#[test]
fn a_store_that_is_away_for_long_is_waited_for_and_named() {
    let plan = Plan { num_samples: 24, side: 24, always_image: false, num_tokens: 5, seed: 22 };
    let server = S3Server::start();
    upload(&server, &plan, 4);
    let (cache, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let mut serve = serve_remote(&server, cache.path(), port);
    serve.env("RUST_LOG", "info");
    let _loader = LoaderProcess::spawn(serve, port);
    // Refused for good by what is known of a denial: no retry of the store's own client cures it.
    server.strike("HEAD", "shard-00002", Fault::Status(403), 3);
    let options = ClientOptions { prefetch_bytes: 1, ..ClientOptions::default() };
    let url = format!("http://{}", loopback(port));
    let mut source = connect_patiently(&url, &shards::spec(), Partition::WHOLE, &options);
    let consumed = consume(&mut source, 1);
    assert_exactly_once(&[consumed], plan.num_samples, 1);
    assert!(source.stats().num_streams > 1, "the stream came back: {:?}", source.stats());
    let log = fs::read_to_string(cache.path().join("log")).expect("a log");
    assert!(log.contains("set/shard-00002.parquet"), "{log}");
}

#[test]
fn what_a_store_says_is_told_to_the_operator_and_to_no_tenant() {
    let plan = Plan { num_samples: 24, side: 24, always_image: false, num_tokens: 5, seed: 26 };
    let (server, cache, port) = (S3Server::start(), tempfile::tempdir().expect("a folder"), free_port());
    upload(&server, &plan, 4);
    server.strike("GET", "shard-0000", Fault::Status(403), usize::MAX);
    let mut serve = serve_remote(&server, cache.path(), port);
    serve.env("RUST_LOG", "warn");
    let _loader = LoaderProcess::spawn(serve, port);
    let url = format!("http://{}", loopback(port));
    let runtime = Runtime::new().expect("an event loop");
    let by_get = runtime.block_on(calls::get_batch(&url, &shards::spec())).expect_err("no shard");
    let by_lookup = calls::lookup(&url, 0).expect_err("no shard");
    let cursor = connect_patiently(&url, &shards::spec(), Partition::WHOLE, &ClientOptions::default()).start_cursor();
    let by_stream = runtime.block_on(async {
        let mut stream = calls::open_stream(&url, &shards::spec(), &cursor, 1 << 20).await.expect("a stream");
        stream.parts.message().await.expect_err("no shard")
    });
    let log = fs::read_to_string(cache.path().join("log")).expect("a log");
    let endpoint = &server.settings()["aws_endpoint_url"];
    for (number, status) in [by_get, by_lookup, by_stream].into_iter().enumerate() {
        let told = status.message();
        assert_eq!(status.code(), Code::Unavailable, "{told}");
        assert!(told.contains("`shard-0000") && told.contains("try again"), "{told}");
        for inside in ["s3://", "bucket", "AWS_", "InternalError", "<Error>", endpoint, "127.0.0.1", "403"] {
            assert!(!told.contains(inside), "`{inside}` in: {told}");
        }
        let report = format!("report {}", number + 1);
        assert!(told.ends_with(&report) && log.contains(&report.replace(' ', "=")), "{told}\n{log}");
    }
    assert!(log.contains("s3://bucket/set/shard-0000") && log.contains("InternalError"), "{log}");
}

#[test]
fn a_replica_whose_store_is_slow_is_left_for_another() {
    let plan = Plan { num_samples: 24, side: 24, always_image: false, num_tokens: 5, seed: 23 };
    let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    shards::write_shards(folder.path(), &plan, 4);
    let server = S3Server::start();
    upload(&server, &plan, 4);
    server.strike("GET", "shard-00002", LATE, usize::MAX);
    let ports = [free_port(), free_port()];
    let _slow = LoaderProcess::spawn(serve_remote(&server, cache.path(), ports[0]), ports[0]);
    let _quick = LoaderProcess::start(folder.path(), ports[1]);
    let stall_after = Duration::from_millis(400);
    let options = ClientOptions { prefetch_bytes: 16 << 10, stall_after, ..ClientOptions::default() };
    let urls = ports.map(|port| format!("http://{}", loopback(port))).join(",");
    let started = Instant::now();
    let mut source = connect_patiently(&urls, &shards::spec(), Partition::WHOLE, &options);
    let consumed = consume(&mut source, 2);
    assert_exactly_once(&[consumed], plan.num_samples, 2);
    assert!(source.stats().num_streams >= 2, "{:?}", source.stats());
    assert!(started.elapsed() < Duration::from_secs(10), "the slow store was waited for");
}

#[test]
fn lookups_that_wait_for_a_store_hold_up_nobody_who_connects() {
    let plan = Plan { num_samples: 24, side: 24, always_image: false, num_tokens: 5, seed: 24 };
    let (server, cache, port) = (S3Server::start(), tempfile::tempdir().expect("a folder"), free_port());
    upload(&server, &plan, 6);
    server.take_requests();
    server.strike("GET", "shard-", LATE, usize::MAX);
    let url = format!("http://{}", loopback(port));
    std::thread::scope(|scope| {
        // Ended with this block, however it is left: the lookups end with it.
        let _loader = LoaderProcess::spawn(serve_remote(&server, cache.path(), port), port);
        for shard in 0..6 {
            let url = &url;
            scope.spawn(move || calls::lookup(url, 4 * shard).expect_err("its loader is killed"));
        }
        wait_until("four lookups fetch", || server.count_requests("GET", "shard-") >= 4);
        let options = ClientOptions { give_up_after: Duration::from_secs(5), ..ClientOptions::default() };
        let source = RemoteSource::connect_with(&url, shards::spec(), 0, 1, options).expect("a description");
        assert_eq!(source.info().num_samples, plan.num_samples);
        assert_eq!(server.count_requests("GET", "shard-"), 4, "the other two wait for their turn");
    });
}

#[test]
fn a_slow_shard_holds_up_only_those_who_read_it() {
    /// More than may fetch at once.
    const WAITING: usize = 9;
    let plan = Plan { num_samples: 48, side: 24, always_image: false, num_tokens: 5, seed: 25 };
    let (server, cache, port) = (S3Server::start(), tempfile::tempdir().expect("a folder"), free_port());
    upload(&server, &plan, 4);
    server.take_requests();
    server.strike("GET", "shard-00002", LATE, usize::MAX);
    let _loader = LoaderProcess::spawn(serve_remote(&server, cache.path(), port), port);
    let (url, spec) = (format!("http://{}", loopback(port)), BatchSpec { shuffle: false, ..shards::spec() });
    let runtime = Runtime::new().expect("an event loop");
    let first_batch = || {
        runtime.block_on(async {
            let got = tokio::time::timeout(Duration::from_secs(5), calls::get_batch(&url, &spec)).await;
            got.expect("not held up").expect("a batch of the first shard")
        })
    };
    first_batch();
    // Twelve samples of a shard are two steps: the fifth is the first to read the third shard.
    let cursor = connect_patiently(&url, &spec, Partition::WHOLE, &ClientOptions::default()).start_cursor();
    let cursor = Cursor { step: 4, ..cursor };
    let open = || runtime.block_on(calls::open_stream(&url, &spec, &cursor, 1)).expect("a stream");
    let waiting: Vec<_> = (0..WAITING).map(|_| open()).collect();
    wait_until("the shard is asked for", || server.count_requests("GET", "shard-00002") >= 1);
    std::thread::sleep(Duration::from_millis(200));
    first_batch();
    assert_eq!(server.count_requests("GET", "shard-00002"), 1, "{} wait for one fetch", waiting.len());
}
