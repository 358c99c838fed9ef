//! The real binary: exit codes, JSON keys, kill and resume.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vela_types::SeedStream;

fn pipeline(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    pipeline(args).output().expect("the binary starts")
}

fn json_line(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|fault| panic!("{fault}: {output:?}"))
}

fn demo(root: &Path, samples: &str) -> Value {
    let output = run(&["demo-data", "--output", &text(root, "demo"), "--samples", samples, "--heldout", "3", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    json_line(&output)
}

fn text(root: &Path, name: &str) -> String {
    root.join(name).to_string_lossy().into_owned()
}

fn build_args<'a>(data: &'a Value, output: &'a str) -> Vec<&'a str> {
    let value = |key: &str| data[key].as_str().expect("a path");
    vec![
        "build-shards",
        "--source",
        "sa1b",
        "--dialogue",
        "rules",
        "--input",
        value("sa1b"),
        "--images",
        value("sa1b_images"),
        "--processor",
        value("processor"),
        "--output",
        output,
        "--shard-size",
        "140KiB",
        "--json",
    ]
}

fn contents(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
    let files = entries.filter(|path| path.is_file());
    files
        .map(|path| (path.file_name().expect("name").to_string_lossy().into(), fs::read(&path).expect("file")))
        .collect()
}

#[test]
fn the_json_line_has_the_keys_that_scripts_rely_on() {
    let root = tempfile::tempdir().expect("temp folder");
    let data = demo(root.path(), "30");
    let (shards, html) = (text(root.path(), "shards"), text(root.path(), "page.html"));
    let output = run(&build_args(&data, &shards));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json_line(&output);
    for key in ["samples", "rejected", "images", "tokens", "shards", "bytes", "seconds", "fingerprint"] {
        assert!(!report[key].is_null(), "{key}: {report}");
    }
    assert_eq!((report["samples"].as_u64(), report["images"].as_u64()), (Some(30), Some(30)));
    let output = run(&["preview", "--shards", &shards, "--html", &html, "--limit", "5", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let page = fs::read_to_string(&html).expect("page");
    assert_eq!(page.matches("<article").count(), 5);
    assert!(page.contains("data:image/png;base64,") && page.contains("class=\"l\"") && page.contains("图形"));
    assert!(!page.contains("src=\"http"), "the page needs nothing but itself");
    let output = run(&["stats", "--shards", &shards, "--tokens-per-image", "16", "--html", &html, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json_line(&output);
    for key in ["samples", "images", "tokens", "label_tokens", "languages", "sources", "lengths", "duplicates"] {
        assert!(!report[key].is_null(), "{key}: {report}");
    }
    assert!(report["packing"]["padding"].as_f64() < report["padding"]["fixed"].as_f64(), "{report}");
}

#[test]
fn wrong_use_exits_with_2_and_says_what_was_expected() {
    let root = tempfile::tempdir().expect("temp folder");
    let data = demo(root.path(), "4");
    let shards = text(root.path(), "shards");
    let replaced = |flag: &str, value: &'static str| {
        let mut args = build_args(&data, &shards);
        let at = args.iter().position(|arg| *arg == flag).expect("the flag");
        args[at + 1] = value;
        run(&args)
    };
    for (flag, value, said) in [
        ("--source", "sa2b", "sa1b"),
        ("--dialogue", "keep", "rules"),
        ("--input", "/no/such/file", "--input"),
        ("--images", "/no/such/folder", "--images"),
        ("--shard-size", "12", "512MiB"),
    ] {
        let output = replaced(flag, value);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag}: {stderr}");
        assert!(stderr.contains(said), "{flag}: {stderr}");
    }
    assert_eq!(run(&["build-shards", "--no-such-flag"]).status.code(), Some(2));
    let used = text(root.path(), "demo");
    assert_usage(&run(&["demo-data", "--output", &used]), &["--output", &used, "an empty folder", "other files"]);
    let said = ["--max-facts", "`--dialogue rules`", "`--dialogue keep`"];
    assert_usage(
        &run(&[
            "build-shards",
            "--source",
            "llava",
            "--max-facts",
            "1",
            "--input",
            &used,
            "--processor",
            &used,
            "--output",
            &shards,
        ]),
        &said,
    );
}

#[test]
fn finished_demo_data_is_left_as_it_is_and_unfinished_refused() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let first = demo(root.path(), "4");
    let file = root.path().join("demo/llava/demo_instruct.json");
    let time = || fs::metadata(&file).and_then(|found| found.modified()).expect("a written file");
    let written = time();
    assert_eq!((demo(root.path(), "4"), time()), (first, written));

    fs::remove_file(root.path().join("demo/settings.txt")).expect("the file that is written last");
    let used = text(root.path(), "demo");
    let again = run(&["demo-data", "--output", &used, "--samples", "4", "--heldout", "3"]);
    assert_usage(&again, &["--output", &used, "other files"]);
}

/// Exit code 2, and a message that says all of `said` and never `fingerprint`.
fn assert_usage(output: &Output, said: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for text in said {
        assert!(stderr.contains(text), "`{text}` in {stderr}");
    }
    assert!(!stderr.contains("fingerprint"), "{stderr}");
}

#[test]
fn wrong_folders_formats_and_urls_are_wrong_use() {
    let root = tempfile::tempdir().expect("temp folder");
    let data = demo(root.path(), "4");
    let shards = text(root.path(), "shards");
    let with = |changes: &[(&str, &str)]| {
        let mut args: Vec<String> = build_args(&data, &shards).into_iter().map(str::to_owned).collect();
        for (flag, value) in changes {
            let at = args.iter().position(|arg| arg == flag).expect("the flag");
            args[at + 1] = (*value).to_owned();
        }
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let place = |key: &str| data[key].as_str().expect("a path");
    let llava = place("llava");
    let parquet = fs::read_dir(place("sa1b")).expect("folder").next().expect("a file").expect("entry").path();
    let parquet = parquet.to_str().expect("text");
    let (plain, coco) = (text(root.path(), "plain.jsonl"), text(root.path(), "coco.json"));
    fs::write(&plain, "no JSON\nat all\n").expect("file");
    fs::write(&coco, r#"{"images": [], "annotations": [{"id": 1}]}"#).expect("file");

    assert_usage(&with(&[("--processor", place("llava"))]), &["--processor", llava, "processor folder"]);
    assert_usage(&with(&[("--processor", place("sa1b"))]), &["--processor", place("sa1b"), "expected"]);
    assert_usage(&with(&[("--input", llava)]), &["--input", "expected a Parquet file", llava]);
    for wrong in [parquet, &plain, &coco] {
        let changes = [("--source", "llava"), ("--dialogue", "keep"), ("--input", wrong)];
        assert_usage(&with(&changes), &["--input", "expected", wrong]);
    }
    let changes = [("--source", "coco"), ("--input", llava)];
    assert_usage(&with(&changes), &["--input", "annotations", llava]);
    assert_usage(&with(&[("--output", "ftp://host/shards")]), &["--output", "file://", "s3://", "ftp://host/shards"]);
    assert!(!Path::new(&shards).exists(), "nothing was written");

    let html = text(root.path(), "page.html");
    let preview = |shards: &str| run(&["preview", "--shards", shards, "--html", &html]);
    assert_usage(&preview(&shards), &["--shards", &shards, "manifest.json"]);
    assert_usage(&preview("ftp://host/shards"), &["--shards", "file://", "s3://", "ftp://host/shards"]);
    assert_usage(&run(&["stats", "--shards", &shards]), &["--shards", &shards, "manifest.json"]);
    assert_usage(&run(&["stats", "--shards", &shards, "--batch", "0"]), &["--batch", "at least 1"]);
}

#[test]
fn flags_of_rule_dialogues_need_rule_dialogues() {
    let root = tempfile::tempdir().expect("temp folder");
    let data = demo(root.path(), "4");
    let shards = text(root.path(), "shards");
    let mut args = build_args(&data, &shards);
    args.extend(["--max-facts", "1", "--no-description"]);
    let dialogue = args.iter().position(|arg| *arg == "rules").expect("the mode");
    args[dialogue] = "caption";
    assert_usage(&run(&args), &["--max-facts", "`--dialogue rules`", "`--dialogue caption`"]);
    args.drain(args.len() - 3..args.len() - 1);
    assert_usage(&run(&args), &["--no-description", "`--dialogue rules`", "`--dialogue caption`"]);
    args[dialogue] = "rules";
    assert_eq!(run(&args).status.code(), Some(0));
}

#[test]
fn an_output_that_cannot_be_written_is_an_error_with_its_path() {
    let root = tempfile::tempdir().expect("temp folder");
    let data = demo(root.path(), "4");
    fs::write(root.path().join("file"), "not a folder").expect("file");
    let shards = text(root.path(), "file/shards");
    let output = run(&build_args(&data, &shards));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&shards), "{stderr}");
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_a_folder_that_the_same_command_continues() {
    let root = tempfile::tempdir().expect("temp folder");
    let data = demo(root.path(), "400");
    let shards = text(root.path(), "shards");
    let child = pipeline(&build_args(&data, &shards)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("starts");
    let started = Instant::now();
    while !Path::new(&shards).join("shard-00000.parquet").exists() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(signal.success());
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("run the same command again"), "{output:?}");
    let report = json_line(&run(&build_args(&data, &shards)));
    assert_eq!(report["samples"].as_u64(), Some(400));
    assert!(report["kept_shards"].as_u64() >= Some(1), "{report}");
}

#[test]
fn more_rejects_than_accepted_exit_with_3_and_the_shards_are_there() {
    let root = tempfile::tempdir().expect("temp folder");
    let data = demo(root.path(), "20");
    let photo = Path::new(data["sa1b_images"].as_str().expect("a path")).join("sa_000007.jpg");
    fs::write(&photo, &fs::read(&photo).expect("photo")[..200]).expect("cut");
    let shards = text(root.path(), "shards");
    let mut args = build_args(&data, &shards);
    args.extend(["--max-reject", "0.04"]);
    let output = run(&args);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--max-reject"));
    let report = json_line(&output);
    assert_eq!((report["samples"].as_u64(), &report["rejected"]["truncated_image"]), (Some(19), &Value::from(1)));
    assert!(Path::new(&shards).join("manifest.json").is_file());
    let again = args.len() - 1;
    args[again] = "0.05";
    assert_eq!(run(&args).status.code(), Some(0), "the same build, now accepted");
}

#[cfg(unix)]
#[test]
fn killed_three_times_the_build_ends_with_the_same_bytes() {
    use std::os::unix::process::ExitStatusExt;

    let root = tempfile::tempdir().expect("temp folder");
    let data = demo(root.path(), "600");
    let (whole, broken) = (text(root.path(), "whole"), text(root.path(), "broken"));
    assert_eq!(run(&build_args(&data, &whole)).status.code(), Some(0));
    let seed = std::process::id();
    let mut draw = SeedStream::new(u64::from(seed));
    let finished = || {
        let names = fs::read_dir(&broken).map(|entries| entries.flatten().map(|entry| entry.file_name()));
        names.map_or(0, |names| names.filter(|name| name.to_string_lossy().ends_with(".parquet")).count() as u64)
    };
    for _ in 0..3 {
        let goal = finished() + 1 + draw.below(6);
        let quiet = || Stdio::null();
        let mut child = pipeline(&build_args(&data, &broken)).stdout(quiet()).stderr(quiet()).spawn().expect("starts");
        let started = Instant::now();
        while finished() < goal && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(draw.below(20_000)));
        child.kill().expect("killed");
        let status = child.wait().expect("ended");
        assert_eq!(status.signal(), Some(9), "seed {seed}: it was killed in the middle");
        assert!(!Path::new(&broken).join("manifest.json").exists(), "seed {seed}: no manifest before the end");
    }
    let output = run(&build_args(&data, &broken));
    assert_eq!(output.status.code(), Some(0), "seed {seed}: {output:?}");
    let report = json_line(&output);
    assert!(report["kept_shards"].as_u64() >= Some(3), "seed {seed}: {report}");
    assert_eq!(contents(&broken), contents(&whole), "seed {seed}");
}
