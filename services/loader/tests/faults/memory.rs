//! Memory and speed beside consumers that pause.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vela_client::{ClientOptions, RemoteSource};
use vela_dataset::Partition;
use vela_proto::v1::batch_part::Part;
use vela_tests::s3::S3Server;
use vela_types::{BatchSource, BatchSpec};

use crate::calls::{self, OpenStream};
use crate::consumer::{ConsumerProcess, Order};
use crate::kills::RaiseOnDrop;
use crate::loader::{LoaderProcess, free_port, loopback, serve_command};
use crate::process::own_bytes;
use crate::record::Record;
use crate::shards::{self, Plan};
use crate::store::{serve_remote, upload};
use crate::work::{self, connect_patiently};
use crate::{note, number_from};

const MIB: u64 = 1 << 20;

/// What a test takes alone, so that one does not slow the other's peers.
static ALONE: Mutex<()> = Mutex::new(());

fn own(id: u32) -> u64 {
    own_bytes(id).expect("a living process")
}

/// The largest of what `id` takes during `time`.
fn watch(id: u32, time: Duration) -> u64 {
    let end = Instant::now() + time;
    let mut most = 0;
    while Instant::now() < end {
        most = most.max(own(id));
        std::thread::sleep(Duration::from_millis(50));
    }
    most
}

fn server(shards: &Path, port: u16, limits: &[&str]) -> LoaderProcess {
    let mut serve = serve_command(&shards.display().to_string(), port);
    serve.args(limits);
    LoaderProcess::spawn(serve, port)
}

/// A set in a bucket, and a cache that has all of it: a loader gathers its batches in memory of its own, instead of mapping pixels, and
/// fetches nothing meanwhile.
struct Bucket {
    server: S3Server,
    cache: tempfile::TempDir,
}

impl Bucket {
    fn new(plan: &Plan) -> Self {
        let bucket = Self { server: S3Server::start(), cache: tempfile::tempdir().expect("a folder") };
        upload(&bucket.server, plan, 2);
        let port = free_port();
        let _loader = bucket.serve(port, &[]);
        let url = format!("http://{}", loopback(port));
        let mut source = connect_patiently(&url, &shards::spec(), Partition::WHOLE, &ClientOptions::default());
        work::consume(&mut source, 1);
        bucket
    }

    fn serve(&self, port: u16, limits: &[&str]) -> LoaderProcess {
        let mut serve = serve_remote(&self.server, self.cache.path(), port);
        serve.args(limits);
        LoaderProcess::spawn(serve, port)
    }
}

#[test]
fn a_paused_consumer_keeps_server_and_client_within_their_budgets() {
    let _alone = ALONE.lock();
    let pause = Duration::from_secs(number_from("VELA_PAUSE_SECONDS", 4));
    let folder = tempfile::tempdir().expect("a folder");
    // Batches of 1.3 MiB, 40 of them an epoch: much more than what either side may hold.
    let plan = Plan { num_samples: 160, side: 336, always_image: true, num_tokens: 8, seed: 4 };
    let bucket = Bucket::new(&plan);
    let spec = BatchSpec { global_batch: 4, micro_batch: 4, ..shards::spec() };
    let port = free_port();
    // `docs/protocol.md`, credit: three batches of four images and little text. One more than those does not fit.
    let server_budget = 3 * (4 * 3 * 336 * 336) + MIB;
    let client_budget = 16 * MIB;
    let loader = bucket.serve(port, &["--max-batch-bytes", "2MiB", "--max-consumers", "1"]);
    std::thread::sleep(Duration::from_millis(300));
    let idle_server = own(loader.0.id());
    let order = Order {
        urls: format!("http://{}", loopback(port)),
        spec,
        rank: 0,
        world: 1,
        prefetch_bytes: client_budget as usize,
        record: folder.path().join("record.json"),
        keeps_ids: true,
        epochs: 2,
        first_pause: pause,
        pause: Duration::ZERO,
    };
    let consumer = ConsumerProcess::start(&order);
    let started = Instant::now();
    while Record::load(&order.record).num_steps() == 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "no first step");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Both fill up first; what counts is that they stop.
    std::thread::sleep(pause / 4);
    let early = [loader.0.id(), consumer.id()].map(|id| watch(id, pause / 8));
    let late = [loader.0.id(), consumer.id()].map(|id| watch(id, pause / 8));
    assert_eq!(Record::load(&order.record).num_steps(), 1, "still paused");
    note(&format!(
        "own memory in KiB: server idle {}, paused {:?}; client paused {:?}",
        idle_server >> 10,
        (early[0] >> 10, late[0] >> 10),
        (early[1] >> 10, late[1] >> 10)
    ));
    assert!(late[0] <= idle_server + server_budget, "server: {late:?} over {idle_server}");
    assert!(late[1] <= client_budget * 11 / 10 + CLIENT_BASE, "client: {late:?}");
    for (early, late) in early.into_iter().zip(late) {
        assert!(late <= early + MIB, "grew from {early} to {late} while paused");
    }
    consumer.finish();
    let record = Record::load(&order.record);
    assert!(record.epochs.values().all(|epoch| epoch.num_ids == plan.num_samples), "{record:?}");
}

