//! Fifty steps of both stages equal to PyTorch's for every family, from the recipes as they are shipped.
//!
//! `tests/golden/curves/curves.py` trained the same pairs, from the same small checkpoints, on the same samples in the
//! same order.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;
use vela_models::{Join, ProjectorKind, ProjectorPreset};
use vela_runtime::Shutdown;
use vela_train::{RawBatch, RawPacking, RawRecipe, Recipe, Resume, StepMetrics, read_metrics, train};

use crate::fixture::{copy_folder, golden, open_processor, read_records, write_shards};

/// Largest relative difference of a loss from PyTorch's, at any of the fifty steps; 4.1e-6 was the largest found.
const LOSS_TOLERANCE: f64 = 2e-5;
/// The same of a gradient norm, of which 3.2e-5 was found: PyTorch's parts from itself by as much when it adds up
/// micro-batches of one sample (`differs` in `curves.json`).
const NORM_TOLERANCE: f64 = 1e-4;
/// The mean of the last ten losses is below this share of that of the first ten.
const FALL: f64 = 0.9;

fn goldens() -> PathBuf {
    golden().join("../curves")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("committed")).expect("JSON")
}

/// A pair of `curves.json`, joined, with its data; its runs go into the same folder.
struct Pair {
    folder: TempDir,
    golden: Value,
    settings: Value,
}

impl Pair {
    fn open(name: &str) -> Self {
        let curves = read_json(&goldens().join("curves.json"));
        let (golden, settings) = (curves["pairs"][name].clone(), curves["settings"].clone());
        let pair = Self { folder: tempfile::tempdir().expect("a folder"), golden, settings };
        pair.write_data();
        pair.join();
        pair.set_weights(name);
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The golden processor for images of 14 x 14, and the shards.
    fn write_data(&self) {
        copy_folder(&golden().join("processor"), &self.path("processor"));
        let preprocessor = self.path("processor/preprocessor_config.json");
        let text = fs::read_to_string(&preprocessor).expect("there").replace("16", "14");
        fs::write(preprocessor, text).expect("written");
        let processor = open_processor(&self.path("processor"));
        write_shards(&self.path("shards"), &read_records(&goldens(), &processor), &processor);
    }

    /// Joins the checkpoints as `trainer init` does.
    fn join(&self) {
        let part = |key: &str| {
            let name = self.golden[key].as_str().expect("a name");
            golden().join(format!("../models/{key}_{name}"))
        };
        let kind: ProjectorKind = serde_json::from_value(self.golden["projector"].clone()).expect("a projector");
        let join = Join {
            vision: &part("vision"),
            language: &part("language"),
            projector: ProjectorPreset { kind, ..ProjectorPreset::default() },
            feature_layer: self.golden["feature_layer"].as_i64().expect("a layer"),
            feature_norm: self.golden["feature_norm"] == json!(true),
            image_token_id: self.settings["image_token"].as_u64().expect("an id") as u32,
            num_ids: 48,
            seed: 0,
            dtype: None,
        };
        fs::create_dir(self.path("model")).expect("created");
        join.write(&self.path("model"), &|| false).expect("joined");
    }

    /// Puts the projector and the adapters that PyTorch started from in the place of the fresh ones.
    fn set_weights(&self, name: &str) {
        let (path, prefix) = (self.path("model/model.safetensors"), format!("{name}."));
        let (joined, given) = (fs::read(&path), fs::read(goldens().join("weights.safetensors")));
        let (joined, given) = (joined.expect("there"), given.expect("committed"));
        let open = |bytes| SafeTensors::deserialize(bytes).expect("safetensors");
        let (joined, given) = (open(&joined), open(&given));
        let mut tensors: BTreeMap<String, TensorView<'_>> =
            joined.iter().map(|(name, view)| (name.to_owned(), view)).collect();
        for (name, view) in given.iter().filter_map(|(name, view)| Some((name.strip_prefix(&prefix)?, view))) {
            let is_new = tensors.insert(name.to_owned(), view).is_none();
            assert_eq!(is_new, vela_models::is_adapter(name), "{name}");
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize_to_file(tensors, Some(metadata), &path).expect("written");
        if self.golden["runs"]["lora"].is_object() {
            let config = self.path("model/config.json");
            let mut json = read_json(&config);
            json["lora"] = self.settings["lora"].clone();
            fs::write(&config, json.to_string()).expect("written");
        }
    }

    /// The shipped recipe of a run with this pair's paths and the settings of the small run.
    fn recipe(&self, run: &str) -> Recipe {
        let golden = &self.golden["runs"][run];
        let name = golden["recipe"].as_str().expect("a name");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/run/{name}.toml"));
        let mut raw: RawRecipe = Recipe::load(&path, &[]).expect("a shipped recipe").resolved();
        let count = |of: &Value, key: &str| of[key].as_u64().expect("a number");
        (raw.run.output, raw.run.epochs, raw.run.max_steps) =
            (self.text(run), None, Some(count(&self.settings, "steps")));
        (raw.data.shards, raw.data.shuffle) = (Some(self.text("shards")), Some(false));
        raw.model.path = Some(golden["from"].as_str().map_or_else(|| self.text("model"), |from| self.text(from)));
        (raw.model.fresh_projector, raw.model.processor) = (false, Some(self.text("processor")));
        for (name, group) in &mut raw.groups {
            group.lr = self.settings["rates"][name].as_f64().expect("a rate");
        }
        if let Some(lora) = &mut raw.lora {
            (lora.rank, lora.alpha, lora.dropout) = (count(&self.settings["lora"], "rank") as usize, 8.0, 0.0);
        }
        raw.batch = self.batch(run == "packed");
        (raw.logging.every, raw.logging.tensorboard, raw.logging.peak_tflops) = (1, false, Some(1.0));
        raw.checkpoint.every = 50;
        Recipe::check(raw).expect("still a right one")
    }

    fn batch(&self, is_packed: bool) -> RawBatch {
        let of = if is_packed { &self.settings["packed"] } else { &self.settings };
        let count = |key: &str| of[key].as_u64().expect("a number") as u32;
        let packing = || RawPacking { max_images: count("max_images"), window: Some(count("window")) };
        RawBatch {
            global: count("global"),
            micro: Some(count("micro")),
            recompute: None,
            max_length: count("max_length"),
            packing: is_packed.then(packing),
        }
    }

    /// Trains and compares every step.
    fn assert_equals_pytorch(&self, run: &str) {
        train(&self.recipe(run), &Resume::Fresh, &Shutdown::new()).unwrap_or_else(|fault| panic!("{run}: {fault:?}"));
        let lines = read_metrics(&self.path(run).join("metrics.jsonl")).expect("readable");
        let golden = &self.golden["runs"][run];
        let losses = assert_close(run, &golden["losses"], &lines, |line| line.loss, LOSS_TOLERANCE);
        assert_close(run, &golden["grad_norms"], &lines, |line| line.grad_norm, NORM_TOLERANCE);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&losses[..10]), mean(&losses[40..]));
        assert!(last < first * FALL, "{run}: it does not learn: {first} at first, {last} at last");
    }
}

