//! The binary: exit codes, messages, JSON.

use std::fs;
use std::path::Path;
use std::process::Output;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::fixture::{Stage, copy_folder, golden, golden_records, open_processor, trainer, write_shards};

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the stage's recipe with overrides and expects exit code 2 and every part in the message.
fn assert_refused(stage: &Stage, sets: &[&str], parts: &[&str]) {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let output = stage.command(&sets, &[]).output().expect("run");
    let told = told(&output);
    assert_eq!(output.status.code(), Some(2), "{sets:?}: {told}");
    parts.iter().for_each(|part| assert!(told.contains(part), "{sets:?}: no `{part}` in: {told}"));
    assert!(!told.contains("panicked"), "{told}");
}

#[test]
fn a_run_prints_the_contracts_keys() {
    let stage = Stage::new("freeze_vision_and_llm");
    let output = stage.command(&["run.max_steps=4".into()], &["--json"]).output().expect("run");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let json: serde_json::Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    let keys = ["steps", "loss_first", "loss_last", "samples_per_second", "tokens_per_second", "data_wait"];
    keys.iter().for_each(|key| assert!(json[key].is_number(), "{key}: {json}"));
    assert!(Path::new(json["checkpoint"].as_str().expect("a path")).join("trainer_state.json").is_file());
}

#[test]
fn wrong_recipes_are_refused_by_key() {
    let stage = Stage::new("freeze_vision_and_llm");
    assert_refused(&stage, &["optimizer.weight_decai=0.1"], &["optimizer.weight_decai", "did you mean `weight_decay`"]);
    assert_refused(&stage, &["train_type=half"], &["train_type", "`freeze_vision`", "`lora`"]);
    let unmatched = ["groups.norms.lr=1e-3", "groups.norms.match=['*.no_such_norm.*']"];
    assert_refused(&stage, &unmatched, &["groups.norms.match", "*.no_such_norm.*"]);
    assert_refused(&stage, &["data.loader=http://127.0.0.1:1"], &["data.shards, data.loader", "exactly one"]);
    assert_refused(&stage, &["schedule.warmup_steps=20"], &["schedule.warmup_steps", "20"]);
    assert_refused(&stage, &["batch.max_length=4"], &["batch.max_length", "4 tokens of an image"]);
    assert_refused(&stage, &["batch.max_length=100000"], &["batch.max_length", "positions", "100000"]);
    let epochs = format!("run.epochs={}", i64::MAX);
    let text = fs::read_to_string(stage.path("recipe.toml")).expect("there");
    fs::write(stage.path("recipe.toml"), text.replace("max_steps = 20\n", "")).expect("written");
    assert_refused(&stage, &[&epochs], &["run.epochs", "at most"]);
    // None of these failed starts takes the folder from the run that works.
    let report = stage.train(&["run.max_steps=5"], &vela_train::Resume::Fresh).expect("a run");
    assert_eq!(report.steps, 5);
}

#[test]
fn missing_shards_and_processors_are_named() {
    let stage = Stage::new("freeze_vision_and_llm");
    assert_refused(&stage, &["data.shards=/nowhere/shards"], &["/nowhere/shards"]);
    assert_refused(&stage, &["model.processor=/nowhere/processor"], &["/nowhere/processor"]);
    assert_refused(&stage, &["model.path=/nowhere/model"], &["/nowhere/model"]);
}

/// The golden model with its tensors changed by `edit`, which drops one by returning `None`.
fn write_edited_model(folder: &Path, edit: impl Fn(&str, &[usize]) -> Option<Vec<usize>>) {
    copy_folder(&golden().join("model"), folder);
    let bytes = fs::read(golden().join("model/model.safetensors")).expect("committed");
    let file = SafeTensors::deserialize(&bytes).expect("whole");
    let edited: Vec<(String, Vec<usize>, &[u8])> = file
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| {
            let shape = edit(&name, tensor.shape())?;
            let num_bytes = 4 * shape.iter().product::<usize>();
            Some((name, shape, &tensor.data()[..num_bytes]))
        })
        .collect();
    let views =
        edited.into_iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape, data).expect("fits")));
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &folder.join("model.safetensors"))
        .expect("written");
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let stage = Stage::new("freeze_vision_and_llm");
    let path = |name: &str| stage.path(name).display().to_string();
    write_edited_model(&stage.path("holed"), |name, shape| (!name.contains("linear_1.bias")).then(|| shape.to_vec()));
    assert_refused(&stage, &[&format!("model.path={}", path("holed"))], &["multi_modal_projector.linear_1.bias"]);
    write_edited_model(&stage.path("cut"), |name, shape| match name.contains("linear_2.bias") {
        true => Some(vec![shape[0] - 1]),
        false => Some(shape.to_vec()),
    });
    let parts = ["multi_modal_projector.linear_2.bias", "32", "31"];
    assert_refused(&stage, &[&format!("model.path={}", path("cut"))], &parts);
}

