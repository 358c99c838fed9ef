//! What a command may read and where it may write: pipes, empty inputs, folders in use, builds without a sample.

mod fixture;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use fixture::{Bench, contents};

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_refused(output: &Output, said: &[&str]) {
    let told = told(output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for text in said {
        assert!(told.contains(text), "`{text}` in {told}");
    }
}

/// Commands over `input` that would write to `output`, one per way in.
fn readers<'a>(bench: &'a Bench, input: &'a str, output: &'a str) -> Vec<Vec<&'a str>> {
    let mut all: Vec<Vec<&str>> = Vec::new();
    for source in [
        "sa1b",
        "sa1b-paired",
        "llava",
        "cogvlm",
        "ai-challenger",
        "coco",
        "scienceqa",
        "minimind",
        "sharegpt",
        "openai",
        "finevision",
        "webdataset",
        "vlmeval-tsv",
    ] {
        all.push(vec!["audit", "--source", source, "--input", input]);
        let processor = bench.data("processor");
        all.push(vec![
            "build-shards",
            "--source",
            source,
            "--input",
            input,
            "--processor",
            processor,
            "--output",
            output,
        ]);
    }
    for source in ["sa1b", "sa1b-paired", "coco", "ai-challenger", "urls"] {
        all.push(vec!["fetch", "--source", source, "--input", input, "--output", output]);
    }
    for source in ["caps-boxes", "coco"] {
        #[rustfmt::skip]
        all.push(vec![
            "generate", "--kind", "conversation", "--source", source, "--input", input, "--output", output,
            "--endpoint", "http://127.0.0.1:9/v1", "--model", "m",
        ]);
    }
    all
}

