//! Connections that break, stall, end half-way or garble: what is consumed is what the data set says, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use vela_client::ClientOptions;
use vela_dataset::{Dataset, Partition};
use vela_types::BatchSpec;

use crate::loader::{LoaderProcess, free_port};
use crate::proxy::{Fault, FaultProxy, Weather};
use crate::shards::{self, Plan};
use crate::work::{Consumed, assert_exactly_once, connect_patiently, consume, expected};

const NUM_SAMPLES: u64 = 47;

/// Batches of some 25 KB.
fn plan() -> Plan {
    Plan { num_samples: NUM_SAMPLES, side: 64, always_image: false, num_tokens: 5, seed: 5 }
}

/// Two loader processes over one data set, each behind a proxy.
struct House {
    dataset: Arc<Dataset>,
    proxies: [FaultProxy; 2],
    _servers: Vec<LoaderProcess>,
    _folder: tempfile::TempDir,
}

impl House {
    fn new(faults: &[Fault], seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        shards::write(folder.path(), &plan());
        let dataset = Arc::new(Dataset::open(&folder.path().display().to_string()).expect("a data set"));
        let ports = [free_port(), free_port()];
        let servers = ports.iter().map(|&port| LoaderProcess::start(folder.path(), port)).collect();
        let proxies = FaultProxy::pair(ports, &Weather { seed, faults: faults.to_vec(), most_bytes: 256 << 10 });
        Self { dataset, proxies, _servers: servers, _folder: folder }
    }

    fn urls(&self) -> String {
        self.proxies.each_ref().map(FaultProxy::url).join(",")
    }

    fn struck(&self) -> BTreeMap<&'static str, u64> {
        let mut struck = BTreeMap::new();
        for (name, count) in self.proxies.iter().flat_map(FaultProxy::struck) {
            *struck.entry(name).or_default() += count;
        }
        struck
    }

    /// All ranks of `world` at once, each to the end of `epochs` epochs.
    fn consume(&self, world: u32, epochs: u64) -> Vec<Consumed> {
        let options = options();
        let (urls, options) = (&self.urls(), &options);
        std::thread::scope(|scope| {
            let ranks = (0..world).map(|rank| {
                scope.spawn(move || {
                    let partition = Partition { rank, world };
                    let mut source = connect_patiently(urls, &spec(), partition, options);
                    consume(&mut source, epochs)
                })
            });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        })
    }

    fn assert_all_as_in_process(&self, world: u32, epochs: u64) {
        let consumed = self.consume(world, epochs);
        for (rank, found) in (0..).zip(&consumed) {
            let expected = expected(&self.dataset, &spec(), Partition { rank, world }, epochs);
            assert_eq!(found.ids, expected.ids, "rank {rank} of {world}");
            assert!(found.digests == expected.digests, "rank {rank} of {world}: other payload");
        }
        assert_exactly_once(&consumed, NUM_SAMPLES, epochs);
    }
}

fn spec() -> BatchSpec {
    shards::spec()
}

fn options() -> ClientOptions {
    ClientOptions {
        prefetch_bytes: 128 << 10,
        keepalive: Duration::from_millis(400),
        connect_timeout: Duration::from_secs(1),
        ..ClientOptions::default()
    }
}

#[test]
fn every_rank_gets_each_batch_once_through_connections_that_break() {
    let faults = [
        Fault::Reset,
        Fault::Reset,
        Fault::Close,
        Fault::HalfClose,
        Fault::Stall(Duration::from_millis(120)),
        Fault::Delay(Duration::from_millis(3)),
        Fault::None,
    ];
    let house = House::new(&faults, 40);
    let has_met_all = |struck: &BTreeMap<&'static str, u64>| {
        ["reset", "close", "half close", "stall", "delay"]
            .iter()
            .all(|name| struck.get(name).is_some_and(|&count| count >= 5))
    };
    let worlds = [1, 2, 3, 5];
    worlds.into_iter().for_each(|world| house.assert_all_as_in_process(world, 6));
    // How many connections that takes, and so what they meet, depends on how fast the machine is.
    for world in worlds.into_iter().cycle().take(12) {
        if !has_met_all(&house.struck()) {
            house.assert_all_as_in_process(world, 6);
        }
    }
    assert!(has_met_all(&house.struck()), "{:?}", house.struck());
}

#[test]
fn a_connection_that_goes_silent_is_given_up_and_replaced() {
    let house = House::new(&[Fault::Swallow, Fault::Swallow, Fault::None], 7);
    house.assert_all_as_in_process(2, 4);
    let struck = house.struck();
    assert!(struck.get("swallow").is_some_and(|&count| count >= 2), "{struck:?}");
}
