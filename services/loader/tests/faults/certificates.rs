//! Certificates that are replaced while streams run, and bits that turn on encrypted and on open connections.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vela_client::{ClientOptions, RemoteSource, TlsOptions, VerifyImages};
use vela_dataset::{Dataset, Partition};
use vela_loader::{ServeConfig, TlsFiles};
use vela_types::BatchSource;

use crate::authority::Authority;
use crate::loader::{LocalLoader, loopback};
use crate::proxy::{Fault, FaultProxy, Weather};
use crate::shards::{self, Plan};
use crate::work::{connect_patiently, consume, digest, expected, local, wait_until};

const RELOAD_EVERY: Duration = Duration::from_millis(50);

struct House {
    folder: tempfile::TempDir,
    dataset: Arc<Dataset>,
}

impl House {
    fn new(plan: &Plan) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        shards::write(&folder.path().join("shards"), plan);
        let dataset = Arc::new(Dataset::open(&Self::shards(folder.path())).expect("a set"));
        Self { folder, dataset }
    }

    fn shards(folder: &Path) -> String {
        folder.join("shards").display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("a file");
    }

    fn loader(&self) -> LocalLoader {
        let [certificate, key] = ["server.pem", "server.key"].map(|name| self.folder.path().join(name));
        let tls = TlsFiles { certificate, key, client_authority: None, reload_every: RELOAD_EVERY };
        LocalLoader::with(ServeConfig {
            tls: Some(tls),
            ..ServeConfig::new(Self::shards(self.folder.path()), loopback(0))
        })
    }
}

fn trusting(authority: &Authority) -> ClientOptions {
    let tls = TlsOptions { authorities: Some(authority.pem()), identity: None };
    ClientOptions {
        tls,
        prefetch_bytes: 1,
        keepalive: Duration::from_millis(500),
        connect_timeout: Duration::from_secs(2),
        ..ClientOptions::default()
    }
}

/// Whether a new connection trusts what the loader shows.
fn is_trusted(url: &str, authority: &Authority) -> bool {
    RemoteSource::connect_with(url, shards::spec(), 0, 1, trusting(authority)).is_ok()
}

#[test]
fn certificates_are_replaced_without_dropping_a_stream() {
    let house = House::new(&Plan::small());
    let [first, second] = [Authority::new(), Authority::new()];
    let (certificate, key, _) = first.issue("localhost");
    house.write("server.pem", &certificate);
    house.write("server.key", &key);
    let loader = house.loader();
    let url = format!("https://localhost:{}", loader.addr().port());
    let mut stream = connect_patiently(&url, &shards::spec(), Partition::WHOLE, &trusting(&first));
    let mut expected = local(&house.dataset, &shards::spec(), Partition::WHOLE);
    let mut go_on = |batches: usize| {
        for _ in 0..batches {
            assert_eq!(stream.next_batch().expect("a batch"), expected.next_batch().expect("a batch"));
        }
        stream.stats().num_streams
    };
    go_on(5);
    let (certificate, key, _) = second.issue("localhost");
    // Between the two files the pair does not fit: the old one is kept.
    house.write("server.pem", &certificate);
    std::thread::sleep(3 * RELOAD_EVERY);
    assert!(is_trusted(&url, &first) && is_trusted(&url, &first) && !is_trusted(&url, &second));
    go_on(5);
    house.write("server.key", &key);
    wait_until("the new certificate is shown", || is_trusted(&url, &second));
    assert!(!is_trusted(&url, &first), "the old one is not shown any more");
    go_on(10);
    // Nothing of use replaces nothing.
    house.write("server.pem", "no certificate");
    std::thread::sleep(3 * RELOAD_EVERY);
    assert!(is_trusted(&url, &second) && is_trusted(&url, &second));
    assert_eq!(go_on(20), 1, "one stream all the time");
}

fn turning_bits(seed: u64, also_none: bool) -> Weather {
    let faults = if also_none { vec![Fault::FlipBit, Fault::FlipBit, Fault::None] } else { vec![Fault::FlipBit] };
    Weather { seed, faults, most_bytes: 64 << 10 }
}

#[test]
fn a_bit_turned_on_an_encrypted_connection_reaches_no_batch() {
    let house = House::new(&Plan { side: 48, ..Plan::small() });
    let authority = Authority::new();
    let (certificate, key, _) = authority.issue("localhost");
    house.write("server.pem", &certificate);
    house.write("server.key", &key);
    let loader = house.loader();
    let proxy = FaultProxy::start(loader.addr(), turning_bits(31, true));
    let url = format!("https://localhost:{}", proxy.addr().port());
    let expected = expected(&house.dataset, &shards::spec(), Partition::WHOLE, 3);
    for _ in 0..8 {
        let mut source = connect_patiently(&url, &shards::spec(), Partition::WHOLE, &trusting(&authority));
        assert!(consume(&mut source, 3) == expected, "other batches");
    }
    assert!(proxy.struck()["flipped bit"] >= 8, "{:?}", proxy.struck());
}

/// What a client without encryption makes of connections on which one bit turns: some end it, where framing asks for what nobody sends.
#[derive(Debug, Default)]
struct Outcomes {
    right: u32,
    wrong: u32,
    refused: u32,
}

#[test]
fn a_bit_turned_on_an_open_connection_reaches_no_batch_either() {
    let house = House::new(&Plan { side: 48, ..Plan::small() });
    let loader = LocalLoader::start(&house.folder.path().join("shards"));
    let options = ClientOptions {
        prefetch_bytes: 1 << 20,
        keepalive: Duration::from_millis(300),
        stall_after: Duration::from_millis(500),
        give_up_after: Duration::from_millis(500),
        verify_images: VerifyImages::Always,
        ..ClientOptions::default()
    };
    let mut expected = local(&house.dataset, &shards::spec(), Partition::WHOLE);
    let expected: Vec<_> = (0..10).map(|_| digest(&expected.next_batch().expect("a batch"))).collect();
    let mut outcomes = Outcomes::default();
    for seed in 0..crate::number_from("VELA_TURNED_BITS", 40) {
        let proxy = FaultProxy::start(loader.addr(), turning_bits(seed, false));
        proxy.set_calm(true);
        let mut source = connect_patiently(&proxy.url(), &shards::spec(), Partition::WHOLE, &options);
        proxy.set_calm(false);
        let started = Instant::now();
        let found: Result<Vec<_>, _> = (0..10).map(|_| source.next_batch().map(|batch| digest(&batch))).collect();
        assert!(started.elapsed() < Duration::from_secs(20), "seed {seed}: {found:?}");
        match found {
            Ok(found) if found == expected => outcomes.right += 1,
            Ok(_) => outcomes.wrong += 1,
            Err(_) => outcomes.refused += 1,
        }
    }
    assert!(outcomes.wrong == 0 && outcomes.right > 0, "{outcomes:?}");
    crate::note(&format!("a bit turned on open connections: {outcomes:?}"));
}
