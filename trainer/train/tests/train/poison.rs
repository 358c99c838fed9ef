//! One poisoned batch among sound ones: a set of features in which the images of samples 8 to 15, step 2 of 5, are not numbers.

use std::fs;

use serde_json::Value;
use vela_dataset::Dataset;
use vela_train::{EncodeOptions, FeatureType, Resume, SkippedStep, TrainError, encode, read_answers};
use vela_types::{Fingerprint, Record};

use crate::chat::write_image;
use crate::fixture::{Stage, golden, golden_records, loss_bits, open_processor, write_set, write_shards};

const SKIP: [&str; 4] = ["guard.non_finite=skip", "run.max_steps=5", "checkpoint.every=1", "checkpoint.keep=99"];

/// A stage whose second step alone is poisoned.
fn poisoned() -> Stage {
    let stage = Stage::new("freeze_vision");
    stage.train_in("base", &["run.max_steps=1", "schedule.warmup_steps=0"], &Resume::Fresh).expect("a checkpoint");
    let options = EncodeOptions {
        model: stage.path("base"),
        shards: stage.path("shards").display().to_string(),
        output: stage.path("features").display().to_string(),
        dtype: FeatureType::F32,
        batch: 4,
    };
    encode(&options, &vela_runtime::Shutdown::new()).expect("encoded");
    let set = Dataset::open(&options.output).expect("opened");
    let records: Vec<Record> = (0..set.num_records()).map(|index| set.record(index).expect("whole")).collect();
    let records: Vec<Record> = (0..)
        .zip(records)
        .map(|(index, record)| if (8..16).contains(&index) { poison(record) } else { record })
        .collect();
    write_set(&stage.path("poisoned"), &[&records], &set.info().processor);
    stage.edit_recipe(&stage.path("shards").display().to_string(), &stage.path("poisoned").display().to_string());
    stage
}

fn poison(mut record: Record) -> Record {
    for image in &mut record.images {
        let data: Vec<u8> = f32::NAN.to_le_bytes().repeat(image.data.len() / 4);
        image.hash = Fingerprint(*blake3::hash(&data).as_bytes());
        image.data = data.into();
    }
    record
}

fn skipped(stage: &Stage, run: &str) -> Vec<SkippedStep> {
    let text = fs::read_to_string(stage.path(run).join("skipped.jsonl")).expect("written");
    text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
}

fn bytes(stage: &Stage, run: &str, step: u64, file: &str) -> Vec<u8> {
    fs::read(stage.path(run).join(format!("checkpoints/step-{step}")).join(file)).expect("there")
}

#[test]
fn a_step_that_is_not_finite_is_left_out_by_name_and_the_steps_after_it_are_made() {
    let stage = poisoned();
    let report = stage.train(&SKIP, &Resume::Fresh).expect("one step left out");
    assert_eq!(report.steps, 5);
    let skips = skipped(&stage, "run");
    assert_eq!(skips.iter().map(|step| step.step).collect::<Vec<_>>(), [2]);
    let ids: Vec<String> = (8..16).map(|index| format!("golden/{index}")).collect();
    assert_eq!(skips[0].samples, ids);
    let lines = stage.metrics("run");
    assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [1, 3, 4, 5]);
    assert!(lines.iter().all(|line| line.loss.is_finite() && line.loss < 10.0), "{lines:?}");
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert!(bytes(&stage, "run", 1, file) == bytes(&stage, "run", 2, file), "step 2 changed {file}");
        assert!(bytes(&stage, "run", 2, file) != bytes(&stage, "run", 3, file), "step 3 changed nothing of {file}");
    }
    // Resumed before the poisoned step, and right behind it, the tail is the same.
    for from in [1, 2] {
        let (run, checkpoint) = (format!("from-{from}"), stage.path("run").join(format!("checkpoints/step-{from}")));
        stage.train_in(&run, &SKIP, &Resume::From(checkpoint)).expect("the tail");
        assert_eq!(loss_bits(&stage.metrics(&run)), loss_bits(&lines[1..]), "from {from}");
        for file in ["model.safetensors", "optimizer.safetensors"] {
            assert!(bytes(&stage, &run, 5, file) == bytes(&stage, "run", 5, file), "from {from}: {file}");
        }
        assert_eq!(stage.state(&run, 5)["skipped"], 1);
    }
    // One more than may be left out ends the run.
    let two = [&SKIP[..], &["run.max_steps=10", "guard.max_skipped=1"]].concat();
    let fault = stage.train_in("two", &two, &Resume::Fresh).expect_err("a second one");
    assert!(matches!(&fault, TrainError::NonFinite { step: 7, .. }), "{fault}");
    assert!(fault.to_string().contains("1 steps were left out"), "{fault}");
}

