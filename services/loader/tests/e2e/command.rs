//! The `loader` binary: exit codes, signals, what it prints.

use std::io::Read;
use std::time::{Duration, Instant};

use vela_client::RemoteSource;
use vela_types::BatchSource;

use crate::loader::{LoaderProcess, LocalLoader, command, free_port, loopback};
use crate::shards::{self, Plan};

fn outcome(args: &[&str]) -> (Option<i32>, String, String) {
    let output = command(args).output().expect("the loader runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn wrong_use_exits_2_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().display().to_string();
    let no_folder = format!("{empty}/none");
    let serve = |rest: &[&'static str]| [&["serve", "--shards", "x"], rest].concat();
    let file = format!("{empty}/file");
    std::fs::write(&file, "not a folder").expect("written");
    let cases: [(Vec<&str>, &[&str]); 14] = [
        (vec![], &["Usage"]),
        (vec!["serve"], &["--shards"]),
        (vec!["serve", "--shards", &empty], &["`--shards", &empty, "manifest.json", "pipeline build-shards"]),
        (vec!["serve", "--shards", &no_folder], &["`--shards", &no_folder, "pipeline build-shards"]),
        (vec!["serve", "--shards", &file], &["`--shards", &file, "expected a folder", "Not a directory"]),
        (vec!["serve", "--shards", "ftp://host/set"], &["`--shards ftp://host/set`", "expected", "local path"]),
        (serve(&["--listen", "nowhere"]), &["--listen", "`IP:PORT`", "nowhere"]),
        (serve(&["--listen", "127.0.0.1:66666"]), &["--listen", "66666"]),
        (serve(&["--listen", "0.0.0.0:1"]), &["--allow-remote-plaintext"]),
        (serve(&["--drain-timeout", "5"]), &["--drain-timeout", "30s"]),
        (serve(&["--max-batch-bytes", "256"]), &["--max-batch-bytes", "512MiB"]),
        (serve(&["--max-batch-bytes", "0B"]), &["`--max-batch-bytes`", "at least 1B", "found 0B"]),
        (serve(&["--max-consumers", "0"]), &["`--max-consumers`", "at least 1", "found 0"]),
        (serve(&["--colour"]), &["--colour"]),
    ];
    for (args, named) in cases {
        let (code, stdout, stderr) = outcome(&args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(named.iter().all(|name| stderr.contains(name)) && stdout.is_empty(), "{args:?}: {stderr}");
    }
}

#[test]
fn a_host_name_to_listen_on_is_resolved() {
    let taken = std::net::TcpListener::bind(loopback(0)).expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let (path, listen) = (folder.path().display().to_string(), format!("localhost:{port}"));
    let (code, _, stderr) = outcome(&["serve", "--shards", &path, "--listen", &listen]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&format!("127.0.0.1:{port}: the port is in use")), "{stderr}");
}

#[test]
fn what_cannot_be_served_exits_1_with_its_causes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display().to_string();
    shards::write(folder.path(), &Plan::small());
    let taken = std::net::TcpListener::bind(loopback(0)).expect("a port");
    let listen = taken.local_addr().expect("its address").to_string();
    let (code, _, stderr) = outcome(&["serve", "--shards", &path, "--listen", &listen]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&listen) && stderr.contains("port is in use"), "{stderr}");
    std::fs::write(folder.path().join("lengths.bin"), b"VELALEN1").expect("a cut index");
    let (code, _, stderr) = outcome(&["serve", "--shards", &path, "--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("error: ") && stderr.contains("caused by: ") && stderr.contains("lengths.bin"), "{stderr}");
}

#[test]
fn a_health_check_exits_0_for_a_serving_loader_and_1_otherwise() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let loader = LocalLoader::start(folder.path());
    let address = loader.addr().to_string();
    let (code, stdout, stderr) = outcome(&["healthcheck", "--json", "--address", &address]);
    assert_eq!(code, Some(0), "{stderr}");
    let json: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!(json["status"], "SERVING");
    loader.stop();
    let (code, _, stderr) = outcome(&["healthcheck", "--address", &address, "--timeout", "500ms"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&address), "{stderr}");
    assert_eq!(outcome(&["healthcheck", "--address", "not an address"]).0, Some(2));
}

#[test]
fn sigterm_drains_open_streams_and_exits_0_with_a_report() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let port = free_port();
    let mut server = LoaderProcess::start(folder.path(), port);
    let url = format!("http://{}", loopback(port));
    let mut source = RemoteSource::connect(&url, shards::spec(), 0, 1, 1 << 20).expect("a stream");
    source.next_batch().expect("a batch");
    let asked = Instant::now();
    server.signal("-TERM");
    let status = server.0.wait().expect("an end");
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "open streams do not hold it up");
    let mut stdout = String::new();
    server.0.stdout.take().expect("piped").read_to_string(&mut stdout).expect("text");
    let report: serde_json::Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&report["drained"], &report["consumers"]), (&true.into(), &1.into()), "{report}");
}
