//! Consumers and servers that are killed at any moment: the record shows every sample once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vela_dataset::{Dataset, Partition};
use vela_types::SeedStream;

use crate::consumer::{ConsumerProcess, Order};
use crate::loader::{LoaderProcess, free_port, loopback};
use crate::record::Record;
use crate::shards::{self, Plan};
use crate::work::{Consumed, assert_exactly_once, assert_record};
use crate::{note, number_from};

const NUM_SAMPLES: u64 = 61;
const WORLD: u32 = 2;

fn order(folder: &Path, port: u16, rank: u32) -> Order {
    Order {
        urls: format!("http://{}", loopback(port)),
        spec: shards::spec(),
        rank,
        world: WORLD,
        prefetch_bytes: 64 << 10,
        record: folder.join(format!("record-{rank}.json")),
        keeps_ids: true,
        epochs: u64::MAX,
        first_pause: Duration::ZERO,
        pause: Duration::from_millis(3),
    }
}

/// Starts and kills consumer after consumer of one rank; each goes on with the record of those before.
fn kill_again_and_again(order: &Order, kills: u64) {
    let mut draws = SeedStream::named(1, "kills", &order.rank.to_string());
    let mut before = Record::default();
    for kill in 0..kills {
        let mut consumer = ConsumerProcess::start(order);
        std::thread::sleep(Duration::from_millis(draws.below(160)));
        let status = consumer.kill();
        assert_eq!(status.code(), None, "kill {kill} came after its end");
        let record = Record::load(&order.record);
        assert!(record.num_steps() >= before.num_steps(), "kill {kill} lost what was recorded");
        before = record;
    }
}

/// Kills and restarts the loader at `port` until told to stop.
fn keep_killing_servers(shards: &Path, port: u16, stop: &AtomicBool, kills: &AtomicU64) {
    let mut draws = SeedStream::named(2, "kills", "server");
    let mut server = LoaderProcess::start(shards, port);
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(200 + draws.below(600)));
        server.kill();
        kills.fetch_add(1, Ordering::SeqCst);
        server = LoaderProcess::start(shards, port);
    }
}

/// Ends what waits for a flag, however its scope is left.
pub(crate) struct RaiseOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn every_sample_is_recorded_once_by_consumers_that_are_killed_at_random() {
    let kills = number_from("VELA_KILLS", 200);
    let (shards_folder, records) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    shards::write_shards(
        shards_folder.path(),
        &Plan { num_samples: NUM_SAMPLES, side: 32, always_image: false, num_tokens: 5, seed: 9 },
        3,
    );
    let (port, stop, server_kills) = (free_port(), AtomicBool::new(false), AtomicU64::new(0));
    let orders: Vec<Order> = (0..WORLD).map(|rank| order(records.path(), port, rank)).collect();
    let epochs = std::thread::scope(|scope| {
        scope.spawn(|| keep_killing_servers(shards_folder.path(), port, &stop, &server_kills));
        let _stop = RaiseOnDrop(&stop);
        std::thread::scope(|scope| {
            orders.iter().for_each(|order| _ = scope.spawn(|| kill_again_and_again(order, kills / u64::from(WORLD))));
        });
        // Both ranks to the end of the epoch that the faster one is in, with servers still dying.
        let epochs = 1 + orders.iter().map(|order| Record::load(&order.record).epoch()).max().expect("two ranks");
        let last = orders.iter().map(|order| ConsumerProcess::start(&Order { epochs, ..order.clone() }));
        last.collect::<Vec<_>>().into_iter().for_each(ConsumerProcess::finish);
        epochs
    });
    let dataset = Arc::new(Dataset::open(&shards_folder.path().display().to_string()).expect("a set"));
    let found: Vec<Record> = orders.iter().map(|order| Record::load(&order.record)).collect();
    for (rank, record) in (0..).zip(&found) {
        assert_record(record, &dataset, &shards::spec(), Partition { rank, world: WORLD }, epochs);
    }
    for epoch in 0..epochs {
        let of_rank = |record: &Record| Consumed { ids: record.epochs[&epoch].ids.clone(), ..Consumed::default() };
        assert_exactly_once(&found.iter().map(of_rank).collect::<Vec<_>>(), NUM_SAMPLES, 1);
    }
    let steps: u64 = found.iter().map(Record::num_steps).sum();
    assert!(steps > kills / 4 && server_kills.load(Ordering::SeqCst) > 0, "{steps} steps");
    note(&format!(
        "{kills} consumers and {} servers killed, {epochs} epochs, {steps} steps of {WORLD} ranks",
        server_kills.load(Ordering::SeqCst)
    ));
}