/// The values that were found.
fn assert_close(
    run: &str,
    expected: &Value,
    lines: &[StepMetrics],
    pick: fn(&StepMetrics) -> f64,
    tolerance: f64,
) -> Vec<f64> {
    let expected: Vec<f64> = serde_json::from_value(expected.clone()).expect("numbers");
    let found: Vec<f64> = lines.iter().map(pick).collect();
    assert_eq!(found.len(), expected.len(), "{run}");
    let differences = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs() / expected.abs());
    let (step, worst) = differences.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).expect("fifty steps");
    assert!(
        worst < tolerance,
        "{run}: step {}: {} expected, {} found ({worst:.1e})",
        step + 1,
        expected[step],
        found[step]
    );
    found
}

fn assert_both_stages_equal_pytorch(name: &str) -> Pair {
    let pair = Pair::open(name);
    pair.assert_equals_pytorch("stage1");
    pair.assert_equals_pytorch("stage2");
    pair
}

#[test]
fn mllm_ch_equals_pytorch_in_both_stages_and_packed() {
    assert_both_stages_equal_pytorch("mllm_ch").assert_equals_pytorch("packed");
}

#[test]
fn mllm_en_equals_pytorch_in_both_stages() {
    assert_both_stages_equal_pytorch("mllm_en");
}

#[test]
fn basic_vlm_with_clip_equals_pytorch_in_both_stages() {
    assert_both_stages_equal_pytorch("basic_vlm_clip");
}

#[test]
fn basic_vlm_with_siglip_and_adapters_equals_pytorch() {
    Pair::open("basic_vlm_siglip").assert_equals_pytorch("lora");
}

#[test]
fn llava_1_equals_pytorch_in_both_stages() {
    assert_both_stages_equal_pytorch("llava_v1");
}

#[test]
fn llava_1_5_equals_pytorch_in_both_stages() {
    assert_both_stages_equal_pytorch("llava_v1_5");
}

#[test]
fn minimind_v_equals_pytorch_in_both_stages() {
    assert_both_stages_equal_pytorch("minimind_v");
}

#[test]
fn minimind_3v_equals_pytorch_in_both_stages() {
    assert_both_stages_equal_pytorch("minimind_3v");
}

#[test]
fn qwen3_equals_pytorch_in_both_stages() {
    assert_both_stages_equal_pytorch("qwen3");
}
