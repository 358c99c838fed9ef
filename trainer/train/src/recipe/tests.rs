use super::*;

const STAGE_ONE: &str = r#"
train_type = "freeze_vision_and_llm"
[run]
output = "runs/one"
max_steps = 20
[data]
shards = "shards"
[model]
path = "base"
fresh_projector = true
[batch]
global = 8
max_length = 64
[groups.projector]
lr = 1e-3
"#;

fn check(sets: &[&str]) -> Result<Recipe, TrainError> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Recipe::check(vela_runtime::parse_config(STAGE_ONE, "recipe.toml", &sets)?)
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let recipe = check(&[]).expect("a right recipe");
    assert_eq!((recipe.micro, recipe.limits.prefetch_bytes, recipe.shuffle), (8, 64 << 20, true));
    assert_eq!(recipe.processor, Path::new("base"));
    assert_eq!(
        recipe.raw.optimizer,
        RawOptimizer { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, clip_norm: 1.0 }
    );
    assert_eq!((recipe.raw.logging.every, recipe.raw.checkpoint.every, recipe.raw.checkpoint.keep), (1, 500, 2));
    assert_eq!(recipe.total_steps(7).expect("few"), 20);
    assert_eq!(check(&["run.max_steps=3"]).expect("overridden").total_steps(7).expect("few"), 3);
    let endless = STAGE_ONE.replace("max_steps = 20", &format!("epochs = {}", i64::MAX));
    let endless = Recipe::check(vela_runtime::parse_config(&endless, "recipe.toml", &[]).expect("parsed"));
    let refusal = endless.expect("a right recipe").total_steps(7).expect_err("no such step").to_string();
    assert!(refusal.contains("`run.epochs`: expected at most"), "{refusal}");
}

fn trains(recipe: &Recipe, name: &str) -> bool {
    recipe.groups.of(name, 2).is_some()
}

#[test]
fn only_the_components_of_the_train_type_are_trained() {
    let recipe = check(&[]).expect("a right recipe");
    assert!(trains(&recipe, "multi_modal_projector.linear_1.weight"));
    assert!(!trains(&recipe, "language_model.model.norm.weight"));
    let two = ["train_type=freeze_vision", "groups.language_model.lr=2e-5"];
    let recipe = check(&two).expect("stage 2");
    assert!(trains(&recipe, "language_model.model.norm.weight"));
    assert!(!trains(&recipe, "vision_tower.vision_model.embeddings.class_embedding"));
    let frozen = check(&["train_type=freeze_vision", "groups.language_model.lr=0"]).expect("lr 0 freezes");
    assert!(!trains(&frozen, "language_model.lm_head.weight"));
}

#[test]
fn the_resolved_recipe_gives_an_equal_recipe() {
    let recipe = check(&["data.prefetch=1MiB", "schedule.warmup_ratio=0.03", "optimizer.weight_decay=0.1"]);
    let resolved = recipe.expect("a right recipe").resolved();
    let text = toml::to_string(&resolved).expect("a TOML form");
    let again = Recipe::check(toml::from_str(&text).expect("our own text")).expect("still right");
    assert_eq!(again.resolved(), resolved);
}

#[test]
fn each_wrong_recipe_is_refused_by_its_key() {
    let cases: [(&[&str], &str); 44] = [
        (&["train_type=half"], "`freeze_vision_and_llm`, `freeze_vision`, `lora`, `full`, found `half`"),
        (&["train_type=lora", "groups.lora.lr=1e-4"], "`rank`, `alpha` and `targets`"),
        (&["lora.rank=8", "lora.alpha=16", "lora.targets=['q_proj']"], "nothing for `freeze_vision_and_llm`"),
        (&["train_type=lora", "lora.rank=8", "lora.alpha=16", "lora.targets=['q_proj']"], "groups.lora.lr"),
        (
            &["train_type=lora", "lora.rank=0", "lora.alpha=16", "lora.targets=['q_proj']", "groups.lora.lr=1"],
            "lora.rank",
        ),
        (&["train_type=lora", "lora.rank=1", "lora.alpha=1", "lora.targets=[]", "groups.lora.lr=1"], "lora.targets"),
        (&["schedule.kind=wsd"], "schedule.decay_steps"),
        (&["schedule.kind=constant", "schedule.floor=0.1"], "schedule.floor"),
        (&["logging.validate_every=0"], "logging.validate_every"),
        (&["logging.validate_every=5"], "`data.validation`"),
        (&["samples.questions=[]"], "samples.questions"),
        (&["logging.metrics=here"], "logging.metrics"),
        (&["logging.peak_tflops=0.0"], "logging.peak_tflops"),
        (&["samples.questions=[{question='a'}]", "samples.every=0"], "samples.every"),
        (&["run.epochs=1"], "run.epochs, run.max_steps"),
        (&["run.max_steps=0"], "run.epochs, run.max_steps"),
        (&["run.output="], "run.output"),
        (&["data.loader=http://localhost:1"], "data.shards, data.loader"),
        (&["data.shards=a,,b"], "data.shards"),
        (&["data.shards=a*x"], "data.shards"),
        (&["data.token_file=token"], "data.token_file"),
        (&["data.allow_remote_plaintext=true"], "data.allow_remote_plaintext"),
        (&["data.shuffle=false", "data.shuffle_window=3"], "data.shuffle_window"),
        (&["batch.packing.max_images=0"], "batch.packing.max_images"),
        (&["batch.packing.max_images=1", "batch.packing.window=0"], "batch.packing.window"),
        (&["data.prefetch=0B"], "data.prefetch"),
        (&["model.init=tiny.toml"], "model.path, model.init"),
        (&["batch.global=0"], "batch.global"),
        (&["batch.micro=9"], "batch.micro"),
        (&["batch.max_length=1"], "batch.max_length"),
        (&["batch.recompute=all"], "`batch.recompute`: expected `none` or `block`, found `all`"),
        (&["groups.projector.lr=-1.0"], "groups.projector.lr"),
        (&["groups.projector.lr=nan"], "groups.projector.lr"),
        (&["groups.projector.lr=0.0"], "`groups`"),
        (&["groups.language_model.lr=1e-5"], "groups.language_model.lr"),
        (&["train_type=freeze_vision"], "groups.language_model.lr"),
        (&["optimizer.betas=[0.9, 1.0]"], "optimizer.betas"),
        (&["optimizer.eps=0.0"], "optimizer.eps"),
        (&["optimizer.clip_norm=-1.0"], "optimizer.clip_norm"),
        (&["schedule.warmup_ratio=1.0"], "schedule.warmup_ratio"),
        (&["schedule.floor=1.5"], "schedule.floor"),
        (&["schedule.warmup_steps=1", "schedule.warmup_ratio=0.1"], "at most one of them"),
        (&["logging.every=0"], "logging.every"),
        (&["checkpoint.keep=0"], "checkpoint.keep"),
    ];
    for (sets, part) in cases {
        let told = check(sets).expect_err(part).to_string();
        assert!(told.contains(part), "{sets:?}: {told}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name() {
    let fault = check(&["optimizer.weight_decai=0.1"]).expect_err("no such key");
    let source = std::error::Error::source(&fault).expect("the config's account").to_string();
    assert!(source.contains("optimizer.weight_decai") && source.contains("`weight_decay`"), "{source}");
}
