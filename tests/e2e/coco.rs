//! Real photos: COCO captions of which some images are absent, shards, a loader, twenty steps of stage 1.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use vela_tests::{run, sample_data, skip, start};

use crate::processor_folder;

struct Coco {
    scratch: TempDir,
    captions: PathBuf,
    photos: PathBuf,
}

impl Coco {
    fn new(data: &Path) -> Self {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        processor_folder::write(&scratch.path().join("processor"), &data.join("tokenizers/qwen2.5-0.5b-instruct"));
        let captions = data.join("coco_mini/annotations/captions_train2017.json");
        Self { scratch, captions, photos: data.join("coco_mini/train2017") }
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    /// Builds shards into `shards` and gives the report.
    fn build(&self, max_reject: &str, exit_code: i32) -> Value {
        let (captions, photos) = (self.captions.display().to_string(), self.photos.display().to_string());
        let (processor, output) = (self.path("processor"), self.path("shards"));
        #[rustfmt::skip]
        let arguments = [
            "build-shards", "--source", "coco", "--input", &captions, "--images", &photos,
            "--processor", &processor, "--output", &output, "--max-reject", max_reject, "--json",
        ];
        run("pipeline", &arguments).expect_code(exit_code).json()
    }

    /// File names of the photos that captions speak of and the folder lacks.
    fn absent_photos(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(&self.captions).expect("the captions");
        let captions: Value = serde_json::from_str(&text).expect("JSON");
        let images = captions["images"].as_array().expect("images");
        let names = images.iter().map(|image| image["file_name"].as_str().expect("a name").to_owned());
        names.filter(|name| !self.photos.join(name).exists()).collect()
    }

    /// File names in the details of `rejects.jsonl`.
    fn rejected_photos(&self) -> BTreeSet<String> {
        let rejects = std::fs::read_to_string(self.path("shards/rejects.jsonl")).expect("a reject list");
        let rows = rejects.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON line"));
        rows.map(|row| {
            assert_eq!(row["cause"], "missing_image", "{row}");
            let detail = row["detail"].as_str().expect("a detail");
            let path = detail.split('`').nth(1).expect("a quoted path");
            Path::new(path).file_name().expect("a file name").to_string_lossy().into_owned()
        })
        .collect()
    }
}

#[test]
fn real_photos_become_shards_and_twenty_steps_from_a_loader() {
    let Some(data) = sample_data() else { return skip("real photos", "no sample data beside the checkout") };
    let coco = Coco::new(&data);
    let report = coco.build("0.5", 0);
    assert_eq!(coco.rejected_photos(), coco.absent_photos());
    assert_eq!(report["samples"].as_u64().zip(report["rejected"]["missing_image"].as_u64()), Some((250, 150)));

    let mut loader = start("loader", &["serve", "--shards", &coco.path("shards"), "--listen", "127.0.0.1:0"]);
    let said = loader.wait_for("serving");
    let address = said.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an address");
    let recipe = recipe(&coco, address);
    let report = run("trainer", &["train", "--recipe", &recipe, "--json"]).expect_code(0).json();
    assert_eq!(report["steps"], 20);
    let losses = ["loss_first", "loss_last"].map(|key| report[key].as_f64().expect("a loss"));
    assert!(losses[1] < losses[0], "{losses:?}");
}

#[test]
fn too_many_absent_photos_end_with_their_own_exit_code() {
    let Some(data) = sample_data() else { return skip("absent photos", "no sample data beside the checkout") };
    let report = Coco::new(&data).build("0.05", 3);
    assert_eq!(report["rejected"]["missing_image"], 150);
}

fn recipe(coco: &Coco, address: &str) -> String {
    let preset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/configs/model/mllm_ch_tiny.toml");
    let (output, processor, preset) = (coco.path("run"), coco.path("shards/processor"), preset.display());
    let text = format!(
        r#"
        train_type = "freeze_vision_and_llm"
        run = {{ output = "{output}", seed = 1, max_steps = 20 }}
        data = {{ loader = "http://{address}" }}
        model = {{ init = "{preset}", processor = "{processor}" }}
        batch = {{ global = 8, micro = 4, max_length = 512 }}
        groups = {{ projector = {{ lr = 1e-2 }} }}
        schedule = {{ warmup_steps = 2 }}
        "#
    );
    let path = coco.path("recipe.toml");
    std::fs::write(&path, text).expect("a writable folder");
    path
}
