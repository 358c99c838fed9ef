//! What a recipe can ask for besides its stage: groups, schedules, guards, questions.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use vela_models::{Vlm, is_adapter};
use vela_train::{Chat, Question, Resume, TrainError, read_answers};
use vela_types::ImageRef;

use crate::chat::write_image;
use crate::fixture::{Stage, copy_folder, golden, golden_records, loss_bits, open_processor, write_shards};

/// Names of the parameters in which two model folders differ.
fn changed(before: &Path, after: &Path) -> BTreeSet<String> {
    let open = |folder: &Path| Vlm::load(folder, &|_| false, &Device::Cpu).expect("a model folder");
    let bits = |tensor: &Tensor| -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32");
        values.into_iter().map(f32::to_bits).collect()
    };
    let (before, after) = (open(before), open(after));
    let pairs = before.params().iter().zip(after.params().iter());
    pairs.filter(|(before, after)| bits(before.1) != bits(after.1)).map(|(before, _)| before.0.to_owned()).collect()
}

#[test]
fn only_the_chosen_blocks_of_the_language_model_learn() {
    let stage = Stage::new("freeze_vision");
    let sets = ["run.max_steps=5", "groups.language_model.layers=[-1]"];
    let checkpoint = stage.train(&sets, &Resume::Fresh).expect("a run").checkpoint.expect("one");
    let changed = changed(&golden().join("model"), &checkpoint);
    let learns = |name: &String| name.starts_with("multi_modal_projector.") || name.contains(".layers.1.");
    assert!(changed.iter().all(learns), "{changed:?}");
    assert!(changed.iter().filter(|name| name.starts_with("language_model.")).count() == 12, "{changed:?}");
    // What is saved of a part goes on as that part.
    let longer = stage.train(&["run.max_steps=8", sets[1]], &Resume::Auto).expect("longer");
    assert_eq!(longer.steps, 8);
    let told = stage.train(&["run.max_steps=9"], &Resume::Auto).expect_err("all blocks").to_string();
    assert!(told.contains("groups.language_model.layers"), "{told}");
}

#[test]
fn a_group_of_patterns_has_its_own_rate_and_decay() {
    let stage = Stage::new("freeze_vision");
    let sets = [
        "run.max_steps=5",
        "groups.norms.match=['language_model.*norm.weight']",
        "groups.norms.lr=1e-4",
        "groups.frozen.match=['*.embed_tokens.weight', '*.lm_head.weight']",
        "groups.frozen.lr=0",
    ];
    let checkpoint = stage.train(&sets, &Resume::Fresh).expect("a run").checkpoint.expect("one");
    let lines = stage.metrics("run");
    let rates = &lines[4].lr;
    assert_eq!(rates.keys().collect::<Vec<_>>(), ["language_model", "norms", "projector"]);
    let ratio = rates["norms"] / rates["language_model"];
    assert!((ratio - 1e-4 / 2e-3).abs() < 1e-12, "{rates:?}");
    let changed = changed(&golden().join("model"), &checkpoint);
    assert!(changed.contains("language_model.model.norm.weight"), "{changed:?}");
    assert!(!changed.contains("language_model.model.embed_tokens.weight"), "{changed:?}");
    // A rate of its own is not the component's: the same run without the group ends elsewhere.
    let output = format!("run.output={}", stage.path("plain").display());
    stage.train(&["run.max_steps=5", &output], &Resume::Fresh).expect("a run");
    assert_ne!(loss_bits(&lines), loss_bits(&stage.metrics("plain")));
}

#[test]
fn each_schedule_ends_where_it_says() {
    let stage = Stage::new("freeze_vision_and_llm");
    for (name, sets, last) in [
        ("linear", &["schedule.kind=linear"][..], 0.1),
        ("wsd", &["schedule.kind=wsd", "schedule.decay_steps=4", "schedule.decay_shape='1-sqrt'"], 0.1),
        ("constant", &["schedule.kind=constant", "schedule.floor=0.0"], 1.0),
    ] {
        let output = format!("run.output={}", stage.path(name).display());
        stage.train(&[sets, &["run.max_steps=10", &output]].concat(), &Resume::Fresh).expect("a run");
        let rates: Vec<f64> = stage.metrics(name).iter().map(|line| line.lr["projector"] / 3e-3).collect();
        assert!(
            rates[0] == 0.0 && (rates[3] - 1.0).abs() < 1e-12 && (rates[9] - last).abs() < 1e-12,
            "{name}: {rates:?}"
        );
    }
}

