//! Rows of several samples train as the samples by themselves do.

use vela_runtime::Shutdown;
use vela_train::Resume;

use crate::fixture::{Stage, loss_bits};
use crate::loader::start_loader;

/// Rows that hold all samples of the stage in one step, packed or not.
const WHOLE: [&str; 4] = ["run.max_steps=4", "batch.global=64", "batch.micro=64", "data.shuffle=true"];
const PACKED: [&str; 2] = ["batch.packing.max_images=3", "batch.packing.window=9"];

#[test]
fn packed_rows_have_the_loss_and_the_gradient_of_their_samples() {
    let stage = Stage::new("full");
    stage.train(&WHOLE, &Resume::Fresh).expect("a run sample by sample");
    let output = format!("run.output={}", stage.path("packed").display());
    let sets = [&WHOLE[..], &PACKED, &[&output]].concat();
    stage.train(&sets, &Resume::Fresh).expect("a packed run");
    let (alone, packed) = (stage.metrics("run"), stage.metrics("packed"));
    assert_eq!((alone.len(), packed.len()), (4, 4));
    for (alone, packed) in alone.iter().zip(&packed) {
        for (what, alone, packed) in [("loss", alone.loss, packed.loss), ("norm", alone.grad_norm, packed.grad_norm)] {
            assert!((alone - packed).abs() < 1e-4 * alone.abs(), "{what}: {alone} alone, {packed} packed");
        }
    }
    assert!(alone[3].loss < alone[0].loss, "it learns");
}

/// Masks go with samples, so neither rows nor micro-batches change them.
#[test]
fn dropout_is_the_same_packed_and_in_other_micro_batches() {
    let stage = Stage::new("lora");
    let run = |name: &str, sets: &[&str]| {
        let output = format!("run.output={}", stage.path(name).display());
        stage.train(&[&WHOLE[..], sets, &[&output]].concat(), &Resume::Fresh).expect("a run");
        stage.metrics(name)
    };
    let dropout = "lora.dropout=0.5";
    let alone = run("alone", &[dropout]);
    let others = [run("cut", &[dropout, "batch.micro=7"]), run("packed", &[&PACKED[..], &[dropout]].concat())];
    for other in &others {
        assert_eq!(other.len(), alone.len());
        for (alone, other) in alone.iter().zip(other) {
            assert!((alone.loss - other.loss).abs() < 1e-4 * alone.loss, "{} {}", alone.loss, other.loss);
            assert!((alone.grad_norm - other.grad_norm).abs() < 1e-3 * alone.grad_norm);
        }
    }
    // It is on: a run without parts from it once `B` is no longer zero.
    let without = run("without", &[]);
    assert_eq!(alone[0].loss, without[0].loss);
    assert!((alone[3].loss - without[3].loss).abs() > 1e-4 * alone[3].loss, "{} {}", alone[3].loss, without[3].loss);
}

#[test]
fn a_packed_run_over_a_loader_has_the_bits_of_one_in_process_and_resumes() {
    let stage = Stage::new("freeze_vision");
    let sets =
        [&PACKED[..], &["data.shuffle=true", "data.shuffle_window=2", "batch.global=2", "batch.micro=1"]].concat();
    stage.train(&sets, &Resume::Fresh).expect("in process");
    let shutdown = Shutdown::new();
    let (thread, address) = start_loader(&stage, &shutdown);
    stage.use_loader(&address);
    let output = format!("run.output={}", stage.path("remote").display());
    let first = stage.path("run").join("checkpoints/step-15");
    let remote = [&sets[..], &["data.dataset=default", &output]].concat();
    stage.train(&remote, &Resume::From(first)).expect("over the loader from in process");
    assert_eq!(loss_bits(&stage.metrics("remote")), loss_bits(&stage.metrics("run")[15..]));
    shutdown.request();
    thread.join().expect("the loader ended");
}
