//! Killed at any step, a run goes on as if nothing had happened.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use vela_train::{Resume, TrainError};
use vela_types::SeedStream;

use crate::fixture::{Stage, loss_bits};

const STEPS: u64 = 40;

fn sets(stage: &Stage, run: &str) -> Vec<String> {
    vec![
        format!("run.output={}", stage.path(run).display()),
        format!("run.max_steps={STEPS}"),
        "data.shuffle=true".into(),
        "checkpoint.every=3".into(),
    ]
}

fn num_lines(metrics: &Path) -> u64 {
    fs::read_to_string(metrics).map_or(0, |text| text.lines().count() as u64)
}

/// Waits until the metrics have that many lines; false if the process ended first.
fn wait_for_lines(child: &mut Child, metrics: &Path, lines: u64) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while num_lines(metrics) < lines {
        assert!(Instant::now() < deadline, "no progress");
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn kills_at_random_steps_change_no_bit() {
    assert_kills_change_no_bit(&Stage::new("full"));
}

/// Runs the stage once undisturbed and once killed at four random steps; losses, weights and moments must be equal.
pub(crate) fn assert_kills_change_no_bit(stage: &Stage) {
    let whole = stage.command(&sets(stage, "whole"), &[]).output().expect("run");
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let metrics = stage.path("killed").join("metrics.jsonl");
    let mut draws = SeedStream::named(11, "test", "kills");
    let mut kills = 0;
    for start in [0, 9, 18, 27] {
        let mut child = stage.command(&sets(stage, "killed"), &["--resume", "auto"]).spawn().expect("spawned");
        if wait_for_lines(&mut child, &metrics, start + 1 + draws.below(8)) {
            std::thread::sleep(Duration::from_micros(draws.below(20_000)));
            child.kill().expect("killed");
            kills += 1;
        }
        child.wait().expect("ended");
    }
    assert!(kills >= 2, "the run was over before it could be killed");
    let last = stage.command(&sets(stage, "killed"), &["--resume", "auto"]).output().expect("run");
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    assert_eq!(loss_bits(&stage.metrics("killed")), loss_bits(&stage.metrics("whole")));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &str| fs::read(stage.path(run).join(format!("checkpoints/step-{STEPS}")).join(file));
        assert_eq!(bytes("killed").expect("there"), bytes("whole").expect("there"), "{file}");
    }
}

#[test]
fn a_termination_leaves_a_checkpoint_and_says_how_to_go_on() {
    let stage = Stage::new("freeze_vision");
    let mut long = sets(&stage, "run");
    long[1] = "run.max_steps=100000".into();
    let mut child = stage.command(&long, &["--json"]).spawn().expect("spawned");
    assert!(wait_for_lines(&mut child, &stage.path("run").join("metrics.jsonl"), 4));
    let signal = format!("kill -TERM {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &signal]).status().expect("sh").success());
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("--resume auto"), "{told}");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let json: serde_json::Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    assert_eq!(json["interrupted"], true);
    let checkpoint = json["checkpoint"].as_str().expect("a path").to_owned();
    assert!(checkpoint.ends_with(&format!("step-{}", json["steps"])) && Path::new(&checkpoint).is_dir(), "{json}");
}

#[test]
fn the_folder_of_another_run_is_not_overwritten() {
    let stage = Stage::new("freeze_vision_and_llm");
    stage.train(&["run.max_steps=4"], &Resume::Fresh).expect("a run");
    let fault = stage.train(&["run.max_steps=4"], &Resume::Fresh).expect_err("taken");
    assert!(matches!(fault, TrainError::RunFolderTaken { .. }), "{fault}");
    assert!(fault.to_string().contains("--resume auto"), "{fault}");
}

#[test]
fn a_finished_run_can_be_made_longer_and_another_recipe_is_refused() {
    let stage = Stage::new("freeze_vision_and_llm");
    stage.train(&["run.max_steps=5"], &Resume::Fresh).expect("a run");
    let told = stage.train(&["optimizer.weight_decay=0.2"], &Resume::Auto).expect_err("another decay").to_string();
    assert!(told.contains("`optimizer.weight_decay`") && told.contains("0.2") && told.contains("0.1"), "{told}");
    let longer = stage.train(&["run.max_steps=8"], &Resume::Auto).expect("longer");
    assert_eq!((longer.steps, stage.metrics("run").len()), (8, 8));
}

