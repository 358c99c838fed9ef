//! The recipes in `trainer/configs/run` are right ones.

use std::path::Path;

use vela_train::Recipe;

#[test]
fn every_recipe_loads_and_resolves_to_an_equal_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/run");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the recipes") {
        let path = entry.expect("an entry").path();
        let recipe = Recipe::load(&path, &[]).unwrap_or_else(|fault| panic!("{}: {fault:?}", path.display()));
        let again = Recipe::check(recipe.resolved()).expect("resolved");
        assert_eq!(again.resolved(), recipe.resolved(), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 3);
}

/// (pair, its recipes): what each seed system trains.
const PAIRS: [(&str, &[&str]); 9] = [
    ("mllm_ch", &["stage1", "stage2", "lora"]),
    ("mllm_ch_l14_336", &["stage1", "stage2"]),
    ("mllm_en", &["stage1", "stage2"]),
    ("basic_vlm_siglip", &["stage1"]),
    ("basic_vlm_clip", &["stage1"]),
    ("llava_v1", &["stage1", "stage2"]),
    ("llava_v1_5", &["stage1", "stage2", "lora"]),
    ("minimind_v", &["stage1", "stage2"]),
    ("minimind_3v", &["stage1", "stage2"]),
];

fn load(name: &str) -> Recipe {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/run").join(format!("{name}.toml"));
    Recipe::load(&path, &[]).unwrap_or_else(|fault| panic!("{}: {fault:?}", path.display()))
}

#[test]
fn every_pair_has_its_stages_and_the_second_goes_on_from_the_first() {
    for (pair, stages) in PAIRS {
        let first = load(&format!("{pair}_stage1")).resolved();
        assert!(first.model.fresh_projector, "{pair}");
        assert_eq!(first.model.path.as_deref(), Some(&*format!("models/{pair}")));
        for stage in &stages[1..] {
            let later = load(&format!("{pair}_{stage}")).resolved();
            assert_eq!(later.model.path.as_deref(), Some(&*first.run.output), "{pair}_{stage}");
            assert!(!later.model.fresh_projector, "{pair}_{stage}");
            assert_eq!(later.train_type, if *stage == "lora" { "lora" } else { "freeze_vision" });
        }
    }
}

/// The rates, batches and warmups that the systems published.
#[test]
fn the_numbers_are_the_published_ones() {
    let rates = |name: &str| {
        let raw = load(name).resolved();
        let lr = |group: &str| raw.groups.get(group).map_or(0.0, |group| group.lr);
        (raw.batch.global, [lr("projector"), lr("language_model"), lr("lora")], raw.schedule.warmup_ratio)
    };
    for (name, batch, lr, warmup) in [
        ("mllm_ch_stage1", 64, [3e-5, 0.0, 0.0], None),
        ("mllm_en_stage2", 64, [3e-5, 3e-5, 0.0], None),
        ("basic_vlm_siglip_stage1", 4, [1e-4, 0.0, 3e-5], None),
        ("llava_v1_stage1", 128, [2e-3, 0.0, 0.0], Some(0.03)),
        ("llava_v1_stage2", 32, [2e-5, 2e-5, 0.0], Some(0.03)),
        ("llava_v1_5_stage1", 256, [1e-3, 0.0, 0.0], Some(0.03)),
        ("llava_v1_5_stage2", 128, [2e-5, 2e-5, 0.0], Some(0.03)),
        ("llava_v1_5_lora", 128, [2e-5, 0.0, 2e-4], Some(0.03)),
        ("minimind_v_stage1", 16, [4e-4, 0.0, 0.0], None),
        ("minimind_v_stage2", 4, [1e-6, 1e-6, 0.0], None),
        ("minimind_3v_stage2", 4, [5e-6, 5e-6, 0.0], None),
    ] {
        assert_eq!(rates(name), (batch, lr, warmup), "{name}");
    }
    assert_eq!(load("minimind_3v_stage2").resolved().groups["language_model"].layers, Some(vec![0, -1]));
}

#[test]
fn a_run_folder_holds_the_recipe_with_its_defaults() {
    let stage = crate::fixture::Stage::new("freeze_vision_and_llm");
    stage.train(&["run.max_steps=4"], &vela_train::Resume::Fresh).expect("a run");
    let resolved = Recipe::load(&stage.path("run").join("recipe.toml"), &[]).expect("a right recipe");
    assert_eq!(
        resolved,
        Recipe::check(stage.recipe(&["run.max_steps=4".into()]).expect("right").resolved()).expect("right")
    );
    let svg = std::fs::read_to_string(stage.path("run").join("loss.svg")).expect("a curve");
    assert!(svg.contains("<polyline") && svg.ends_with("</svg>\n"), "{svg}");
}
