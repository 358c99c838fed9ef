//! What Prometheus reads after a run whose every batch is known; the dashboard asks for nothing else.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;

use vela_client::RemoteSource;
use vela_dataset::{DamagePolicy, Dataset, LocalSource, Partition};
use vela_runtime::MetricsServer;
use vela_types::BatchSource;

use crate::loader::{LoaderProcess, command, free_port, loopback};
use crate::security::House;
use crate::shards;

fn page(address: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("the page of metrics");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("asked");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer
}

/// The value of the sample whose name and labels start a line.
fn value(page: &str, sample: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(sample));
    let line = line.unwrap_or_else(|| panic!("no `{sample}` in\n{page}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn a_scripted_run_is_counted_exactly() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &shards::Plan::small());
    let (port, metrics) = (free_port(), format!("127.0.0.1:{}", free_port()));
    let listen = format!("127.0.0.1:{port}");
    let shards = folder.path().display().to_string();
    let loader = serve(&["--shards", &shards, "--listen", &listen, "--metrics-listen", &metrics, "--reflection"]);
    // Of the client: this process has a recorder from here on.
    let own = MetricsServer::start(loopback(0)).expect("the first recorder of this process");
    let mut source = RemoteSource::connect(&listen, shards::spec(), 0, 1, 1).expect("a loader");
    // One epoch of 23 samples in steps of six, three micro-batches each; the last step has one masked slot.
    let batches: Vec<_> = (0..12).map(|_| source.next_batch().expect("a batch")).collect();
    let bytes: usize = batches.iter().map(vela_types::Batch::num_bytes).sum();
    assert!(
        RemoteSource::connect(&listen, vela_types::BatchSpec { max_length: 1, ..shards::spec() }, 0, 1, 1).is_err()
    );
    // With room for one batch the server sends the next one only when one is taken.
    source.next_batch().expect("the first of epoch 1");
    let page_of = |path| page(&metrics, path);
    let shown = page_of("/metrics");
    assert!(shown.starts_with("HTTP/1.1 200") && page_of("/other").starts_with("HTTP/1.1 404"));
    let labels = "tenant=\"anonymous\",dataset=\"default\"";
    assert_eq!(value(&shown, &format!("vela_loader_streams_total{{{labels}}}")), 1.0);
    assert!(value(&shown, &format!("vela_loader_batches_total{{{labels}}}")) >= 12.0);
    assert!(value(&shown, &format!("vela_loader_bytes_total{{{labels}}}")) >= bytes as f64);
    assert!(value(&shown, &format!("vela_loader_acked_steps_total{{{labels}}}")) >= 3.0);
    assert_eq!(value(&shown, "vela_loader_masked_slots_total{dataset=\"default\"}"), 1.0);
    assert_eq!(value(&shown, "vela_loader_consumers{tenant=\"anonymous\"}"), 1.0);
    assert_eq!(value(&shown, "vela_loader_refusals_total{kind=\"invalid_request\"}"), 1.0);
    assert!(value(&shown, "vela_loader_build_seconds_count") >= 12.0);
    assert!(value(&shown, "vela_loader_credit_wait_seconds_count") >= 12.0);
    assert_eq!(value(&shown, "vela_loader_damaged_records{dataset=\"default\"}"), 0.0);
    loader.signal("-KILL");
    let restarted = serve(&["--shards", &shards, "--listen", &listen]);
    for _ in 0..12 {
        source.next_batch().expect("epoch 1");
    }
    let own = page(&own.address().to_string(), "/metrics");
    let address = format!("{{address=\"http://{listen}\"}}");
    let counted = |name: &str| value(&own, &format!("vela_client_{name}_total{address}"));
    // Room for the largest batch: the next one, or two of the smaller ones, may be there already.
    assert!((25.0..=27.0).contains(&counted("batches")), "{own}");
    assert!(counted("bytes") > bytes as f64 && counted("resumes") == 1.0 && counted("tries") >= 2.0, "{own}");
    assert_eq!(source.stats().num_streams as f64, counted("tries"));
    assert!(value(&own, "vela_client_stall_seconds_sum") > 0.0);
    assert!(value(&own, "vela_client_stall_seconds_count") >= 25.0);
    drop((source, loader, restarted));
    check_dashboard(&(shown + &own));
}

#[test]
fn callers_that_nobody_knows_are_counted() {
    let house = House::new();
    let (listen, metrics) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let [train, val] = ["train", "val"].map(|name| format!("{name}={}", house.path("shards").display()));
    let tenants = house.path("tenants.toml").display().to_string();
    let sets = ["--shards", &train, "--shards", &val, "--tenants", &tenants];
    let _loader = serve(&[&sets[..], &["--listen", &listen, "--metrics-listen", &metrics]].concat());
    assert!(RemoteSource::connect(&listen, shards::spec(), 0, 1, 1).is_err(), "it shows no token");
    let shown = page(&metrics, "/metrics");
    assert_eq!(value(&shown, "vela_loader_refusals_total{kind=\"unauthenticated\"}"), 1.0);
}

#[test]
fn damaged_records_are_shown_as_they_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &shards::Plan { side: 64, always_image: true, ..shards::Plan::small() });
    shards::damage(&folder.path().join("shard-00001.parquet"));
    let (listen, metrics) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let shards = folder.path().display().to_string();
    let flags = ["--damage", "mask", "--listen", &listen, "--metrics-listen", &metrics];
    let _loader = serve(&[&["--shards", &shards][..], &flags].concat());
    let local = Arc::new(Dataset::open(&shards).expect("a set").with_damage_policy(DamagePolicy::Mask));
    let mut expected = LocalSource::new(Arc::clone(&local), shards::spec(), Partition::WHOLE, 1).expect("a source");
    let mut source = RemoteSource::connect(&listen, shards::spec(), 0, 1, 1).expect("a loader");
    for _ in 0..12 {
        assert_eq!(source.next_batch().expect("a batch"), expected.next_batch().expect("a batch"));
    }
    let shown = value(&page(&metrics, "/metrics"), "vela_loader_damaged_records{dataset=\"default\"}");
    assert!(shown >= 2.0, "{shown}");
    assert_eq!(shown, local.num_damaged() as f64);
}

/// `loader serve`, once it does.
fn serve(flags: &[&str]) -> LoaderProcess {
    let mut serve = command(&[&["serve"][..], flags].concat());
    let mut loader = LoaderProcess(serve.stderr(Stdio::piped()).spawn().expect("a loader"));
    let mut log = BufReader::new(loader.0.stderr.take().expect("its log"));
    assert!(log.by_ref().lines().map(|line| line.expect("text")).any(|line| line.contains("serving")));
    // Kept open: a loader that cannot write its log would say so instead.
    loader.0.stderr = Some(log.into_inner());
    loader
}

/// Every metric that the dashboard names is one that was shown.
fn check_dashboard(shown: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/grafana/loader.json");
    let text = std::fs::read_to_string(path).expect("the dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let asked = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let asked: String = asked.map(|target| target["expr"].as_str().expect("an expression").to_owned() + "\n").collect();
    let names: BTreeSet<&str> = asked
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("vela_"))
        .collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        assert!(shown.contains(&format!("\n{name}")), "the dashboard asks for `{name}`, which is not there");
    }
}