#[test]
fn the_largest_micro_batch_is_tried_first_and_changes_nothing() {
    let stage = Stage::new("freeze_vision");
    let output = stage.command(&["run.max_steps=5".into()], &[]).output().expect("run");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("largest micro-batch tried: 3 rows of") && told.contains("estimated memory: weights"),
        "{told}"
    );
    let other = format!("run.output={}", stage.path("bare").display());
    stage.train(&["run.max_steps=5", "guard.dry_step=false", &other], &Resume::Fresh).expect("a run");
    assert_eq!(loss_bits(&stage.metrics("run")), loss_bits(&stage.metrics("bare")));
}

#[test]
fn questions_are_answered_while_it_learns_as_the_checkpoint_answers_them() {
    let stage = Stage::new("full");
    let image = write_image(&stage).display().to_string();
    let questions = format!("samples.questions=[{{images=['{image}'], question='w9 w10 ?'}}, {{question='w8'}}]");
    let sets = ["run.max_steps=7", "samples.every=3", "samples.max_new_tokens=6", &questions];
    let checkpoint = stage.train(&sets, &Resume::Fresh).expect("a run").checkpoint.expect("one");
    let lines = read_answers(&stage.path("run/answers.jsonl")).expect("written");
    assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [0, 3, 5, 6, 7]);
    let chat = Chat::load(&checkpoint).expect("a model folder");
    let questions = [Question::new(vec![ImageRef::Path(image)], "w9 w10 ?"), Question::new(vec![], "w8")];
    let expected = chat.answer_many(&questions, 6).expect("answers");
    let last = &lines[4].answers;
    assert_eq!(last.len(), 2);
    for (said, expected) in last.iter().zip(&expected) {
        assert_eq!((&said.answer, said.tokens), (&expected.answer, expected.tokens));
    }
    let absent = "samples.questions=[{images=['/nowhere.png'], question='w9'}]";
    let output = format!("run.output={}", stage.path("absent").display());
    let told = stage.train(&[absent, &output], &Resume::Fresh).expect_err("no such image");
    assert!(told.is_usage(), "{told}");
}

#[test]
fn the_validation_loss_is_measured_as_often_as_asked() {
    let stage = Stage::new("freeze_vision_and_llm");
    let processor = open_processor(&golden().join("processor"));
    write_shards(&stage.path("held-out"), &golden_records(&processor)[..5], &processor);
    let set = format!("data.validation={}", stage.path("held-out").display());
    stage
        .train(&[&set, "run.max_steps=7", "logging.validate_every=2", "logging.every=7"], &Resume::Fresh)
        .expect("a run");
    let lines = stage.metrics("run");
    let measured: Vec<u64> = lines.iter().filter(|line| line.validation_loss.is_some()).map(|line| line.step).collect();
    assert_eq!(measured, [2, 4, 5, 6, 7]);
}

#[test]
fn a_validation_set_that_does_not_fit_is_refused_before_the_first_step() {
    let stage = Stage::new("freeze_vision_and_llm");
    let processor = open_processor(&golden().join("processor"));
    let mut records = golden_records(&processor);
    let last = records.last_mut().expect("some");
    last.input_ids.resize(40, 9);
    last.labels.resize(40, 9);
    write_shards(&stage.path("long"), &records, &processor);
    let other = stage.path("processor");
    copy_folder(&golden().join("processor"), &other);
    let text = std::fs::read_to_string(other.join("preprocessor_config.json")).expect("there");
    std::fs::write(other.join("preprocessor_config.json"), text.replace("0.48145466", "0.5")).expect("written");
    write_shards(&stage.path("other"), &golden_records(&processor)[..5], &open_processor(&other));
    for (set, part) in [("typo", "typo"), ("long", "golden/35"), ("other", "build them again")] {
        let set = format!("data.validation={}", stage.path(set).display());
        let told = stage.train(&["run.max_steps=5", &set], &Resume::Fresh).expect_err(part);
        assert!(told.is_usage() && in_full(&told).contains(part), "{}", in_full(&told));
        assert_eq!(stage.metrics("run").len(), 0, "{part}");
    }
}

