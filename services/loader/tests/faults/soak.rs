//! Everything at once for as long as `VELA_SOAK_SECONDS` says: a flaky store, connections that break, servers and consumers
//! killed at random, one consumer slow. Afterwards every sample was consumed once and memory is flat.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use vela_dataset::{Dataset, Partition};
use vela_tests::s3::S3Server;
use vela_types::SeedStream;

use crate::consumer::{ConsumerProcess, Order};
use crate::kills::RaiseOnDrop;
use crate::loader::{LoaderProcess, free_port};
use crate::process::own_bytes;
use crate::proxy::{Fault, FaultProxy, Weather};
use crate::record::Record;
use crate::shards::{self, Plan};
use crate::store::{serve_remote, upload};
use crate::work::assert_record;
use crate::{note, number_from};

/// Ranks of the run; one more consumer, slow, has the data for itself.
const WORLD: u32 = 3;
const PLAN: Plan = Plan { num_samples: 600, side: 32, always_image: false, num_tokens: 5, seed: 77 };
const NUM_SHARDS: u32 = 12;

#[derive(Default)]
struct Counts {
    server_kills: AtomicU64,
    consumer_kills: AtomicU64,
    emptied_caches: AtomicU64,
}

struct Soak {
    folder: tempfile::TempDir,
    store: S3Server,
    ports: [u16; 2],
    stop: AtomicBool,
    counts: Counts,
    length: Duration,
}

/// Memory of a process that lives through all of it, once a second.
struct Watched {
    name: &'static str,
    samples: Vec<u64>,
}

impl Soak {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_server(&self, number: usize) -> LoaderProcess {
        let cache = self.path(&format!("server-{number}"));
        fs::create_dir_all(&cache).expect("a folder");
        LoaderProcess::spawn(serve_remote(&self.store, &cache, self.ports[number]), self.ports[number])
    }

