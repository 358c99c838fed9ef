//! `trainer init` and `trainer export` from outside.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use vela_models::{ProjectorKind, ProjectorPreset};
use vela_processor::codec::encode_png;
use vela_runtime::Shutdown;
use vela_train::{ExportPlan, InitPlan, TrainError, export, init};

use crate::fixture::{copy_folder, golden, trainer};

fn models() -> PathBuf {
    golden().join("../models")
}

/// A published tower and a published language model, each with its part of a processor.
fn parts(folder: &Path, vision: &str, language: &str) -> [PathBuf; 2] {
    let [tower, text] = ["vision", "language"].map(|name| folder.join(name));
    copy_folder(&models().join(format!("vision_{vision}")), &tower);
    copy_folder(&models().join(format!("language_{language}")), &text);
    let processor = golden().join("processor");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(processor.join(name), text.join(name)).expect("copied");
    }
    let pixels = fs::read_to_string(processor.join("preprocessor_config.json")).expect("there");
    fs::write(tower.join("preprocessor_config.json"), pixels.replace("16", "14")).expect("written");
    [tower, text]
}

/// Runs `trainer`; its JSON object, or what it said.
fn run(arguments: &[&str]) -> Result<Value, (Option<i32>, String)> {
    let output = trainer().args(arguments).arg("--json").output().expect("run");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn join(folder: &Path, vision: &str, language: &str, more: &[&str]) -> Result<Value, (Option<i32>, String)> {
    let [tower, words] = parts(folder, vision, language);
    let output = folder.join("model");
    let flags = ["init", "--vision", text(&tower), "--language", text(&words), "--output", text(&output)];
    run(&[&flags, more].concat())
}

fn answer(model: &Path, image: &Path) -> String {
    let flags = ["chat", "--model", text(model), "--image", text(image), "--question", "w9 w10 ?"];
    let json = run(&[&flags[..], &["--max-new-tokens", "6"]].concat()).expect("an answer");
    json["answer"].as_str().expect("text").to_owned()
}

#[test]
fn a_joined_folder_answers_and_its_export_answers_the_same() {
    let folder = TempDir::new().expect("a folder");
    let report = join(folder.path(), "siglip", "qwen", &["--projector", "linear", "--seed", "4"]).expect("joined");
    let numbers = ["image_tokens", "image_token_id", "vocab_size", "rows_added", "projector_parameters"];
    assert_eq!(numbers.map(|key| report[key].as_u64().expect("a number")), [9, 3, 80, 0, 272]);
    assert_eq!(report["opens_in_transformers"], false);
    let (model, exported) = (folder.path().join("model"), folder.path().join("export"));
    let report = run(&["export", "--model", text(&model), "--output", text(&exported)]).expect("exported");
    assert_eq!(report["form"], "model");
    let bytes = fs::metadata(exported.join("model.safetensors")).expect("there").len();
    assert_eq!(report["bytes"], bytes);
    let image = folder.path().join("photo.png");
    let rgb: Vec<u8> = (0..20 * 30 * 3).map(|index| (index * 7 % 251) as u8).collect();
    fs::write(&image, encode_png(&rgb, 20, 30)).expect("written");
    assert_eq!(answer(&model, &image), answer(&exported, &image));
    let processing: Value =
        serde_json::from_slice(&fs::read(exported.join("processor_config.json")).expect("there")).expect("JSON");
    assert_eq!(processing["processor_class"], "LlavaProcessor");
    assert_eq!((&processing["num_additional_image_tokens"], &processing["patch_size"]), (&0.into(), &4.into()));
    let left =
        fs::read_dir(folder.path()).expect("listed").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    assert_eq!(left.filter(|name| name.starts_with('.')).count(), 0);
}

#[test]
fn a_folder_that_is_there_is_left_alone_and_faults_leave_nothing() {
    let folder = TempDir::new().expect("a folder");
    join(folder.path(), "clip", "llama", &["--projector", "mlp2x_gelu"]).expect("joined");
    let (code, told) = join(folder.path(), "clip", "llama", &["--projector", "mlp2x_gelu"]).expect_err("taken");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("is not empty"), "{told}");
    let other = TempDir::new().expect("a folder");
    let (code, told) = join(other.path(), "clip", "llama", &["--projector", "mlp"]).expect_err("no such kind");
    assert!(code == Some(2) && told.contains("`ln_mlp`"), "{told}");
    let (_, words) = (fs::remove_file(other.path().join("language/model.safetensors")), other.path().join("language"));
    let tower = other.path().join("vision");
    let flags = ["init", "--vision", text(&tower), "--language", text(&words), "--projector", "linear", "--output"];
    let output = other.path().join("model");
    let (code, told) = run(&[&flags[..], &[text(&output)]].concat()).expect_err("no weights");
    assert!(code == Some(2) && told.contains("`pytorch_model.bin`"), "{told}");
    assert_eq!(fs::read_dir(other.path()).expect("listed").count(), 2);
}

#[test]
fn told_to_stop_they_leave_nothing_and_what_a_kill_left_is_removed() {
    let folder = TempDir::new().expect("a folder");
    let [tower, words] = parts(folder.path(), "clip", "llama");
    let projector = ProjectorPreset { kind: ProjectorKind::Linear, bias: true };
    let plan = InitPlan {
        vision: tower,
        language: words,
        output: folder.path().join("model"),
        projector,
        feature_layer: -2,
        feature_norm: false,
        template: None,
        seed: 0,
        dtype: None,
    };
    let stopped = Shutdown::new();
    stopped.request();
    let names = || {
        let entries = fs::read_dir(folder.path()).expect("listed");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    let fault = init(&plan, &stopped).expect_err("stopped");
    assert!(matches!(fault, TrainError::Stopped { .. }), "{fault}");
    assert_eq!(names(), ["language", "vision"]);
    let left = folder.path().join(".model.partial");
    fs::create_dir(&left).and_then(|()| fs::write(left.join("litter"), "")).expect("as after a kill");
    init(&plan, &Shutdown::new()).expect("made");
    assert_eq!(names(), ["language", "model", "vision"]);
    assert!(!plan.output.join("litter").exists());
    let plan = ExportPlan {
        model: plan.output,
        output: folder.path().join("export"),
        dtype: None,
        max_shard_bytes: None,
        merge: false,
    };
    let fault = export(&plan, &stopped).expect_err("stopped");
    assert!(matches!(fault, TrainError::Stopped { .. }), "{fault}");
    assert_eq!(names(), ["language", "model", "vision"]);
}

#[test]
fn a_tower_of_another_extent_than_its_pixels_is_refused() {
    let folder = TempDir::new().expect("a folder");
    let [tower, words] = parts(folder.path(), "clip", "llama");
    fs::copy(golden().join("processor/preprocessor_config.json"), tower.join("preprocessor_config.json"))
        .expect("copied");
    let output = folder.path().join("model");
    let flags = ["init", "--vision", text(&tower), "--language", text(&words), "--projector", "linear", "--output"];
    let (code, told) = run(&[&flags[..], &[text(&output)]].concat()).expect_err("16 pixels for 14");
    assert!(code == Some(2) && told.contains("image extent"), "{told}");
    assert!(!output.exists());
}