/// An error with all that it came from.
fn in_full(fault: &TrainError) -> String {
    let causes = std::iter::successors(Some(fault as &dyn std::error::Error), |fault| fault.source());
    causes.map(|fault| fault.to_string()).collect::<Vec<_>>().join(": ")
}

#[test]
fn a_folder_with_adapters_is_trained_as_adapters_or_merged_first() {
    let stage = Stage::new("lora");
    let adapted = stage.train_in("adapted", &["run.max_steps=1", "schedule.warmup_steps=0"], &Resume::Fresh);
    let from = format!("model.path={}", adapted.expect("a run").checkpoint.expect("one").display());
    for train_type in ["freeze_vision", "full"] {
        let told = Stage::new(train_type).train(&[&from], &Resume::Fresh).expect_err("its base would be lost");
        let text = told.to_string();
        assert!(told.is_usage() && text.contains("`train_type`") && text.contains("trainer export --merge"), "{text}");
    }
    // Its projector may learn: an export of adapters has it.
    Stage::new("freeze_vision_and_llm").train(&[&from, "run.max_steps=4"], &Resume::Fresh).expect("a run");
}

#[test]
fn a_presets_fresh_weights_learn() {
    let stage = Stage::new("full");
    let preset = "[vision]\nfamily = 'clip'\nhidden_size = 16\nintermediate_size = 32\nnum_layers = 2\nnum_heads = 2\n\
                  image_size = 16\npatch_size = 8\n[projector]\nkind = 'linear'\n[language]\nfamily = 'llama'\n\
                  hidden_size = 16\nintermediate_size = 32\nnum_layers = 1\nnum_heads = 2\nnum_key_value_heads = 1\n\
                  max_positions = 64\ntie_embeddings = true\n";
    std::fs::write(stage.path("preset.toml"), preset).expect("written");
    let text = std::fs::read_to_string(stage.path("recipe.toml")).expect("there");
    let from = format!("path = '{}'", golden().join("model").display());
    let text = text.replace(&from, &format!("init = '{}'", stage.path("preset.toml").display()));
    std::fs::write(stage.path("recipe.toml"), text).expect("written");
    stage.train(&["run.max_steps=20", "batch.global=36", "batch.micro=36"], &Resume::Fresh).expect("a run");
    let lines = stage.metrics("run");
    assert!(lines[19].loss < lines[0].loss - 0.05, "{} {}", lines[0].loss, lines[19].loss);
}

#[test]
fn adapters_and_projector_learn_and_nothing_else() {
    let stage = Stage::new("lora");
    let checkpoint = stage.train(&["run.max_steps=5"], &Resume::Fresh).expect("a run").checkpoint.expect("one");
    let trained = Vlm::load(&checkpoint, &|_| false, &Device::Cpu).expect("a model folder");
    let base = Vlm::load(&golden().join("model"), &|_| false, &Device::Cpu).expect("a model folder");
    let values = |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32") };
    let adapters = trained.params().iter().filter(|(name, _, _)| is_adapter(name)).count();
    assert_eq!(adapters, 2 * 2 * 2, "A and B of two linears in two blocks");
    for (name, tensor, _) in trained.params().iter() {
        let before = base.params().iter().find(|before| before.0 == name);
        let is_trained = is_adapter(name) || name.starts_with("multi_modal_projector.");
        match before {
            Some(before) => assert_eq!(values(before.1) != values(tensor), is_trained, "{name}"),
            // Both parts have learned: `B` started at zero.
            None => assert!(values(tensor).iter().any(|&value| value != 0.0), "{name}"),
        }
    }
    // The checkpoint is a model with adapters: other ones are refused, its own go on.
    let from = format!("model.path={}", checkpoint.display());
    let on = [&from, "run.output=OUT", "run.max_steps=6"]
        .map(|set| set.replace("OUT", &stage.path("on").display().to_string()));
    let on: Vec<&str> = on.iter().map(String::as_str).collect();
    let told = stage.train(&[&on[..], &["lora.rank=3"]].concat(), &Resume::Fresh).expect_err("another rank");
    let cause = std::error::Error::source(&told).expect("the model's refusal").to_string();
    assert!(cause.contains("`lora`"), "{cause}");
    assert_eq!(stage.train(&on, &Resume::Fresh).expect("its own").steps, 6);
}
