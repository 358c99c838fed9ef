//! `pipeline fetch`: the real binary against a local server with faults, kills included.

mod http_stub;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use http_stub::{Answer, Request, Server};
use serde_json::Value;
use vela_prepare::{ImageUrls, UrlList, UrlSource};
use vela_processor::codec::encode_jpeg;

/// A sound photo of noise that differs by `seed`.
fn photo(seed: u8) -> Vec<u8> {
    let pixels: Vec<u8> = (0..32 * 32 * 3u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect();
    encode_jpeg(&pixels, 32, 32, 90)
}

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new(urls: &[String]) -> Self {
        let root = tempfile::tempdir().expect("temp folder");
        fs::write(root.path().join("urls.txt"), urls.join("\n")).expect("list");
        Self { root }
    }

    fn output(&self) -> PathBuf {
        self.root.path().join("images")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        // What is asked of this machine must not go through a proxy.
        command.env("NO_PROXY", "*").stdin(Stdio::null()).args(["fetch", "--source", "urls", "--json", "--input"]);
        command.arg(self.root.path().join("urls.txt")).arg("--output").arg(self.output());
        command.args(["--first-wait", "10ms"]).args(more);
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().expect("the binary starts")
    }

    fn spawn(&self, more: &[&str]) -> Child {
        self.command(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
    }

    /// Runs to the end with exit code `code`, and gives the report.
    fn report(&self, code: i32, more: &[&str]) -> Value {
        let output = self.run(more);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|fault| panic!("{fault}: {output:?}"))
    }

    fn image(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.output().join(name)).ok()
    }

    /// Images that have their name.
    fn num_images(&self) -> usize {
        let entries = fs::read_dir(self.output()).map(|entries| entries.flatten().map(|entry| entry.file_name()));
        entries.map_or(0, |names| names.filter(|name| name.to_string_lossy().ends_with(".jpg")).count())
    }

    fn ledger(&self) -> PathBuf {
        self.output().join(".fetch/ledger.jsonl")
    }

    /// Causes by the last part of the URL.
    fn causes(&self) -> BTreeMap<String, String> {
        let list = fs::read_to_string(self.output().join("failed.jsonl")).expect("failed list");
        let lines = list.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines
            .map(|line| {
                let url = line["url"].as_str().expect("a URL");
                (url.rsplit('/').next().unwrap_or(url).to_owned(), line["cause"].as_str().expect("a cause").to_owned())
            })
            .collect()
    }

    fn no_unfinished_file(&self) {
        let left = fs::read_dir(self.output().join(".fetch/partial")).expect("folder").count();
        assert_eq!(left, 0);
    }
}

/// The server of all faults.
fn misbehave(request: &Request) -> Answer {
    let sound = || Answer::of(200, "", &photo(1));
    let is_first = request.earlier == 0;
    let moved = |to: &str| Answer::of(302, &format!("Location: {to}\r\n"), b"");
    match request.target.rsplit('/').next().unwrap_or_default() {
        "404.jpg" => Answer::of(404, "", b"no"),
        "403.jpg" => Answer::of(403, "", b"no"),
        "flaky.jpg" if is_first => Answer::of(500, "", b"oh"),
        "broken.jpg" => Answer::of(500, "", b"oh"),
        "busy.jpg" if is_first => Answer::of(429, "Retry-After: 1\r\n", b""),
        "closed.jpg" => Answer::of(503, "Retry-After: 3600\r\n", b""),
        "hang.jpg" => sound().after(Duration::from_secs(3)),
        "cut.jpg" => Answer::with_length(200, "", photo(1).len(), &photo(1)[..500]),
        "cut-once.jpg" if is_first => Answer::with_length(200, "", photo(1).len(), &photo(1)[..500]),
        "short.jpg" => Answer::with_length(200, "", 400, &photo(1)),
        "page.jpg" => Answer::of(200, "Content-Type: image/jpeg\r\n", b"<html>sign in first</html>"),
        "torn.jpg" => Answer::of(200, "", &photo(1)[..600]),
        "empty.jpg" => Answer::of(200, "", b""),
        "huge.jpg" => Answer::with_length(200, "", 1 << 40, b""),
        "endless.jpg" => Answer(vec![(Duration::ZERO, [b"HTTP/1.1 200 X\r\n\r\n", &[0xFF; 200_000][..]].concat())]),
        "loop.jpg" => moved(&request.target),
        "moved.jpg" => moved("/set-a/1.jpg"),
        "away.jpg" => moved("ftp://127.0.0.1/1.jpg"),
        "drip.jpg" => sound().dripping(40, Duration::from_millis(100)),
        "nothing.jpg" => Answer(vec![]),
        _ => sound(),
    }
}