#[test]
fn data_of_another_processor_or_a_larger_vocabulary_is_refused() {
    let stage = Stage::new("freeze_vision_and_llm");
    let processor = stage.path("processor");
    copy_folder(&golden().join("processor"), &processor);
    let text = fs::read_to_string(processor.join("tokenizer.json")).expect("there");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json["model"]["vocab"]["one_more"] = 48.into();
    fs::write(processor.join("tokenizer.json"), json.to_string()).expect("written");
    let set = format!("model.processor={}", processor.display());
    assert_refused(&stage, &[&set], &["vocabulary", "48 rows", "49 ids"]);
    // The same vocabulary, but another normalisation.
    copy_folder(&golden().join("processor"), &processor);
    let text = fs::read_to_string(processor.join("preprocessor_config.json")).expect("there");
    fs::write(processor.join("preprocessor_config.json"), text.replace("0.48145466", "0.5")).expect("written");
    assert_refused(&stage, &[&set], &["processor: the model has", "build them again"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_the_samples() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets = ["groups.projector.lr=1e30".to_owned(), "schedule.warmup_steps=0".to_owned()];
    let output = stage.command(&sets, &[]).output().expect("run");
    let told = told(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("golden/8") && (told.contains("the loss is") || told.contains("the gradient of `")),
        "{told}"
    );
}

#[test]
fn a_validation_set_is_measured_at_each_checkpoint() {
    let stage = Stage::new("freeze_vision_and_llm");
    let processor = open_processor(&golden().join("processor"));
    write_shards(&stage.path("held-out"), &golden_records(&processor)[..5], &processor);
    let set = format!("data.validation={}", stage.path("held-out").display());
    stage.train(&[&set, "run.max_steps=7"], &vela_train::Resume::Fresh).expect("a run");
    let lines = stage.metrics("run");
    let measured: Vec<u64> = lines.iter().filter(|line| line.validation_loss.is_some()).map(|line| line.step).collect();
    assert_eq!(measured, [5, 7]);
    assert!(lines.iter().filter_map(|line| line.validation_loss).all(|loss| (1.0..8.0).contains(&loss)));
}

#[test]
fn help_shows_examples_and_wrong_flags_exit_with_two() {
    let help = trainer().args(["train", "--help"]).output().expect("run");
    assert!(String::from_utf8_lossy(&help.stdout).contains("trainer train --recipe"));
    assert_eq!(trainer().args(["train", "--recipes", "x"]).output().expect("run").status.code(), Some(2));
    assert_eq!(trainer().args(["train", "--recipe", "/nowhere.toml"]).output().expect("run").status.code(), Some(2));
}

#[test]
fn a_rank_of_several_is_refused_by_name() {
    let stage = Stage::new("freeze_vision_and_llm");
    let run = |variables: &[(&str, &str)]| {
        let output = stage.command(&[], &[]).envs(variables.iter().copied()).output().expect("run");
        (output.status.code(), told(&output))
    };
    let (code, told) =
        run(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4"), ("WORLD_SIZE", "2"), ("RANK", "1")]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("`OMPI_COMM_WORLD_SIZE` = `4`") && told.contains("`WORLD_SIZE` = `2`"), "{told}");
    if cfg!(not(feature = "mpi")) {
        let (code, told) = run(&[("RANK", "1"), ("WORLD_SIZE", "4")]);
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains("rank 1 of 4") && told.contains("--features mpi"), "{told}");
    }
    assert!(!stage.path("run").exists());
}
