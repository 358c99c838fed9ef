//! Features of the frozen tower, computed once, train as pixels do.

use std::path::Path;

use serde_json::Value;
use vela_train::{EncodeOptions, FeatureType, Resume, TrainError, encode};
use vela_types::Record;

use crate::fixture::{
    Stage, copy_folder, golden, golden_records, loss_bits, open_processor, trainer, write_set, write_shards,
};

fn options(stage: &Stage, dtype: FeatureType, output: &str) -> EncodeOptions {
    // The golden model has no processor beside it; a checkpoint has.
    EncodeOptions {
        model: stage.path("base/checkpoints/step-1"),
        shards: stage.path("shards").display().to_string(),
        output: stage.path(output).display().to_string(),
        dtype,
        batch: 4,
    }
}

/// A stage with a checkpoint whose tower is the golden model's.
fn stage(train_type: &str) -> Stage {
    let stage = Stage::new(train_type);
    let output = format!("run.output={}", stage.path("base").display());
    stage.train(&["run.max_steps=1", "schedule.warmup_steps=0", &output], &Resume::Fresh).expect("a checkpoint");
    stage
}

fn features(stage: &Stage, dtype: FeatureType, run: &str, more: &[&str]) -> Vec<vela_train::StepMetrics> {
    let set = format!("features-{dtype}");
    encode(&options(stage, dtype, &set), &vela_runtime::Shutdown::new()).expect("encoded");
    let data = format!("data.shards={}", stage.path(&set).display());
    let output = format!("run.output={}", stage.path(run).display());
    stage.train(&[&[&*data, &output][..], more].concat(), &Resume::Fresh).expect("a run from features");
    stage.metrics(run)
}

#[test]
fn features_train_as_pixels_bit_for_bit() {
    for train_type in ["freeze_vision_and_llm", "freeze_vision"] {
        let stage = stage(train_type);
        let more =
            ["data.shuffle=true", "batch.packing.max_images=3", "batch.global=3", "batch.micro=2", "run.max_steps=9"];
        // The order is drawn from the data's fingerprint, so it must not matter here: one step holds everything.
        let all = ["batch.global=64", "batch.micro=64", "run.max_steps=8"];
        stage.train(&all, &Resume::Fresh).expect("a run from pixels");
        let encoded = features(&stage, FeatureType::F32, "encoded", &all);
        assert_eq!(loss_bits(&encoded), loss_bits(&stage.metrics("run")), "{train_type}");
        let packed = features(&stage, FeatureType::F32, "packed", &more);
        assert!(packed.iter().all(|line| line.loss.is_finite()) && packed.len() == 9);
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let bytes =
                |run: &str| std::fs::read(stage.path(run).join("checkpoints/step-8").join(file)).expect("there");
            assert!(bytes("run") == bytes("encoded"), "{train_type}: {file}");
        }
    }
}

#[test]
fn features_of_half_the_bytes_are_close() {
    let stage = stage("freeze_vision");
    stage.train(&["run.max_steps=10"], &Resume::Fresh).expect("a run from pixels");
    let encoded = features(&stage, FeatureType::Bf16, "encoded", &["run.max_steps=10"]);
    for (encoded, pixels) in encoded.iter().zip(&stage.metrics("run")) {
        assert!((encoded.loss - pixels.loss).abs() < 2e-3 * pixels.loss, "{} {}", encoded.loss, pixels.loss);
    }
}

fn assert_refused(stage: &Stage, sets: &[String], parts: &[&str]) {
    let output = stage.command(sets, &[]).output().expect("run");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    parts.iter().for_each(|part| assert!(told.contains(part), "no `{part}` in: {told}"));
}

#[test]
fn features_of_another_tower_and_towers_that_learn_are_refused() {
    let stage = stage("full");
    encode(&options(&stage, FeatureType::F32, "features"), &vela_runtime::Shutdown::new()).expect("encoded");
    let data = format!("data.shards={}", stage.path("features").display());
    assert_refused(&stage, std::slice::from_ref(&data), &["vision tower", "one that learns", "train from pixels"]);
    // A few steps of full training make it another tower.
    stage.train(&["run.max_steps=4"], &Resume::Fresh).expect("a full run");
    let sets = [
        data,
        "train_type=freeze_vision".into(),
        "groups.vision_tower.lr=0".into(),
        format!("model.path={}", stage.path("run").display()),
        format!("run.output={}", stage.path("other").display()),
    ];
    assert_refused(&stage, &sets, &["vision tower of the features", "encode the data with this model"]);
}