const HASTE: [&str; 8] = ["--retries", "2", "--read-timeout", "400ms", "--timeout", "900ms", "--max-size", "100KiB"];

#[test]
fn every_fault_has_its_cause_and_sound_images_are_kept() {
    let server = Server::start(misbehave);
    let names = [
        "set-a/1.jpg",
        "set-b/1.jpg",
        "moved.jpg",
        "flaky.jpg",
        "busy.jpg",
        "cut-once.jpg",
        "404.jpg",
        "403.jpg",
        "broken.jpg",
        "closed.jpg",
        "hang.jpg",
        "cut.jpg",
        "short.jpg",
        "page.jpg",
        "torn.jpg",
        "empty.jpg",
        "huge.jpg",
        "endless.jpg",
        "loop.jpg",
        "away.jpg",
        "drip.jpg",
        "nothing.jpg",
    ];
    let mut urls: Vec<String> = names.map(|name| server.url(name)).into();
    urls.extend([
        server.url("set-a/1.jpg"),
        "http://127.0.0.1:1/connect.jpg".to_owned(),
        "http://no-such-host.invalid/dns.jpg".to_owned(),
        "http://127.0.0.1:1/set-a/1.jpg".to_owned(),
        server.url("%2e%2e/%2e%2e/outside.jpg"),
        "not a URL".to_owned(),
    ]);
    let place = Place::new(&urls);
    let report = place.report(3, &HASTE);
    let causes = place.causes();
    let expected = [
        ("404.jpg", "http_404", 1),
        ("403.jpg", "http_403", 1),
        ("broken.jpg", "http_500", 3),
        ("closed.jpg", "http_503", 1),
        ("hang.jpg", "timeout", 3),
        ("cut.jpg", "truncated", 3),
        ("short.jpg", "truncated_image", 3),
        ("page.jpg", "not_an_image", 1),
        ("torn.jpg", "truncated_image", 3),
        ("empty.jpg", "empty_image", 3),
        ("huge.jpg", "too_large", 1),
        ("endless.jpg", "too_large", 1),
        ("away.jpg", "bad_url", 1),
        ("drip.jpg", "timeout", 3),
        ("nothing.jpg", "truncated", 3),
    ];
    let counts = server.counts();
    for (name, cause, requests) in expected {
        assert_eq!(causes.get(name).map(String::as_str), Some(cause), "{name}");
        assert_eq!(counts[&format!("/{name}")], requests, "{name}");
    }
    assert_eq!((causes["loop.jpg"].as_str(), counts["/loop.jpg"]), ("redirects", 6), "five redirects are followed");
    // A machine without a name server finds out late.
    assert!(["dns", "timeout"].contains(&causes["dns.jpg"].as_str()), "{causes:?}");
    let others = [("connect.jpg", "connect"), ("1.jpg", "name_taken")];
    for (name, cause) in others.into_iter().chain([("outside.jpg", "unsafe_name"), ("not a URL", "bad_url")]) {
        assert_eq!(causes.get(name).map(String::as_str), Some(cause), "{name}");
    }
    for name in ["set-a/1.jpg", "set-b/1.jpg", "moved.jpg", "flaky.jpg", "busy.jpg", "cut-once.jpg"] {
        assert_eq!(place.image(name), Some(photo(1)), "{name}");
    }
    assert!(!place.root.path().join("outside.jpg").exists());
    let number = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"));
    assert_eq!((number("urls"), number("fetched"), number("kept"), number("repeated")), (28, 6, 0, 1));
    assert_eq!(number("bytes"), 6 * photo(1).len() as u64);
    let failed: u64 = report["failed"].as_object().expect("causes").values().filter_map(Value::as_u64).sum();
    assert_eq!((failed, causes.len()), (21, 21));
    place.no_unfinished_file();
    let busy: Vec<Duration> =
        server.requests().iter().filter(|request| request.target == "/busy.jpg").map(|request| request.at).collect();
    assert!(busy[1] - busy[0] >= Duration::from_secs(1), "what Retry-After asks for is waited: {busy:?}");

    let (before, list) = (server.counts(), fs::read(place.output().join("failed.jsonl")).expect("list"));
    let again = place.report(3, &HASTE);
    assert_eq!((again["kept"].as_u64(), again["fetched"].as_u64()), (Some(6), Some(0)));
    assert_eq!(again["failed"], report["failed"], "what failed for good is told again");
    let asked_again: Vec<String> =
        server.counts().into_iter().filter(|(name, count)| before[name] != *count).map(|(name, _)| name).collect();
    let passing = [
        "/broken.jpg",
        "/closed.jpg",
        "/cut.jpg",
        "/drip.jpg",
        "/empty.jpg",
        "/hang.jpg",
        "/nothing.jpg",
        "/short.jpg",
    ];
    assert_eq!(asked_again, passing.into_iter().chain(["/torn.jpg"]).collect::<Vec<_>>());
    assert!(!list.is_empty());
    place.report(3, &[&HASTE[..], &["--retry-failed"]].concat());
    assert_eq!(server.counts()["/404.jpg"], 2);
    assert_eq!(server.counts()["/set-a/1.jpg"], before["/set-a/1.jpg"], "what is there is never asked for again");
}

