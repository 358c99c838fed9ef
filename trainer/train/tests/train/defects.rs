//! The defects of published training systems that are a trainer's: what they do wrong, and that this one does not. Others stand
//! where they belong: 7 in `chat.rs`, 20 in `resume.rs`, 10 and 12 beside optimizer and schedule, 15 in `vela-models`, 3 to 5
//! and 16 in `vela-processor`.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use vela_dataset::{Dataset, Partition};
use vela_train::Resume;
use vela_types::{BatchSpec, Position};

use crate::fixture::{Stage, copy_folder, golden};

/// s-mllm's config said 576 tokens per image and its tower gave 196.
#[test]
fn defect_06_a_config_whose_image_tokens_are_not_the_towers_is_refused() {
    let stage = Stage::new("freeze_vision_and_llm");
    let model = stage.path("wrong");
    copy_folder(&golden().join("model"), &model);
    let text = fs::read_to_string(model.join("config.json")).expect("there");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["image_seq_length"], 4);
    config["image_seq_length"] = 9.into();
    fs::write(model.join("config.json"), config.to_string()).expect("written");
    let sets = [format!("model.path={}", model.display())];
    let output = stage.command(&sets, &[]).output().expect("run");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("image_seq_length") && told.contains("expected 4") && told.contains("found 9"), "{told}");
}

/// s-mllm's schedule counted steps that the run did not have, and its rate was the one in the code whatever the flag said.
#[test]
fn defect_11_the_schedule_ends_at_the_floor_on_the_last_step_and_the_flag_wins() {
    let stage = Stage::new("freeze_vision_and_llm");
    let text = fs::read_to_string(stage.path("recipe.toml")).expect("there");
    fs::write(stage.path("recipe.toml"), text.replace("max_steps = 20\n", "epochs = 2\n")).expect("written");
    for micro in ["8", "1"] {
        let output = format!("run.output={}", stage.path(micro).display());
        let sets = ["groups.projector.lr=7e-4", &format!("batch.micro={micro}"), &output];
        let report = stage.train(&sets, &Resume::Fresh).expect("two epochs");
        // 36 samples in steps of 8, however a step is cut.
        assert_eq!((report.steps, report.total_steps), (10, 10));
        let rates: Vec<f64> = stage.metrics(micro).iter().map(|line| line.lr["projector"]).collect();
        assert_eq!((rates[3], rates[9]), (7e-4, 7e-4 * 0.1), "{rates:?}");
    }
}

/// minimind read the data in one order on a single device, epoch after epoch.
#[test]
fn defect_14_each_epoch_has_its_own_order_and_a_seed_always_the_same() {
    let stage = Stage::new("freeze_vision");
    let dataset = Dataset::open(&stage.path("shards").display().to_string()).expect("opened");
    let order = |seed: u64, epoch: u64| -> Vec<String> {
        let recipe = stage.recipe(&["data.shuffle=true".into(), format!("run.seed={seed}")]).expect("right");
        let spec = BatchSpec { micro_batch: 8, ..recipe.batch_spec(4) };
        let steps = dataset.plan(&spec, Partition::WHOLE).expect("planned").steps_per_epoch();
        let batch = |step| dataset.batch(&spec, Partition::WHOLE, Position { epoch, step, micro: 0 }).expect("a batch");
        let slots = (0..steps).flat_map(|step| batch(step).samples);
        slots.filter(|slot| slot.valid).map(|slot| slot.id).collect()
    };
    let (first, second) = (order(3, 0), order(3, 1));
    assert_ne!(first, second);
    assert_eq!((order(3, 0), order(3, 1)), (first.clone(), second.clone()));
    assert_ne!(order(4, 0), first);
    let ids: BTreeSet<&String> = first.iter().collect();
    assert_eq!((ids.len(), second.iter().collect::<BTreeSet<_>>()), (36, ids));
}