#[test]
fn a_pipe_as_input_is_refused_before_it_is_opened() {
    let bench = Bench::new(2, 16);
    let (pipe, output) = (bench.text("pipe.jsonl"), bench.text("out"));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    for args in readers(&bench, &pipe, &output) {
        let mut child = bench.start(&args);
        let started = Instant::now();
        while child.try_wait().expect("asked").is_none() {
            if started.elapsed() > Duration::from_secs(60) {
                child.kill().expect("killed");
                panic!("it waits for the pipe: {args:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_refused(&child.wait_with_output().expect("ended"), &["--input", "regular file", &pipe]);
        assert!(!Path::new(&output).exists(), "{args:?}");
    }
    assert_refused(&bench.run(&["audit", "--source", "llava", "--input", "/dev/zero"]), &["--input", "a device"]);
}

#[test]
fn an_input_without_a_record_is_one_and_the_same_fault_everywhere() {
    let bench = Bench::new(2, 16);
    let output = bench.text("out");
    for (name, content, but) in [
        ("empty", "", &["cogvlm"][..]),
        (
            "blank.jsonl",
            "\n \n",
            &["sa1b", "sa1b-paired", "finevision", "cogvlm", "coco", "scienceqa", "webdataset", "vlmeval-tsv"],
        ),
        (
            "list.json",
            "[]",
            &["sa1b", "sa1b-paired", "finevision", "cogvlm", "coco", "scienceqa", "webdataset", "vlmeval-tsv", "urls"],
        ),
    ] {
        let input = bench.text(name);
        fs::write(&input, content).expect("file");
        for args in
            readers(&bench, &input, &output).into_iter().filter(|args| !but.iter().any(|source| args.contains(source)))
        {
            assert_refused(&bench.run(&args), &["--input", "no record in", &input]);
            assert!(!Path::new(&output).exists(), "{args:?}");
        }
    }
}

/// Waits until a build has begun its first shard.
fn wait_for_shard(output: &str) {
    let started = Instant::now();
    let is_writing = || {
        let names = fs::read_dir(output).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name.to_string_lossy().starts_with("shard-00000.parquet"))
    };
    while !is_writing() {
        assert!(started.elapsed() < Duration::from_secs(60), "it never wrote");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_second_build_of_the_same_plan_is_refused_while_the_first_is_at_work() {
    let bench = Bench::new(1500, 32);
    let output = bench.text("shards");
    let args = bench.build_args(&output, "1050KiB");
    let mut first = bench.start(&args);
    wait_for_shard(&output);
    // It stands still, so that it cannot be done before the second starts.
    let signal = |id: u32, name: &str| Command::new("kill").args([name, &id.to_string()]).status().expect("kill runs");
    assert!(signal(first.id(), "-STOP").success());
    let before = contents(Path::new(&output)).into_keys().collect::<Vec<_>>();
    let second = bench.run(&args);
    let after = contents(Path::new(&output)).into_keys().collect::<Vec<_>>();
    first.kill().expect("killed");
    assert_eq!(first.wait().expect("ended").signal(), Some(9));
    let said = told(&second);
    assert!(said.contains("in use by another process") && said.contains(&output), "{said}");
    assert_eq!(second.status.code(), Some(1));
    assert_eq!(after, before, "nothing of the first is touched");
    // What was killed holds nothing.
    assert_eq!(bench.json(&args)["samples"].as_u64(), Some(1500));
    assert!(!contents(Path::new(&output)).contains_key(".lock"));
}

#[test]
fn a_build_of_nothing_but_rejects_leaves_its_list_and_a_folder_that_can_be_used() {
    let bench = Bench::new(3, 16);
    let output = bench.text("shards");
    let mut args = bench.build_args(&output, "1MiB");
    let (images, none) = (args.iter().position(|arg| *arg == "--images").expect("the flag") + 1, bench.text("none"));
    fs::create_dir(&none).expect("folder");
    let sound = std::mem::replace(&mut args[images], &none);
    for _ in 0..2 {
        let refused = bench.run(&args);
        assert_eq!(refused.status.code(), Some(3), "{}", told(&refused));
        assert!(told(&refused).contains("rejects.jsonl"), "{}", told(&refused));
        let left = contents(Path::new(&output));
        assert_eq!(left.keys().collect::<Vec<_>>(), ["rejects.jsonl"]);
        assert!(String::from_utf8_lossy(&left["rejects.jsonl"]).contains("missing_image"));
    }
    args[images] = sound;
    assert_eq!(bench.json(&args)["samples"].as_u64(), Some(3));
    assert_eq!(contents(Path::new(&output))["rejects.jsonl"], b"");

    // Somebody else's list is not ours to replace.
    let other = bench.text("other");
    fs::create_dir(&other).expect("folder");
    fs::write(Path::new(&other).join("rejects.jsonl"), "{\"mine\": 1}\n").expect("file");
    assert_refused(&bench.run(&bench.build_args(&other, "1MiB")), &["--output", "rejects.jsonl"]);
}

#[test]
fn lists_beside_the_images_are_no_part_of_a_build_and_images_are() {
    let bench = Bench::new(3, 16);
    let output = bench.text("shards");
    let args = bench.build_args(&output, "1MiB");
    let fingerprint = bench.json(&args)["fingerprint"].clone();
    let images = Path::new(bench.data("sa1b_images"));
    fs::create_dir(images.join(".fetch")).expect("folder");
    for name in [".fetch/ledger.jsonl", "failed.jsonl", "README.md", "notes.txt", "list.parquet"] {
        fs::write(images.join(name), "anything").expect("file");
    }
    assert_eq!(bench.json(&args)["fingerprint"], fingerprint);
    fs::write(images.join("another.jpg"), "an image for all we know").expect("file");
    assert_refused(&bench.run(&args), &["--output", "other inputs, images or settings"]);
}

#[test]
fn an_output_that_is_no_folder_or_holds_something_else_is_wrong_use() {
    let bench = Bench::new(2, 16);
    let (file, folder) = (bench.text("file"), bench.text("folder"));
    fs::write(&file, "x").expect("file");
    assert_refused(&bench.run(&bench.build_args(&file, "1MiB")), &["--output", "a folder", &file]);
    fs::create_dir(&folder).expect("folder");
    fs::write(Path::new(&folder).join("manifest.json"), "{}").expect("file");
    assert_refused(&bench.run(&bench.build_args(&folder, "1MiB")), &["--output", "manifest.json", &folder]);
    assert_eq!(contents(Path::new(&folder)).len(), 1);
}

#[test]
fn pages_are_written_into_folders_that_are_not_there_yet() {
    let bench = Bench::new(2, 16);
    let shards = bench.text("shards");
    bench.json(&bench.build_args(&shards, "1MiB"));
    for (command, page) in [("preview", "pages/a/preview.html"), ("stats", "pages/b/stats.html")] {
        let page = bench.text(page);
        bench.json(&[command, "--shards", &shards, "--html", &page, "--json"]);
        assert!(fs::read_to_string(&page).expect("the page").contains("</html>"));
        let names = contents(Path::new(&page).parent().expect("a folder"));
        assert_eq!(names.len(), 1, "nothing unfinished lies beside it");
    }
    assert_refused(
        &bench.run(&["preview", "--shards", &shards, "--html", "p.html", "--limit", "0"]),
        &["--limit", "at least 1"],
    );
}

#[test]
fn a_limit_of_file_sizes_is_an_error_with_words() {
    let bench = Bench::new(200, 32);
    let output = bench.text("shards");
    let args = bench.build_args(&output, "8MiB");
    let mut shell = Command::new("bash");
    shell.args(["-c", "ulimit -f 64; exec \"$@\"", "bash", env!("CARGO_BIN_EXE_pipeline")]).args(&args);
    let stopped = shell.stdin(Stdio::null()).output().expect("bash runs");
    assert_eq!(stopped.status.code(), Some(1), "{stopped:?}");
    assert!(told(&stopped).contains("File too large") && told(&stopped).contains("shard-00000"), "{}", told(&stopped));
    assert_eq!(bench.json(&args)["samples"].as_u64(), Some(200));
}