#[test]
fn killed_in_the_middle_nothing_finished_is_asked_for_twice() {
    let server = Server::start(|request| {
        let seed = request.target.bytes().fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte));
        Answer::of(200, "", &photo(seed)).dripping(600, Duration::from_millis(20))
    });
    let names: Vec<String> = (0..120).map(|index| format!("{index:03}.jpg")).collect();
    let place = Place::new(&names.iter().map(|name| server.url(name)).collect::<Vec<_>>());
    for round in 1..=3 {
        let mut child = place.spawn(&["--concurrency", "6", "--per-host", "6"]);
        let started = Instant::now();
        while place.num_images() < round * 25 && started.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed");
        assert_eq!(child.wait().expect("ended").code(), None, "it was killed in the middle");
        let finished: Vec<String> =
            names.iter().filter(|name| place.image(name).is_some()).map(|name| format!("/{name}")).collect();
        assert!(finished.len() >= round * 25 && finished.len() < names.len());
        let counts = server.counts();
        // What a kill within a write leaves behind.
        let torn =
            [fs::read(place.ledger()).expect("ledger"), b"{\"path\":\"099.jpg\",\"url\":\"htt".to_vec()].concat();
        fs::write(place.ledger(), torn).expect("torn");
        let mut child = place.spawn(&["--concurrency", "6", "--per-host", "6"]);
        while place.num_images() < finished.len() + 3 && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        for name in &finished {
            assert_eq!(server.counts()[name], counts[name], "round {round}: {name} was finished");
        }
    }
    let report = place.report(0, &[]);
    assert_eq!((report["urls"].as_u64(), report["damaged_lines"].as_u64()), (Some(120), Some(0)), "{report}");
    assert_eq!(report["fetched"].as_u64().zip(report["kept"].as_u64()).map(|(new, old)| new + old), Some(120));
    for name in &names {
        let seed = format!("/{name}").bytes().fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte));
        assert_eq!(place.image(name), Some(photo(seed)), "{name}");
    }
    place.no_unfinished_file();
    let ledger = fs::read_to_string(place.ledger()).expect("ledger");
    assert!(ledger.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(ledger.contains(&blake3::hash(&place.image("000.jpg").expect("there")).to_hex().to_string()));
}