/// What a client process takes without any batch.
const CLIENT_BASE: u64 = 6 * MIB;

/// Takes batches until told to stop, and counts them.
fn consume(source: &mut RemoteSource, pause: Duration, stop: &AtomicBool, counted: &AtomicU64) {
    while !stop.load(Ordering::SeqCst) {
        source.next_batch().expect("a batch");
        counted.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(pause);
    }
}

#[test]
fn seven_fast_consumers_keep_their_rate_beside_a_slow_one() {
    const FAST: u32 = 7;
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().expect("a folder");
    let plan = Plan { num_samples: 96, side: 96, always_image: true, num_tokens: 8, seed: 5 };
    shards::write(folder.path(), &plan);
    let port = free_port();
    let _loader = server(folder.path(), port, &[]);
    let options = ClientOptions { prefetch_bytes: 512 << 10, ..ClientOptions::default() };
    let connect = |rank| {
        let partition = Partition { rank, world: FAST + 1 };
        connect_patiently(&format!("http://{}", loopback(port)), &shards::spec(), partition, &options)
    };
    let mut slow = connect(FAST);
    let (stop, counted, of_slow) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let ratio = std::thread::scope(|scope| {
        let _stop = RaiseOnDrop(&stop);
        for rank in 0..FAST {
            let (mut source, stop, counted) = (connect(rank), &stop, &counted);
            scope.spawn(move || consume(&mut source, Duration::ZERO, stop, counted));
        }
        let round = || {
            let before = counted.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(500));
            counted.load(Ordering::SeqCst) - before
        };
        round();
        let (mut without, mut with) = (0, 0);
        // Alternating, so that what else the machine does weighs on both; more rounds where it does much.
        for number in 1..=8 {
            without += round();
            let pauses = AtomicBool::new(false);
            with += std::thread::scope(|scope| {
                let _stop = RaiseOnDrop(&pauses);
                scope.spawn(|| consume(&mut slow, Duration::from_millis(100), &pauses, &of_slow));
                round()
            });
            if number >= 3 && with * 10 >= without * 9 {
                break;
            }
        }
        with as f64 / without as f64
    });
    note(&format!("fast consumers keep {ratio:.2} of their rate; the slow one took {of_slow:?} batches"));
    assert!(ratio >= 0.9 && of_slow.load(Ordering::SeqCst) > 0, "{ratio:.2} of their rate");
}

#[test]
fn idle_streams_cost_little() {
    const STREAMS: u64 = 64;
    const SIDE: u64 = 148;
    /// Two images, and little else.
    const BATCH: u64 = 2 * 3 * SIDE * SIDE;
    /// All of them together: each its connection, its session and three batches.
    const LIMIT: u64 = STREAMS * (3 * BATCH + (64 << 10));
    let _alone = ALONE.lock();
    let bucket = Bucket::new(&Plan { side: SIDE as u32, always_image: true, ..Plan::small() });
    let port = free_port();
    let loader = bucket.serve(port, &["--max-consumers", "65"]);
    let url = format!("http://{}", loopback(port));
    let cursor = connect_patiently(&url, &shards::spec(), Partition::WHOLE, &ClientOptions::default()).start_cursor();
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let open = || runtime.block_on(calls::open_stream(&url, &shards::spec(), &cursor, 1)).expect("a stream");
    let _first = open();
    std::thread::sleep(Duration::from_millis(300));
    let before = own(loader.0.id());
    let mut streams: Vec<_> = (0..STREAMS).map(|_| open()).collect();
    std::thread::sleep(Duration::from_millis(700));
    let cost = own(loader.0.id()).saturating_sub(before);
    for OpenStream { parts, .. } in &mut streams {
        let header = runtime.block_on(parts.message()).expect("a part");
        assert!(header.is_some_and(|part| matches!(part.part, Some(Part::Header(_)))), "headers are free");
        let idle = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(5), parts.message()).await });
        assert!(idle.is_err(), "a stream that is open, and waits for credit: {idle:?}");
    }
    note(&format!("{STREAMS} idle streams cost {} KiB", cost >> 10));
    assert!(cost < LIMIT, "{cost} bytes");
}
