//! Builds into a bucket by the real binary: the bytes of a local build, through kills, races and damage.

mod fixture;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fixture::{Bench, contents};
use vela_tests::s3::{Fault, S3Server};

const SMALL_SHARD: &str = "140KiB";

/// Waits until the server has seen such a request `times` times.
fn wait_for(server: &S3Server, start: &str, mark: &str, times: usize) {
    let started = Instant::now();
    while server.count_requests(start, mark) < times {
        assert!(started.elapsed() < Duration::from_secs(60), "no {start} {mark}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_set_in_a_bucket_is_the_local_set_and_is_previewed_from_there() {
    let server = S3Server::start();
    let bench = Bench::new(50, 32).reaching(&server);
    // A reject, so that there is a list.
    let photo = Path::new(bench.data("sa1b_images")).join("sa_000007.jpg");
    std::fs::write(&photo, &std::fs::read(&photo).expect("photo")[..200]).expect("cut");
    let (local, url, page) = (bench.text("local"), server.url("sets/demo"), bench.text("page.html"));
    let expected = bench.json(&bench.build_args(&local, SMALL_SHARD));
    let report = bench.json(&bench.build_args(&url, SMALL_SHARD));
    assert_eq!((&report["fingerprint"], &report["rejected"]), (&expected["fingerprint"], &expected["rejected"]));
    assert_eq!(report["rejected"]["truncated_image"], 1);
    let objects = server.objects("sets/demo/");
    assert_eq!(objects, contents(Path::new(&local)));
    assert!(objects.contains_key("processor/tokenizer.json") && objects.contains_key("rejects.jsonl"));

    bench.json(&["preview", "--shards", &url, "--html", &page, "--limit", "5", "--json"]);
    assert_eq!(std::fs::read_to_string(page).expect("page").matches("<article").count(), 5);

    server.take_requests();
    let again = bench.json(&bench.build_args(&url, SMALL_SHARD));
    assert_eq!((&again["kept_shards"], &again["fingerprint"]), (&report["shards"], &report["fingerprint"]));
    assert_eq!(server.count_requests("PUT", ""), 0, "a finished set is only read");
}

#[test]
fn raw_data_in_a_bucket_gives_the_samples_of_local_data_and_is_fetched_once() {
    let server = S3Server::start();
    let bench = Bench::new(20, 32).reaching(&server);
    for (folder, prefix) in
        [(Path::new(bench.data("sa1b")), "raw/rows"), (Path::new(bench.data("sa1b_images")), "raw/photos")]
    {
        let files = if folder.is_dir() { contents(folder) } else { Default::default() };
        assert!(!files.is_empty(), "{}", folder.display());
        files.into_iter().for_each(|(name, content)| server.put(&format!("{prefix}/{name}"), content));
    }
    let (input, images, local, remote) =
        (server.url("raw/rows"), server.url("raw/photos"), bench.text("local"), bench.text("remote"));
    let expected = bench.json(&bench.build_args(&local, SMALL_SHARD));
    #[rustfmt::skip]
    let args = [
        "build-shards", "--source", "sa1b", "--dialogue", "rules", "--input", &input, "--images", &images,
        "--processor", bench.data("processor"), "--output", &remote, "--shard-size", SMALL_SHARD, "--json",
    ];
    let report = bench.json(&args);
    assert_eq!((&report["samples"], &report["tokens"]), (&expected["samples"], &expected["tokens"]));
    assert_eq!(report["fingerprint"], expected["fingerprint"], "nothing of where the data lay is in the set");
    server.take_requests();
    assert_eq!(bench.json(&args)["kept_shards"], report["shards"]);
    assert_eq!(server.count_requests("GET", "/raw/photos/"), 0, "what is in the cache is not fetched again");

    let audit = ["audit", "--source", "sa1b", "--input", &input, "--images", &images, "--json"];
    assert_eq!(bench.json(&audit)["records"], 20);
    let wrong = bench.run(&["audit", "--source", "sa1b", "--input", "ftp://host/rows"]);
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && told.contains("s3://"), "{told}");
}

#[test]
fn a_damaged_set_in_a_bucket_is_made_whole() {
    let server = S3Server::start();
    let bench = Bench::new(60, 32).reaching(&server);
    let photo = Path::new(bench.data("sa1b_images")).join("sa_000030.jpg");
    std::fs::write(&photo, "no photo").expect("spoilt");
    let url = server.url("set");
    bench.json(&bench.build_args(&url, SMALL_SHARD));
    let before = server.objects("set/");
    let mut shard = before["shard-00001.parquet"].clone();
    shard[100] ^= 1;
    server.put("set/shard-00001.parquet", shard);
    for lost in [
        "set/shard-00002.parquet",
        "set/rejects.jsonl",
        "set/lengths.bin",
        "set/lengths.sums",
        "set/processor/tokenizer.json",
    ] {
        server.remove(lost);
    }
    let report = bench.json(&bench.build_args(&url, SMALL_SHARD));
    assert_eq!(report["kept_shards"].as_u64(), report["shards"].as_u64().map(|shards| shards - 2), "{report}");
    assert_eq!(server.objects("set/"), before);
}

#[test]
fn killed_in_the_middle_of_uploads_a_build_ends_with_the_same_bytes() {
    let server = S3Server::start();
    // Shards of some 10 MiB, which are uploaded in two parts.
    let bench = Bench::new(120, 336).reaching(&server);
    let (local, url) = (bench.text("local"), server.url("set"));
    bench.json(&bench.build_args(&local, "10MiB"));
    for kills in 1..=2 {
        server.take_requests();
        // A late answer holds the build in its upload until it is killed.
        server.strike("PUT", "partNumber=1", Fault::Delay(Duration::from_secs(3)), usize::MAX);
        let mut child = bench.start(&bench.build_args(&url, "10MiB"));
        wait_for(&server, "PUT", "partNumber", 1);
        child.kill().expect("killed");
        assert_eq!(child.wait().expect("ended").signal(), Some(9));
        server.heal();
        assert!(!server.objects("set/").contains_key("manifest.json"));
        assert!(server.num_unfinished_uploads() >= kills, "each was killed in an upload");
        // One more shard before the next kill.
        let complete = || {
            let names = server.objects("set/").into_keys();
            names.filter(|name| name.starts_with("shard-") && name.ends_with(".json")).count()
        };
        let mut child = bench.start(&bench.build_args(&url, "10MiB"));
        while complete() < kills && child.try_wait().expect("looked at").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(complete() >= kills);
    }
    server.take_requests();
    let report = bench.json(&bench.build_args(&url, "10MiB"));
    assert!(report["kept_shards"].as_u64() >= Some(2), "{report}");
    assert_eq!(server.count_requests("GET", "parquet"), 0, "kept shards are believed, not read");
    assert_eq!(server.objects("set/"), contents(Path::new(&local)));
}

#[test]
fn of_two_builds_that_race_for_a_prefix_one_wins_and_the_other_is_told() {
    let server = S3Server::start();
    let bench = Bench::new(40, 32).reaching(&server);
    let url = server.url("set");
    let seeds = ["1", "2"];
    let racers = seeds.map(|seed| {
        let args = [bench.build_args(&url, SMALL_SHARD), vec!["--seed", seed]].concat();
        bench.start(&args)
    });
    let outputs = racers.map(|racer| racer.wait_with_output().expect("ended"));
    let codes = outputs.each_ref().map(|output| output.status.code());
    assert!(codes == [Some(0), Some(2)] || codes == [Some(2), Some(0)], "{outputs:?}");
    let (winner, loser) = if codes[0] == Some(0) { (0, 1) } else { (1, 0) };
    let told = String::from_utf8_lossy(&outputs[loser].stderr);
    assert!(told.contains(&url) && told.contains("--output"), "{told}");
    let local = bench.text("local");
    bench.json(&[bench.build_args(&local, SMALL_SHARD), vec!["--seed", seeds[winner]]].concat());
    let (mut made, mut expected) = (server.objects("set/"), contents(Path::new(&local)));
    // The loser may have left its processor's copy, which is the same.
    for files in [&mut made, &mut expected] {
        files.retain(|name, _| !name.starts_with("processor/"));
    }
    assert_eq!(made, expected);
}

#[test]
fn a_bucket_that_refuses_is_told_with_url_operation_and_remedy() {
    let server = S3Server::start();
    let bench = Bench::new(4, 32).reaching(&server);
    server.strike("PUT", "shard-00000", Fault::Status(403), usize::MAX);
    let url = server.url("set");
    let output = bench.run(&bench.build_args(&url, SMALL_SHARD));
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["s3://bucket/set/shard-00000.parquet", "cannot write", "AWS_ACCESS_KEY_ID"] {
        assert!(told.contains(part), "expected `{part}` in: {told}");
    }
    assert!(!told.contains(vela_tests::s3::SECRET_KEY), "{told}");
    server.heal();
    assert_eq!(bench.json(&bench.build_args(&url, SMALL_SHARD))["samples"], 4);
}