#[test]
fn killed_between_the_ledgers_line_and_the_files_name_the_image_is_not_asked_for_again() {
    let server = Server::start(misbehave);
    let place = Place::new(&[server.url("a.jpg")]);
    place.report(0, &[]);
    let mut partial = blake3::hash(b"a.jpg").as_bytes()[..8].to_vec();
    partial.reverse();
    let name: String = partial.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::rename(place.output().join("a.jpg"), place.output().join(".fetch/partial").join(name)).expect("renamed back");
    assert_eq!(place.report(0, &[])["kept"].as_u64(), Some(1));
    assert_eq!((place.image("a.jpg"), server.requests().len()), (Some(photo(1)), 1));
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_cleanly_and_the_same_command_continues() {
    let server = Server::start(|_| Answer::of(200, "", &photo(3)).dripping(600, Duration::from_millis(20)));
    let place = Place::new(&(0..60).map(|index| server.url(&format!("{index}.jpg"))).collect::<Vec<_>>());
    let child = place.spawn(&["--concurrency", "4", "--per-host", "4"]);
    let started = Instant::now();
    while place.num_images() < 5 && started.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(signal.success());
    let output = child.wait_with_output().expect("ended");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("run the same command again"), "{told}");
    let before = place.num_images();
    assert!((5..60).contains(&before));
    let report = place.report(0, &[]);
    assert_eq!((report["kept"].as_u64(), place.num_images()), (Some(before as u64), 60), "{report}");
}

#[test]
fn limits_hold_per_host_and_for_all() {
    let pause = Duration::from_millis(40);
    let servers = [0, 1].map(|_| Server::start(move |_| Answer::of(200, "", &photo(1)).after(pause)));
    let both = servers.iter().enumerate();
    let urls: Vec<String> =
        both.flat_map(|(at, server)| (0..20).map(move |index| server.url(&format!("{at}/{index}.jpg")))).collect();
    let place = Place::new(&urls);
    let report = place.report(0, &["--concurrency", "5", "--per-host", "3"]);
    assert_eq!(report["fetched"].as_u64(), Some(40));
    let most = servers.each_ref().map(Server::most_running);
    assert!(most.iter().all(|most| (2..=3).contains(most)), "{most:?}");
}

