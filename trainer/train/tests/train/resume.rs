//! Killed at any step, a run goes on as if nothing had happened.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use vela_train::{EncodeOptions, FeatureType, Resume, TrainError, encode, read_answers};
use vela_types::SeedStream;

use crate::fixture::{Stage, copy_folder, golden, golden_records, loss_bits, open_processor, write_shards};

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
pub(crate) fn wait_for_lines(child: &mut Child, metrics: &Path, lines: u64) -> bool {
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
    terminate(&child);
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
fn a_termination_between_validations_leaves_a_checkpoint_without_a_score() {
    let stage = Stage::new("freeze_vision_and_llm");
    let processor = open_processor(&golden().join("processor"));
    write_shards(&stage.path("held-out"), &golden_records(&processor)[..5], &processor);
    let mut long = sets(&stage, "run");
    long[1] = "run.max_steps=100000".into();
    long[3] = "checkpoint.every=100000".into();
    long.push(format!("data.validation={}", stage.path("held-out").display()));
    let mut child = stage.command(&long, &["--json"]).spawn().expect("spawned");
    assert!(wait_for_lines(&mut child, &stage.path("run").join("metrics.jsonl"), 4));
    terminate(&child);
    let output = child.wait_with_output().expect("ended");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let json: serde_json::Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    let step = json["steps"].as_u64().expect("a number");
    assert_eq!(
        stage.state("run", step)["score"],
        serde_json::Value::Null,
        "a loss of training beside those of validation"
    );
}

#[test]
fn a_second_process_is_kept_out_of_a_run_folder_and_of_an_encodes_output() {
    let stage = Stage::new("freeze_vision_and_llm");
    let mut long = sets(&stage, "run");
    long[1] = "run.max_steps=100000".into();
    let mut child = stage.command(&long, &[]).spawn().expect("spawned");
    assert!(wait_for_lines(&mut child, &stage.path("run").join("metrics.jsonl"), 4));
    let output = stage.command(&long, &["--resume", "auto"]).output().expect("run");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("is in use by another process") && told.contains("/run`"), "{told}");
    child.kill().and_then(|()| child.wait()).expect("ended");
    // The lock goes with its process, whatever ended that.
    long[1] = "run.max_steps=8".into();
    let again = stage.command(&long, &["--resume", "auto"]).output().expect("run");
    assert!(!String::from_utf8_lossy(&again.stderr).contains("in use"), "{again:?}");
    assert!(!stage.path("run/.lock").exists());
    let checkpoint = stage.train_in("base", &["run.max_steps=1", "schedule.warmup_steps=0"], &Resume::Fresh);
    let options = EncodeOptions {
        model: checkpoint.expect("a run").checkpoint.expect("one"),
        shards: stage.path("shards").display().to_string(),
        output: stage.path("features").display().to_string(),
        dtype: FeatureType::F32,
        batch: 4,
    };
    fs::create_dir(stage.path("features")).expect("created");
    let lock = fs::File::create(stage.path("features/.lock")).expect("created");
    lock.lock().expect("free");
    let fault = encode(&options, &vela_runtime::Shutdown::new()).expect_err("in use");
    assert!(matches!(&fault, TrainError::InUse { path } if path.ends_with("features")), "{fault}");
    drop(lock);
    encode(&options, &vela_runtime::Shutdown::new()).expect("free");
}

fn terminate(child: &Child) {
    let signal = format!("kill -TERM {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &signal]).status().expect("sh").success());
}

#[test]
fn a_checkpoint_needs_neither_the_folder_it_started_from_nor_its_processor() {
    let stage = Stage::new("freeze_vision_and_llm");
    let base = stage.path("base");
    copy_folder(&golden().join("model"), &base);
    copy_folder(&golden().join("processor"), &base);
    let text = fs::read_to_string(stage.path("recipe.toml")).expect("there");
    let lines =
        text.lines().filter(|line| !line.starts_with("processor = ")).map(|line| match line.starts_with("path = ") {
            true => format!("path = '{}'\n", base.display()),
            false => format!("{line}\n"),
        });
    fs::write(stage.path("recipe.toml"), lines.collect::<String>()).expect("written");
    stage.train(&["run.max_steps=5"], &Resume::Fresh).expect("a run");
    fs::rename(&base, stage.path("elsewhere")).expect("moved");
    assert_eq!(stage.train(&["run.max_steps=8"], &Resume::Auto).expect("goes on").steps, 8);
}

#[test]
fn answers_before_the_first_step_are_not_doubled_by_a_kill_before_the_first_checkpoint() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets = ["run.max_steps=4", "samples.max_new_tokens=1", "samples.questions=[{question='w9'}]"];
    stage.train(&sets, &Resume::Fresh).expect("a run");
    fs::remove_dir_all(stage.path("run/checkpoints")).expect("as if killed before");
    stage.train(&sets, &Resume::Auto).expect("from the start");
    let lines = read_answers(&stage.path("run/answers.jsonl")).expect("written");
    assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [0, 4]);
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