#[test]
fn features_of_the_same_weights_under_another_config_are_refused() {
    let stage = stage("freeze_vision");
    let base = stage.path("base/checkpoints/step-1");
    let write = |name: &str, edits: &[(&str, Value)]| {
        copy_folder(&base, &stage.path(name));
        let path = stage.path(name).join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
        for (key, value) in edits {
            match key.split_once('.') {
                Some((table, key)) => config[table][key] = value.clone(),
                None => config[*key] = value.clone(),
            }
        }
        std::fs::write(path, config.to_string()).expect("written");
    };
    let last = ("vision_feature_layer", Value::from(-1));
    for (name, made, edits) in [
        ("activation", vec![], vec![("vision_config.hidden_act", "gelu".into())]),
        ("epsilon", vec![], vec![("vision_config.layer_norm_eps", 1e-3.into())]),
        ("heads", vec![], vec![("vision_config.num_attention_heads", 4.into())]),
        ("norm", vec![last.clone()], vec![last, ("vision_feature_norm", true.into())]),
    ] {
        let (from, other) = (format!("{name}-made"), format!("{name}-other"));
        write(&from, &made);
        write(&other, &edits);
        let set = stage.path(&format!("{name}-features")).display().to_string();
        let options =
            EncodeOptions { model: stage.path(&from), output: set.clone(), ..options(&stage, FeatureType::F32, "") };
        encode(&options, &vela_runtime::Shutdown::new()).expect("encoded");
        let output = format!("run.output={}", stage.path(&format!("{name}-run")).display());
        let sets = [format!("data.shards={set}"), format!("model.path={}", stage.path(&other).display()), output];
        assert_refused(&stage, &sets, &["vision tower of the features", "encode the data with this model"]);
    }
}

/// So many records that there is time to stop between them.
fn many(records: &[Record]) -> Vec<Record> {
    let round = |round: usize| {
        let named = move |record: &Record| Record { id: format!("{round}/{}", record.id), ..record.clone() };
        records.iter().map(named)
    };
    (0..100).flat_map(round).collect()
}

#[test]
fn told_to_stop_it_ends_within_a_shard() {
    let stage = stage("freeze_vision");
    let processor = open_processor(&golden().join("processor"));
    write_shards(&stage.path("shards-long"), &many(&golden_records(&processor)), &processor);
    let mut options = options(&stage, FeatureType::Bf16, "features");
    options.shards = stage.path("shards-long").display().to_string();
    let shutdown = vela_runtime::Shutdown::new();
    let encoding = std::thread::spawn({
        let (options, shutdown) = (options.clone(), shutdown.clone());
        move || encode(&options, &shutdown)
    });
    let has_begun = || {
        let files = std::fs::read_dir(stage.path("features")).into_iter().flatten();
        files.filter_map(Result::ok).any(|file| file.file_name().to_string_lossy().contains("shard-00000"))
    };
    while !has_begun() {
        assert!(!encoding.is_finished(), "{:?}", encoding.join());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    shutdown.request();
    let fault = encoding.join().expect("no panic").expect_err("stopped");
    assert!(matches!(fault, TrainError::Stopped { .. }), "{fault}");
    assert!(!has_begun(), "what was half written is left");
}

/// Two shards, of which the first is whole when the command is stopped.
#[test]
fn stopped_and_started_again_it_keeps_the_shards_that_are_whole() {
    let stage = stage("freeze_vision");
    let processor = open_processor(&golden().join("processor"));
    let records = golden_records(&processor);
    write_set(&stage.path("two"), &[&records, &many(&records)], processor.summary());
    let mut options = options(&stage, FeatureType::Bf16, "features");
    options.shards = stage.path("two").display().to_string();
    let shutdown = vela_runtime::Shutdown::new();
    let encoding = std::thread::spawn({
        let (options, shutdown) = (options.clone(), shutdown.clone());
        move || encode(&options, &shutdown)
    });
    while !stage.path("features/shard-00000.json").is_file() {
        assert!(!encoding.is_finished(), "{:?}", encoding.join());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    shutdown.request();
    encoding.join().expect("no panic").expect_err("stopped");
    assert!(!stage.path("features/manifest.json").exists());
    let shard = stage.path("features/shard-00000.parquet");
    let written = shard.metadata().and_then(|file| file.modified()).expect("there");
    let report = encode(&options, &vela_runtime::Shutdown::new()).expect("goes on");
    assert_eq!((report.shards, report.samples), (2, 36 + 3600));
    assert_eq!(shard.metadata().and_then(|file| file.modified()).expect("there"), written, "made again");
    let whole = EncodeOptions { output: stage.path("at-once").display().to_string(), ..options };
    let at_once = encode(&whole, &vela_runtime::Shutdown::new()).expect("encoded");
    assert_eq!(report.fingerprint, at_once.fingerprint);
}

#[test]
fn the_command_leaves_a_finished_set_alone_and_prints_its_keys() {
    let stage = stage("freeze_vision");
    let run = || {
        let mut command = trainer();
        command.args(["encode", "--json", "--dtype", "f32", "--model"]).arg(stage.path("base"));
        command.arg("--shards").arg(stage.path("shards")).arg("--output").arg(stage.path("features"));
        command.output().expect("run")
    };
    let output = run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let first: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((first["samples"].as_u64(), first["shards"].as_u64()), (Some(36), Some(1)));
    let shard = stage.path("features/shard-00000.parquet");
    let written = shard.metadata().and_then(|file| file.modified()).expect("there");
    let again: Value = serde_json::from_slice(&run().stdout).expect("one JSON object");
    assert_eq!(again["fingerprint"], first["fingerprint"]);
    assert_eq!(shard.metadata().and_then(|file| file.modified()).expect("there"), written);
    // Other pixels do not go into the same folder.
    let processor = open_processor(&golden().join("processor"));
    write_shards(&stage.path("other"), &golden_records(&processor)[..9], &processor);
    let mut options = options(&stage, FeatureType::F32, "features");
    options.shards = stage.path("other").display().to_string();
    let fault = encode(&options, &vela_runtime::Shutdown::new()).expect_err("another set");
    assert!(fault.is_usage() && Path::new(&shard).is_file(), "{fault}");
}