#[test]
fn a_checkpoint_with_damaged_moments_is_refused_by_name() {
    let stage = Stage::new("freeze_vision_and_llm");
    let report = stage.train(&["run.max_steps=5"], &Resume::Fresh).expect("a run");
    let path = report.checkpoint.expect("one").join("optimizer.safetensors");
    let bytes = fs::read(&path).expect("there");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("cut");
    let told = stage.train(&["run.max_steps=8"], &Resume::Auto).expect_err("cut").to_string();
    assert!(told.contains("optimizer.safetensors") && told.contains("step-5"), "{told}");
}

#[test]
fn one_flipped_bit_of_a_checkpoint_is_refused_by_the_files_name() {
    let stage = Stage::new("freeze_vision_and_llm");
    let checkpoint = stage.train(&["run.max_steps=5"], &Resume::Fresh).expect("a run").checkpoint.expect("one");
    for name in ["optimizer.safetensors", "model.safetensors", "tokenizer.json"] {
        let path = checkpoint.join(name);
        let sound = fs::read(&path).expect("there");
        let mut flipped = sound.clone();
        // The length of the header of a safetensors file stands first: it no longer parses.
        flipped[2] ^= 4;
        fs::write(&path, &flipped).expect("written");
        let told = stage.train(&["run.max_steps=8"], &Resume::Auto).expect_err(name).to_string();
        assert!(told.contains(name) && told.contains("step-5"), "{told}");
        fs::write(&path, &sound).expect("written");
    }
    assert_eq!(stage.train(&["run.max_steps=8"], &Resume::Auto).expect("sound again").steps, 8);
}

/// Saves before each step, goes on from each of these places elsewhere, and compares the whole tail.
fn assert_every_step_can_be_resumed(train_type: &str, more: &[&str]) {
    const STEPS: usize = 7;
    let stage = Stage::new(train_type);
    let steps = format!("run.max_steps={STEPS}");
    // Packed rows, their order drawn anew in each epoch; the epoch ends within the run.
    let shared = [
        &["data.shuffle=true", "batch.global=5", "batch.micro=2", "batch.packing.max_images=3"],
        &["batch.packing.window=12", "checkpoint.every=1", "checkpoint.keep=99", &steps][..],
        more,
    ]
    .concat();
    let whole = stage.train(&shared, &Resume::Fresh).expect("a whole run");
    let lines = stage.metrics("run");
    assert!(lines[STEPS - 1].epoch > 1.0, "the run must cross the end of an epoch: {}", lines[STEPS - 1].epoch);
    let expected = whole.checkpoint.expect("one");
    for step in 1..STEPS {
        let (from, run) = (stage.path("run").join(format!("checkpoints/step-{step}")), format!("from-{step}"));
        let output = format!("run.output={}", stage.path(&run).display());
        let tail = stage.train(&[&shared[..], &[&output]].concat(), &Resume::From(from)).expect("the tail");
        assert_eq!(loss_bits(&stage.metrics(&run)), loss_bits(&lines[step..]), "{train_type} after step {step}");
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let bytes = |folder: &Path| fs::read(folder.join(file)).expect("there");
            let found = bytes(tail.checkpoint.as_deref().expect("one"));
            assert!(found == bytes(&expected), "{train_type} after step {step}: {file}");
        }
    }
}

/// LLaVA's first stage saved the projector alone and could not go on; here each train type goes on from any step.
#[test]
fn defect_20_stage_one_resumes_from_every_step() {
    assert_every_step_can_be_resumed("freeze_vision_and_llm", &[]);
}

#[test]
fn stage_two_resumes_from_every_step() {
    assert_every_step_can_be_resumed("freeze_vision", &["schedule.kind=wsd", "schedule.decay_steps=3"]);
}

#[test]
fn a_part_of_the_language_model_resumes_from_every_step() {
    assert_every_step_can_be_resumed("freeze_vision", &["groups.language_model.layers=[0]"]);
}

#[test]
fn a_full_run_resumes_from_every_step() {
    assert_every_step_can_be_resumed("full", &["guard.non_finite=skip", "schedule.kind=linear"]);
}

#[test]
fn adapters_resume_from_every_step() {
    assert_every_step_can_be_resumed("lora", &[]);
}

#[test]
fn adapters_with_dropout_resume_from_every_step() {
    assert_every_step_can_be_resumed("lora", &["lora.dropout=0.3"]);
}