    /// A time to the next kill: long runs meet as many as fit, short ones some.
    fn pause(&self, draws: &mut SeedStream, shortest: u64, spread: u64) {
        let end = Instant::now() + Duration::from_millis(shortest + draws.below(spread));
        while Instant::now() < end && !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills and restarts the second server; every third time its copies of the shards are gone, too.
    fn kill_servers(&self) {
        let mut draws = SeedStream::named(3, "soak", "servers");
        let mut server = self.start_server(1);
        while !self.stop.load(Ordering::SeqCst) {
            self.pause(&mut draws, 1000, 4000);
            server.kill();
            if draws.below(3) == 0 {
                let copies = self.path("server-1").join("copies");
                fs::remove_dir_all(&copies).expect("its copies");
                self.counts.emptied_caches.fetch_add(1, Ordering::SeqCst);
            }
            self.counts.server_kills.fetch_add(1, Ordering::SeqCst);
            server = self.start_server(1);
        }
    }

    /// Kills and restarts a consumer.
    fn kill_consumer(&self, order: &Order) {
        let mut draws = SeedStream::named(4, "soak", &order.record.display().to_string());
        while !self.stop.load(Ordering::SeqCst) {
            let mut consumer = ConsumerProcess::start(order);
            self.pause(&mut draws, 300, 6000);
            let status = consumer.kill();
            assert_eq!(status.code(), None, "the consumer ended by itself: {status}");
            self.counts.consumer_kills.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn watch(&self, name: &'static str, id: u32) -> Watched {
        let mut samples = Vec::new();
        while !self.stop.load(Ordering::SeqCst) {
            samples.push(own_bytes(id).unwrap_or_else(|| panic!("the {name} is gone")));
            let tick = if self.length > Duration::from_secs(60) { 1000 } else { 200 };
            std::thread::sleep(Duration::from_millis(tick));
        }
        Watched { name, samples }
    }

    fn order(&self, urls: &str, name: &str, (rank, world): (u32, u32), pause: Duration) -> Order {
        Order {
            urls: urls.to_owned(),
            spec: shards::spec(),
            rank,
            world,
            prefetch_bytes: 64 << 10,
            record: self.path(&format!("{name}.json")),
            keeps_ids: false,
            epochs: u64::MAX,
            first_pause: Duration::ZERO,
            pause,
        }
    }

    /// All of it until the time is over. Gives what was watched.
    fn run(&self, orders: &[Order], steady: &LoaderProcess) -> Vec<Watched> {
        std::thread::scope(|scope: &Scope<'_, '_>| {
            let _stop = RaiseOnDrop(&self.stop);
            scope.spawn(|| self.kill_servers());
            orders[1..].iter().for_each(|order| _ = scope.spawn(|| self.kill_consumer(order)));
            let survivor = ConsumerProcess::start(&orders[0]);
            let (server, consumer) = (steady.0.id(), survivor.id());
            let watches = [
                scope.spawn(move || self.watch("server", server)),
                scope.spawn(move || self.watch("consumer", consumer)),
            ];
            std::thread::sleep(self.length);
            self.stop.store(true, Ordering::SeqCst);
            let watched = watches.into_iter().map(|watch| watch.join().expect("no panic")).collect();
            drop(survivor);
            watched
        })
    }
}

impl Watched {
    /// Means of the first and the last third, the start of the process left out.
    fn means(&self) -> (u64, u64) {
        let settled = &self.samples[self.samples.len() / 5..];
        let third = (settled.len() / 3).max(1);
        let mean = |part: &[u64]| part.iter().sum::<u64>() / part.len() as u64;
        (mean(&settled[..third]), mean(&settled[settled.len() - third..]))
    }

    fn assert_flat(&self) {
        let (first, last) = self.means();
        note(&format!(
            "memory of the {}: {:.1} MiB at the start, {:.1} MiB in the first third, {:.1} MiB in the last, {:.1} MiB at most",
            self.name,
            mebibytes(self.samples[0]),
            mebibytes(first),
            mebibytes(last),
            mebibytes(self.samples.iter().copied().max().unwrap_or(0))
        ));
        assert!(last <= first + first / 10 + (2 << 20), "the {} grew from {first} to {last} bytes", self.name);
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn weather(seed: u64) -> Weather {
    let faults = vec![
        Fault::None,
        Fault::Reset,
        Fault::Close,
        Fault::HalfClose,
        Fault::Stall(Duration::from_millis(500)),
        Fault::Delay(Duration::from_millis(2)),
        Fault::Swallow,
    ];
    Weather { seed, faults, most_bytes: 8 << 20 }
}

fn assert_all_consumed_once(dataset: &Arc<Dataset>, orders: &[Order], epochs: u64) -> u64 {
    let mut samples = 0;
    for order in orders {
        let record = Record::load(&order.record);
        let partition = Partition { rank: order.rank, world: order.world };
        // Rank by rank each step is what the data set gives: together every sample once per epoch.
        let own = if order.world == WORLD { epochs } else { record.epoch() };
        assert_record(&record, dataset, &order.spec, partition, own);
        samples += record.epochs.values().map(|epoch| epoch.num_ids).sum::<u64>();
    }
    let of_ranks = |epoch: u64| {
        let ranks = orders.iter().filter(|order| order.world == WORLD);
        ranks.map(|order| Record::load(&order.record).epochs[&epoch].num_ids).sum::<u64>()
    };
    for epoch in [0, epochs - 1] {
        assert_eq!(of_ranks(epoch), PLAN.num_samples, "epoch {epoch}");
    }
    samples
}

fn prepare(folder: &Path) -> Arc<Dataset> {
    shards::write_shards(folder, &PLAN, NUM_SHARDS);
    Arc::new(Dataset::open(&folder.display().to_string()).expect("a set"))
}

#[test]
fn a_soak_ends_with_every_sample_consumed_once_and_flat_memory() {
    let length = Duration::from_secs(number_from("VELA_SOAK_SECONDS", 12));
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = prepare(&folder.path().join("shards"));
    let store = S3Server::start();
    upload(&store, &PLAN, NUM_SHARDS);
    store.make_flaky(8, 20);
    let (ports, stop) = ([free_port(), free_port()], AtomicBool::new(false));
    let soak = Soak { folder, store, ports, stop, counts: Counts::default(), length };
    let steady = soak.start_server(0);
    let proxies = FaultProxy::pair(ports, &weather(50));
    let urls = proxies.each_ref().map(FaultProxy::url);
    let both = |first: usize| format!("{},{}", urls[first], urls[1 - first]);
    let brisk = Duration::from_millis(5);
    let mut orders: Vec<Order> = (0..WORLD)
        .map(|rank| soak.order(&both(rank as usize % 2), &format!("rank-{rank}"), (rank, WORLD), brisk))
        .collect();
    orders.push(soak.order(&both(1), "slow", (0, 1), Duration::from_millis(150)));
    let watched = soak.run(&orders, &steady);
    proxies.iter().for_each(|proxy| proxy.set_calm(true));
    soak.store.heal();
    // All to the end of an epoch: the ranks to that of the fastest, the slow one to that of its own.
    let epoch = |order: &Order| Record::load(&order.record).epoch() + 1;
    let epochs = orders[..WORLD as usize].iter().map(epoch).max().expect("three ranks");
    let goal = |order: &Order| if order.world == WORLD { epochs } else { epoch(order) };
    let last = orders.iter().map(|order| Order { epochs: goal(order), pause: Duration::ZERO, ..order.clone() });
    let last: Vec<ConsumerProcess> = last.map(|order| ConsumerProcess::start(&order)).collect();
    last.into_iter().for_each(ConsumerProcess::finish);
    let samples = assert_all_consumed_once(&dataset, &orders, epochs);
    let count = |number: &AtomicU64| number.load(Ordering::SeqCst);
    let Counts { server_kills, consumer_kills, emptied_caches } = &soak.counts;
    note(&format!(
        "{} s: {epochs} epochs of {WORLD} ranks, {samples} samples in all, {} consumers and {} servers killed, {} caches \
         emptied",
        length.as_secs(),
        count(consumer_kills),
        count(server_kills),
        count(emptied_caches)
    ));
    proxies.iter().for_each(|proxy| note(&format!("a proxy's connections: {:?}", proxy.struck())));
    note(&format!("faults of the store: {:?}", soak.store.flakes()));
    assert!(count(server_kills) > 0 && count(consumer_kills) > 0);
    assert!(proxies.iter().any(|proxy| proxy.struck().len() >= 3) && !soak.store.flakes().is_empty());
    watched.iter().for_each(Watched::assert_flat);
}
