//! Twenty steps equal to PyTorch and transformers, from the same weights and batches.

use std::path::Path;

use candle_core::{Device, Tensor};
use vela_models::Vlm;
use vela_train::Resume;

use crate::fixture::{Stage, golden, golden_json};

/// Largest relative difference to the reference.
const TOLERANCE: f64 = 1e-4;

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs() / expected.abs().max(1e-12);
        let close = difference < TOLERANCE || found == expected;
        assert!(close, "{what} of step {}: expected {expected}, found {found} ({difference:.1e})", step + 1);
    }
}

fn assert_equals_pytorch(train_type: &str) {
    let stage = Stage::new(train_type);
    let report = stage.train(&[], &Resume::Fresh).expect("a whole run");
    let expected = &golden_json("expected.json")["runs"][train_type];
    let lines = stage.metrics("run");
    let column = |pick: fn(&vela_train::StepMetrics) -> f64| lines.iter().map(pick).collect::<Vec<f64>>();
    assert_close("loss", &column(|line| line.loss), &numbers(&expected["losses"]));
    assert_close("gradient norm", &column(|line| line.grad_norm), &numbers(&expected["grad_norms"]));
    assert_close("lr", &column(|line| line.lr["projector"]), &numbers(&expected["projector_lr"]));
    assert_eq!((report.steps, report.interrupted), (20, false));
    assert_eq!(report.loss_last, lines.last().map(|line| line.loss));
}

#[test]
fn a_projector_run_equals_pytorch() {
    assert_equals_pytorch("freeze_vision_and_llm");
}

#[test]
fn a_projector_and_language_run_equals_pytorch() {
    assert_equals_pytorch("freeze_vision");
}

#[test]
fn a_full_run_equals_pytorch() {
    assert_equals_pytorch("full");
}

#[test]
fn frozen_parts_keep_every_bit_and_report_no_rate() {
    let stage = Stage::new("freeze_vision_and_llm");
    let report = stage.train(&["run.max_steps=5"], &Resume::Fresh).expect("a run");
    let weights = |folder: &Path| Vlm::load(folder, &|_| false, &Device::Cpu).expect("a model folder");
    let (before, after) = (weights(&golden().join("model")), weights(&report.checkpoint.expect("one")));
    let bits = |tensor: &Tensor| -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32");
        values.into_iter().map(f32::to_bits).collect()
    };
    for ((name, before, _), (_, after, _)) in before.params().iter().zip(after.params().iter()) {
        assert_eq!(bits(before) != bits(after), name.starts_with("multi_modal_projector."), "{name}");
    }
    let rates = &stage.metrics("run")[1].lr;
    assert_eq!(rates.keys().collect::<Vec<_>>(), ["projector"]);
}

#[test]
fn a_fresh_projector_is_drawn_from_the_seed_and_learns() {
    let stage = Stage::new("freeze_vision_and_llm");
    let sets = |run: &str, seed: u64| {
        let output = format!("run.output={}", stage.path(run).display());
        [output, format!("run.seed={seed}"), "model.fresh_projector=true".into(), "groups.projector.lr=2e-2".into()]
    };
    let loss = |run: &str, seed: u64| {
        let sets = sets(run, seed);
        stage.train(&sets.each_ref().map(String::as_str), &Resume::Fresh).expect("a run");
        stage.metrics(run).iter().map(|line| line.loss).collect::<Vec<f64>>()
    };
    let (first, again, other) = (loss("a", 1), loss("b", 1), loss("c", 2));
    assert_eq!(first, again);
    assert_ne!(first[0], other[0]);
    // The same five batches come each epoch: their mean falls.
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&first[15..]) < mean(&first[..5]) - 0.1, "{first:?}");
}
