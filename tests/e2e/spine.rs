//! Generated data, from raw files in two layouts to an answer about an image.

use std::path::Path;

use tempfile::TempDir;
use vela_tests::run;

fn path(scratch: &TempDir, name: &str) -> String {
    scratch.path().join(name).display().to_string()
}

/// Generated raw data under `data`, and its LLaVA half as shards under `shards`.
fn shards() -> TempDir {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let (data, shards) = (path(&scratch, "data"), path(&scratch, "shards"));
    run("pipeline", &["demo-data", "--output", &data, "--samples", "64"]).expect_code(0);
    let (processor, input) = (format!("{data}/processor"), format!("{data}/llava"));
    #[rustfmt::skip]
    let arguments = [
        "build-shards", "--source", "llava", "--input", &input, "--processor", &processor, "--output", &shards, "--json",
    ];
    let report = run("pipeline", &arguments).expect_code(0).json();
    assert!(report["rejected"].as_object().is_some_and(serde_json::Map::is_empty), "{report}");
    scratch
}

fn recipe(scratch: &TempDir) -> String {
    let preset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/configs/model/demo.toml");
    let (output, shards, preset) = (path(scratch, "run"), path(scratch, "shards"), preset.display());
    let text = format!(
        r#"
        train_type = "full"
        run = {{ output = "{output}", seed = 1, max_steps = 6 }}
        data = {{ shards = "{shards}" }}
        model = {{ init = "{preset}", processor = "{shards}/processor" }}
        batch = {{ global = 8, max_length = 256 }}
        groups = {{ projector = {{ lr = 1e-3 }}, language_model = {{ lr = 1e-3 }}, vision_tower = {{ lr = 1e-3 }} }}
        "#
    );
    let recipe = path(scratch, "recipe.toml");
    std::fs::write(&recipe, text).expect("a writable folder");
    recipe
}

#[test]
fn generated_raw_files_become_a_model_that_answers() {
    let scratch = shards();
    let preview = path(&scratch, "preview.html");
    run("pipeline", &["preview", "--shards", &path(&scratch, "shards"), "--html", &preview]).expect_code(0);
    let page = std::fs::read_to_string(&preview).expect("a page");
    assert!(page.contains("data:image/png;base64,"), "the page shows its images by itself");

    let report = run("trainer", &["train", "--recipe", &recipe(&scratch), "--json"]).expect_code(0).json();
    let model = report["checkpoint"].as_str().expect("a checkpoint");
    let held_out = std::fs::read_dir(scratch.path().join("data/llava")).expect("the raw folder");
    let image = first_image(held_out.flatten().map(|entry| entry.path()));
    #[rustfmt::skip]
    let arguments = [
        "chat", "--model", model, "--image", &image, "--question", "How many shapes are there?", "--max-new-tokens", "4", "--json",
    ];
    let answer = run("trainer", &arguments).expect_code(0).json();
    assert!(answer["answer"].is_string() && answer["tokens"].as_u64().is_some_and(|count| count <= 4), "{answer}");
}

/// The first image file among `paths` and their sub-folders.
fn first_image(paths: impl Iterator<Item = std::path::PathBuf>) -> String {
    let mut open: Vec<_> = paths.collect();
    open.sort();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("a folder").flatten().map(|entry| entry.path()));
        } else if path.extension().is_some_and(|extension| extension == "png" || extension == "jpg") {
            return path.display().to_string();
        }
    }
    panic!("the generated data has no image");
}

#[test]
fn one_more_run_into_the_same_folder_is_refused_with_the_remedy() {
    let scratch = shards();
    let recipe = recipe(&scratch);
    run("trainer", &["train", "--recipe", &recipe, "--set", "run.max_steps=1"]).expect_code(0);
    let again = run("trainer", &["train", "--recipe", &recipe, "--set", "run.max_steps=1"]);
    assert!(again.code != Some(0) && again.stderr.contains("--resume"), "{again}");
}

#[test]
fn wrong_flags_of_every_command_end_with_code_two() {
    for (binary, arguments) in [
        ("pipeline", &["build-shards", "--source", "nonsense"][..]),
        ("pipeline", &["preview"]),
        ("loader", &["serve"]),
        ("trainer", &["train", "--no-such-flag"]),
        ("trainer", &["chat"]),
    ] {
        run(binary, arguments).expect_code(2);
    }
}

#[test]
fn a_misspelt_recipe_key_is_answered_with_the_nearest() {
    let scratch = shards();
    let recipe = recipe(&scratch);
    let wrong = run("trainer", &["train", "--recipe", &recipe, "--set", "batch.globl=8"]).expect_code(2);
    assert!(wrong.stderr.contains("globl") && wrong.stderr.contains("global"), "{wrong}");
}