#[test]
fn a_run_that_stops_at_such_a_step_keeps_the_steps_before_it() {
    let stage = poisoned();
    let fault = stage.train(&["run.max_steps=5"], &Resume::Fresh).expect_err("step 2");
    assert!(matches!(&fault, TrainError::NonFinite { step: 2, .. }), "{fault}");
    assert_eq!(stage.state("run", 1)["step"], 1);
    let report = stage.train(&["run.max_steps=5", "guard.non_finite=skip"], &Resume::Auto).expect("goes on");
    assert_eq!((report.steps, stage.metrics("run").len()), (5, 4));
}

#[test]
fn a_checkpoint_of_skipped_steps_alone_has_no_score_and_is_not_the_best() {
    let stage = poisoned();
    stage.train(&[&SKIP[..3], &["checkpoint.keep=1"]].concat(), &Resume::Fresh).expect("a run");
    assert!(!stage.path("run/checkpoints/step-2").exists(), "kept as the best");
    stage
        .train_in("two", &[&SKIP[..], &["run.max_steps=2", "schedule.warmup_steps=0"]].concat(), &Resume::Fresh)
        .expect("a run");
    assert_eq!(stage.state("two", 2)["score"], Value::Null);
    assert_eq!(stage.state("two", 1)["score"]["kind"], "training");
}

#[test]
fn a_validation_at_a_step_that_is_left_out_is_told() {
    let stage = poisoned();
    let processor = open_processor(&golden().join("processor"));
    write_shards(&stage.path("held-out"), &golden_records(&processor)[..5], &processor);
    let set = format!("data.validation={}", stage.path("held-out").display());
    stage.train(&[&SKIP[..], &[&*set]].concat(), &Resume::Fresh).expect("a run");
    // Left out, the step changed nothing.
    let expected = stage.metrics("run")[0].validation_loss.expect("measured");
    let text = fs::read_to_string(stage.path("run/skipped.jsonl")).expect("written");
    let line: Value = serde_json::from_str(&text).expect("one line");
    assert_eq!(line["validation_loss"].as_f64(), Some(expected));
    assert_eq!(stage.state("run", 2)["score"]["value"].as_f64(), Some(expected));
}

#[test]
fn a_failure_of_what_only_watches_keeps_the_steps_made() {
    let stage = Stage::new("freeze_vision");
    let image = write_image(&stage);
    let sets = [
        "run.max_steps=1000000".to_owned(),
        "checkpoint.every=1000000".into(),
        "samples.every=10".into(),
        "samples.max_new_tokens=1".into(),
        format!("samples.questions=[{{images=['{}'], question='w9'}}]", image.display()),
    ];
    let mut child = stage.command(&sets, &[]).spawn().expect("spawned");
    assert!(crate::resume::wait_for_lines(&mut child, &stage.path("run/metrics.jsonl"), 3));
    fs::remove_file(&image).expect("removed");
    let output = child.wait_with_output().expect("ended");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("photo.png"), "{told}");
    let steps = stage.metrics("run").len() as u64;
    assert!(steps >= 10 && steps.is_multiple_of(10), "{steps}");
    assert_eq!(stage.state("run", steps)["step"], steps);
    write_image(&stage);
    let rest = [&*sets[4], "samples.max_new_tokens=1", "guard.dry_step=false"];
    let longer = format!("run.max_steps={}", steps + 2);
    let report = stage.train(&[&rest[..], &[&*longer]].concat(), &Resume::Auto).expect("goes on");
    assert_eq!((report.steps, stage.metrics("run").len() as u64), (steps + 2, steps + 2));
    let answers = read_answers(&stage.path("run/answers.jsonl")).expect("written");
    assert_eq!(answers.first().map(|line| line.step), Some(0));
}
