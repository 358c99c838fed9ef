//! Blocks that are computed a second time on the way back change no bit.

use std::fs;
use std::path::Path;

use vela_train::Resume;

use crate::fixture::{Stage, loss_bits};

fn weights(run: &Path, step: u64) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/step-{step}/model.safetensors"))).expect("a checkpoint")
}

#[test]
fn recomputed_blocks_train_to_the_same_bits_whatever_learns() {
    for train_type in ["freeze_vision_and_llm", "freeze_vision", "lora", "full"] {
        let stage = Stage::new(train_type);
        let sets = ["run.max_steps=4", "checkpoint.every=2"];
        stage.train(&sets, &Resume::Fresh).expect("a run that holds all");
        let output = format!("run.output={}", stage.path("again").display());
        let again = [&sets[..], &[&output, "batch.recompute=block"]].concat();
        stage.train(&again, &Resume::Fresh).expect("a run that recomputes");
        assert_eq!(loss_bits(&stage.metrics("again")), loss_bits(&stage.metrics("run")), "{train_type}");
        assert_eq!(stage.metrics("again").len(), 4);
        assert_eq!(weights(&stage.path("again"), 4), weights(&stage.path("run"), 4), "{train_type}");
    }
}

#[test]
fn a_run_goes_on_with_recomputation_where_it_stopped_without() {
    let stage = Stage::new("freeze_vision");
    stage.train(&["run.max_steps=4", "checkpoint.every=2"], &Resume::Fresh).expect("a whole run");
    let half = stage.path("run").join("checkpoints/step-2");
    let output = format!("run.output={}", stage.path("rest").display());
    let sets = ["run.max_steps=4", "checkpoint.every=2", &output, "batch.recompute=block"];
    stage.train(&sets, &Resume::From(half)).expect("the second half");
    assert_eq!(weights(&stage.path("rest"), 4), weights(&stage.path("run"), 4));
}
