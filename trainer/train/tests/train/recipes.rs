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
