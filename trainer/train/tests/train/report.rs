//! What a run leaves for people: the page, the events, the metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use vela_train::Resume;

use crate::chat::write_image;
use crate::fixture::{Stage, trainer};

fn with_questions(stage: &Stage) -> String {
    let image = write_image(stage).display().to_string();
    format!("samples.questions=[{{images=['{image}'], question='w9 <b> ?'}}]")
}

#[test]
fn folders_that_are_not_there_are_told_by_their_names() {
    let stage = Stage::new("freeze_vision");
    let nowhere = stage.path("nowhere");
    let told = |command: &mut std::process::Command| {
        let output = command.output().expect("run");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let report = told(trainer().args(["report", "--run"]).arg(&nowhere));
    assert!(report.contains("nowhere") && report.contains("`trainer train`"), "{report}");
    let encode = told(trainer().args(["encode", "--shards", "s", "--output", "o", "--model"]).arg(&nowhere));
    assert!(encode.contains("nowhere") && encode.contains("a folder of that name"), "{encode}");
}

#[test]
fn a_page_about_both_stages_needs_no_other_file() {
    let stage = Stage::new("freeze_vision");
    let questions = with_questions(&stage);
    stage.train(&["run.max_steps=6", &questions, "samples.max_new_tokens=4"], &Resume::Fresh).expect("stage 1");
    let second = format!("run.output={}", stage.path("second").display());
    // A run folder is a model folder: its newest checkpoint.
    let path = format!("model.path={}", stage.path("run").display());
    stage.train(&["run.max_steps=5", &second, &path], &Resume::Fresh).expect("stage 2");
    let page = stage.path("page.html");
    let mut command = trainer();
    command.args(["report", "--json", "--run"]).arg(stage.path("run")).arg("--run").arg(stage.path("second"));
    let output = command.arg("--output").arg(&page).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((json["runs"].as_u64(), json["lines"].as_u64()), (Some(2), Some(11)));
    let html = std::fs::read_to_string(&page).expect("written");
    assert_eq!(html.matches("<svg").count(), 14);
    for part in ["data:image/png;base64,", "w9 &lt;b&gt; ?", "data fingerprint", "train_type", "6 of 6", "MFU"] {
        assert!(html.contains(part), "{part}");
    }
    let links = html.matches("src=\"").count() - html.matches("src=\"data:").count() + html.matches("href=").count();
    assert_eq!(links, 0, "nothing is fetched");
    assert!(stage.path("second/report.html").is_file(), "each run leaves its own page");
    let output = trainer().args(["report", "--run", "/nowhere"]).output().expect("run");
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("/nowhere` is not of a run"));
}

#[test]
fn answers_stand_under_their_own_questions() {
    let stage = Stage::new("freeze_vision_and_llm");
    let asked = |question: &str| format!("samples.questions=[{{question='{question}'}}]");
    stage.train(&["run.max_steps=4", &asked("w9 w10"), "samples.max_new_tokens=2"], &Resume::Fresh).expect("a run");
    stage.train(&["run.max_steps=6", &asked("w11 w12"), "samples.max_new_tokens=2"], &Resume::Auto).expect("longer");
    let html = std::fs::read_to_string(stage.path("run/report.html")).expect("written");
    let tables: Vec<&str> = html.split("<table class=\"answers\">").skip(1).collect();
    assert_eq!(tables.len(), 2, "{html}");
    assert!(tables[0].contains("w9 w10") && tables[0].contains("<td>4</td>") && !tables[0].contains("<td>6</td>"));
    assert!(tables[1].contains("w11 w12") && tables[1].contains("<td>6</td>"));
}

#[test]
fn metrics_lines_hold_speed_utilisation_and_memory() {
    let stage = Stage::new("freeze_vision");
    stage.train(&["run.max_steps=6", "logging.every=2", "logging.peak_tflops=0.001"], &Resume::Fresh).expect("a run");
    let lines = stage.metrics("run");
    assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [1, 2, 4, 6]);
    for line in &lines {
        let mfu = line.mfu.expect("counted");
        assert!(mfu > 0.0 && line.tokens_per_second > line.label_tokens_per_second, "{line:?}");
        assert!(line.images_per_second > 0.0 && line.images_per_second <= line.samples_per_second, "{line:?}");
        // The tokens and their operations go together: both are over the same seconds.
        let per_token = mfu * 1e9 / line.tokens_per_second;
        assert!((3e4..3e6).contains(&per_token), "{per_token}");
    }
    if cfg!(target_os = "linux") {
        let last = &lines[3];
        assert!(last.memory_bytes.expect("told") <= last.peak_memory_bytes.expect("told"));
    }
    let card: Value =
        serde_json::from_str(&std::fs::read_to_string(stage.path("run/run.json")).expect("there")).expect("JSON");
    assert_eq!((card["samples"].as_u64(), card["peak"]["is_measured"].as_bool()), (Some(36), Some(false)));
}

#[test]
fn a_resumed_run_tells_tensorboard_where_it_goes_on() {
    let stage = Stage::new("freeze_vision_and_llm");
    stage.train(&["run.max_steps=5"], &Resume::Fresh).expect("a run");
    stage.train(&["run.max_steps=8"], &Resume::Auto).expect("longer");
    let files = std::fs::read_dir(stage.path("run/tensorboard")).expect("there");
    let bytes: Vec<u8> =
        files.flat_map(|file| std::fs::read(file.expect("an entry").path()).expect("readable")).collect();
    // Field 2 `step`, then field 7 `session_log` with status START.
    let starts = |step: u8| bytes.windows(6).filter(|found| *found == [0x10, step, 0x3a, 2, 8, 1]).count();
    assert_eq!([1, 6, 7].map(starts), [1, 1, 0]);
    let silent = format!("run.output={}", stage.path("silent").display());
    stage.train(&["run.max_steps=4", "logging.tensorboard=false", &silent], &Resume::Fresh).expect("a run");
    assert!(!stage.path("silent/tensorboard").exists());
}

#[test]
fn prometheus_reads_a_run_while_it_goes_on() {
    let stage = Stage::new("freeze_vision");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("free");
    let sets = ["run.max_steps=100000".to_owned(), format!("logging.metrics={port}"), "checkpoint.every=100000".into()];
    let mut child = stage.command(&sets, &[]).spawn().expect("spawned");
    let deadline = Instant::now() + Duration::from_secs(60);
    let page = loop {
        assert!(Instant::now() < deadline && child.try_wait().expect("a child").is_none(), "no metrics");
        let page = read_metrics_page(&port.to_string());
        if page.contains("vela_trainer_loss") {
            break page;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    child.kill().and_then(|()| child.wait()).expect("ended");
    for name in ["step", "loss", "learning_rate{group=\"projector\"}", "mfu_ratio", "data_wait_ratio"] {
        assert!(page.contains(&format!("vela_trainer_{name} ")), "{name}: {page}");
    }
}

fn read_metrics_page(address: &str) -> String {
    let mut page = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let _ = asked.and_then(|()| stream.read_to_string(&mut page));
    }
    page
}