#[test]
fn bodies_in_memory_stay_below_the_bound() {
    const MIB: usize = 1 << 20;
    let mut large = photo(1);
    large.resize(8 * MIB, 0);
    let server = Server::start(move |_| Answer::of(200, "", &large));
    let place = Place::new(&(0..24).map(|index| server.url(&format!("{index}.jpg"))).collect::<Vec<_>>());
    let limits = ["--concurrency", "24", "--per-host", "24", "--memory", "17MiB", "--workers", "8"];
    // One arena, so that what the allocator keeps for each of its threads is not taken for bodies.
    let mut command = place.command(&limits);
    let child = command.env("MALLOC_ARENA_MAX", "1").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("the binary starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    while let Ok(text) = fs::read_to_string(&status)
        && let Some(line) = text.lines().find(|line| line.starts_with("VmHWM:"))
    {
        let found = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
        peak_kib = found.max(peak_kib);
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("ended");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["fetched"].as_u64(), Some(24), "{output:?}");
    let peak = report["peak_bytes"].as_u64().expect("a number") as usize;
    assert!((8 * MIB..=17 * MIB).contains(&peak), "{peak}");
    assert!(peak_kib < 120 << 10, "24 bodies of 8 MiB are not held together: {peak_kib} KiB");
}

#[test]
fn a_file_that_is_there_is_looked_at_instead_of_asked_for() {
    let server = Server::start(misbehave);
    let place = Place::new(&["good.jpg", "bad.jpg"].map(|name| server.url(name)));
    fs::create_dir_all(place.output()).expect("folder");
    fs::write(place.output().join("good.jpg"), photo(9)).expect("file");
    fs::write(place.output().join("bad.jpg"), b"<html>").expect("file");
    let report = place.report(0, &[]);
    assert_eq!((report["kept"].as_u64(), report["fetched"].as_u64()), (Some(1), Some(1)));
    assert_eq!((place.image("good.jpg"), place.image("bad.jpg")), (Some(photo(9)), Some(photo(1))));
    assert_eq!(server.counts().into_keys().collect::<Vec<_>>(), ["/bad.jpg"]);
}

#[test]
fn a_build_finds_the_images_by_their_urls() {
    let server = Server::start(misbehave);
    let urls = ["x/1.jpg?sig=a", "y/1.jpg", "y/z/a%20b.jpg"].map(|name| server.url(name));
    let place = Place::new(&urls);
    place.report(0, &[]);
    let record = |url: &String| {
        let turns =
            serde_json::json!([{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "Noise."}]);
        serde_json::json!({"id": url, "image": url, "conversations": turns}).to_string()
    };
    let data = place.root.path().join("chat.jsonl");
    fs::write(&data, urls.iter().map(record).collect::<Vec<_>>().join("\n")).expect("file");
    let mut audit = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    audit.args(["audit", "--source", "llava", "--decode", "--json", "--input"]).arg(data);
    let output = audit.arg("--images").arg(place.output()).output().expect("the binary starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!((report["images"].as_u64(), &report["rejected"]), (Some(3), &serde_json::json!({})), "{output:?}");
}

#[test]
fn wrong_use_exits_with_2_and_asks_nobody() {
    let server = Server::start(misbehave);
    let place = Place::new(&[server.url("1.jpg")]);
    for (flags, said) in [
        (&["--per-host", "0"][..], "--per-host"),
        (&["--max-size", "1GiB"], "256MiB"),
        (&["--max-reject", "2"], "--max-reject"),
        (&["--user-agent", "a\nb"], "--user-agent"),
        (&["--timeout", "7"], "30s"),
    ] {
        let output = place.run(flags);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(said), "{told}");
    }
    fs::create_dir_all(place.output().join(".fetch")).expect("folder");
    fs::write(place.ledger(), "mine").expect("file");
    let output = place.run(&[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!((fs::read(place.ledger()).expect("file"), server.requests().len()), (b"mine".to_vec(), 0));
}

fn read_urls(source: UrlSource, path: &Path, column: Option<&str>) -> Vec<(String, Option<String>)> {
    let list = UrlList::open(source, path, column.map(str::to_owned), None).expect("opens");
    let mut urls = Vec::new();
    list.read(&mut |image| {
        urls.push((image.url, image.name));
        ControlFlow::Continue(())
    })
    .expect("reads");
    urls
}

#[test]
fn published_lists_are_read_whole() {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let data = std::env::var("VELA_DATA").map_or_else(|_| beside(), PathBuf::from);
    if !data.is_dir() {
        eprintln!("skipped: published_lists_are_read_whole, no ../shared/data");
        return;
    }
    let parquet = read_urls(UrlSource::Urls, &data.join("img2dataset/test_1000.parquet"), None);
    let text = read_urls(UrlSource::Urls, &data.join("img2dataset/test_1000.txt"), None);
    assert_eq!((parquet.len(), text.len()), (1000, 1000));
    assert!(parquet.iter().all(|(url, _)| url.starts_with("http")));
    let coco = data.join("coco_mini/annotations/instances_val2017.json");
    let (named, flickr) =
        (read_urls(UrlSource::Coco, &coco, None), read_urls(UrlSource::Coco, &coco, Some("flickr_url")));
    assert_eq!((named.len(), flickr.len()), (79, 79));
    assert!(named.iter().all(|(url, name)| url.ends_with(name.as_deref().expect("a name"))));
    assert!(flickr.iter().all(|(url, name)| url.contains("flickr") && name.is_some()));
}
