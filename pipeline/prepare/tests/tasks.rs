//! The shards of one plan, made by other processes: in any order, twice, killed, and still the bytes of one build.

mod fixture;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fixture::{Bench, contents};
use serde_json::Value;
use vela_prepare::BuildTask;
use vela_tests::s3::S3Server;

/// Some 150 records a shard.
const SHARD: &str = "1050KiB";

/// Plans a build into `output` and gives the file of its tasks and their number.
fn plan(bench: &Bench, output: &str) -> (String, usize) {
    let tasks = bench.text("tasks.jsonl");
    let flags = [vec!["task", "plan"], bench.build_flags(output, SHARD), vec!["--tasks", &tasks]].concat();
    let report = bench.json(&flags);
    (tasks, report["tasks"].as_u64().expect("a number") as usize)
}

fn run<'a>(tasks: &'a str, index: &'a str) -> [&'a str; 7] {
    ["task", "run", "--tasks", tasks, "--index", index, "--json"]
}

fn commit(tasks: &str) -> [&str; 5] {
    ["task", "commit", "--tasks", tasks, "--json"]
}

#[test]
fn shards_made_by_many_processes_are_those_of_one() {
    let bench = Bench::new(900, 32);
    let photo = Path::new(bench.data("sa1b_images")).join("sa_000200.jpg");
    fs::write(&photo, "no photo").expect("spoilt");
    let (whole, parts) = (bench.text("whole"), bench.text("parts"));
    let expected = bench.json(&bench.build_args(&whole, SHARD));
    let (tasks, num_tasks) = plan(&bench, &parts);
    assert_eq!(num_tasks, 6);

    // Two processes at once on one shard, and others beside them.
    let racers = ["4", "4", "1"].map(|index| bench.start(&run(&tasks, index)));
    let rows = racers.map(|racer| fixture::json_line(&racer.wait_with_output().expect("ended"))["shards"][0].clone());
    assert_eq!(rows[0], rows[1], "one row, whoever makes it");
    kill_while_writing(&bench, &tasks, &parts, "2");
    let incomplete = bench.run(&commit(&tasks));
    let told = String::from_utf8_lossy(&incomplete.stderr);
    assert!(incomplete.status.code() == Some(1) && told.contains("shard 0 is not complete"), "{told}");

    assert_eq!(bench.json(&run(&tasks, "5,0"))["shards"].as_array().map(Vec::len), Some(2));
    for index in ["2", "3", "0"] {
        bench.json(&run(&tasks, index));
    }
    let report = bench.json(&commit(&tasks));
    for key in ["samples", "rejected", "images", "tokens", "shards", "bytes", "fingerprint"] {
        assert_eq!(report[key], expected[key], "{key}");
    }
    assert_eq!(contents(Path::new(&parts)), contents(Path::new(&whole)));

    // Late and again: nothing changes.
    assert_eq!(bench.json(&run(&tasks, "4"))["shards"][0], rows[0]);
    assert_eq!(bench.json(&commit(&tasks))["fingerprint"], expected["fingerprint"]);
    assert_eq!(contents(Path::new(&parts)), contents(Path::new(&whole)));
}

/// Starts a task and kills it once its shard is half written.
fn kill_while_writing(bench: &Bench, tasks: &str, output: &str, index: &str) {
    let started = Instant::now();
    let mark = format!("shard-0000{index}.parquet.");
    let mut child = bench.start(&run(tasks, index));
    let is_writing = || {
        let mut names = fs::read_dir(output).expect("the output").flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with(&mark))
    };
    while !is_writing() {
        assert!(started.elapsed() < Duration::from_secs(60), "it never wrote");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().expect("killed");
    assert_eq!(child.wait().expect("ended").signal(), Some(9), "it was killed in the middle");
    assert!(!Path::new(output).join(format!("shard-0000{index}.json")).exists());
}

#[test]
fn tasks_fill_a_bucket_that_they_share() {
    let server = S3Server::start();
    let bench = Bench::new(450, 32).reaching(&server);
    let (whole, url) = (bench.text("whole"), server.url("set"));
    bench.json(&bench.build_args(&whole, SHARD));
    let (tasks, num_tasks) = plan(&bench, &url);
    assert_eq!(num_tasks, 3);
    let workers = ["2", "0", "1", "2"].map(|index| bench.start(&run(&tasks, index)));
    for worker in workers {
        let output = worker.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    bench.json(&commit(&tasks));
    assert_eq!(server.objects("set/"), contents(Path::new(&whole)));
}

#[test]
fn a_worker_that_sees_other_inputs_makes_no_shard() {
    let bench = Bench::new(20, 32);
    let output = bench.text("shards");
    let (tasks, _) = plan(&bench, &output);
    let photo = Path::new(bench.data("sa1b_images")).join("sa_000003.jpg");
    fs::write(&photo, [fs::read(&photo).expect("photo"), vec![0]].concat()).expect("another photo");
    let refused = bench.run(&run(&tasks, "0"));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("other inputs"), "{told}");
    assert!(!Path::new(&output).join("shard-00000.parquet").exists());
}

#[test]
fn a_task_is_a_small_json_object_and_wrong_ones_are_refused() {
    let bench = Bench::new(20, 32);
    let output = bench.text("shards");
    let (tasks, _) = plan(&bench, &output);
    let line = fs::read_to_string(&tasks).expect("tasks");
    assert!(line.len() < 2000, "{} bytes", line.len());
    let task: BuildTask = serde_json::from_str(&line).expect("a task");
    assert_eq!(serde_json::to_string(&task).expect("JSON"), line.trim_end());
    assert!(task.config.processor.is_absolute() && Path::new(&task.config.output).is_absolute());

    let mut other: Value = serde_json::from_str(&line).expect("JSON");
    other["shard"]["ranges"][0]["records"]["end"] = 7.into();
    let refused_as = |value: &Value, said: &str, code: i32| {
        fs::write(&tasks, value.to_string()).expect("tasks");
        let refused = bench.run(&run(&tasks, "0"));
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(code) && told.contains(said), "{told}");
    };
    refused_as(&other, "plan", 2);
    let mut unknown: Value = serde_json::from_str(&line).expect("JSON");
    unknown["config"]["colour"] = "red".into();
    refused_as(&unknown, "damaged", 1);
    fs::write(&tasks, line).expect("tasks");
    let none = bench.run(&run(&tasks, "9"));
    assert!(none.status.code() == Some(2) && String::from_utf8_lossy(&none.stderr).contains("--index"), "{none:?}");
}
