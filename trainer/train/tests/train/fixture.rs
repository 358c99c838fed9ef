//! A small model, its processor and a shard set on disk, and the recipe that trains on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use vela_processor::{Processor, ProcessorOptions};
use vela_shard::{BuildFolder, LocalStore, ShardSettings};
use vela_train::{Recipe, Resume, StepMetrics, TrainError, TrainReport, read_metrics, train};
use vela_types::{Fingerprint, ImageTensor, Language, ProcessorSummary, Record};

/// What `tests/golden/train/make.py` wrote.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/train")
}

pub(crate) fn golden_json(name: &str) -> Value {
    let text = fs::read_to_string(golden().join(name)).expect("the golden file is committed");
    serde_json::from_str(&text).expect("JSON")
}

pub(crate) fn open_processor(folder: &Path) -> Processor {
    Processor::load(folder, &ProcessorOptions::default()).expect("a whole processor")
}

/// The records that the PyTorch run was fed.
pub(crate) fn golden_records(processor: &Processor) -> Vec<Record> {
    read_records(&golden(), processor)
}

/// The records of `records.json` and `records.safetensors` in a folder of goldens.
pub(crate) fn read_records(folder: &Path, processor: &Processor) -> Vec<Record> {
    let bytes = fs::read(folder.join("records.safetensors")).expect("committed");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let shape = processor.summary().image_shape;
    let mut pixels = file.tensor("pixels").expect("pixels").data().chunks_exact(shape.num_elements());
    let text = fs::read_to_string(folder.join("records.json")).expect("committed");
    let rows: Value = serde_json::from_str(&text).expect("JSON");
    let integers = |value: &Value| -> Vec<i64> {
        value.as_array().expect("a list").iter().map(|number| number.as_i64().expect("an integer")).collect()
    };
    let record = |(index, row): (usize, &Value)| {
        let num_images = row["images"].as_u64().expect("a count") as usize;
        let images = pixels.by_ref().take(num_images).map(|data| ImageTensor {
            shape,
            data: data.to_vec().into(),
            hash: Fingerprint(*blake3::hash(data).as_bytes()),
        });
        Record {
            id: format!("golden/{index}"),
            source: "golden".into(),
            language: Language::Other,
            images: images.collect(),
            input_ids: integers(&row["ids"]).into_iter().map(|id| id as u32).collect(),
            labels: integers(&row["labels"]).into_iter().map(|label| label as i32).collect(),
        }
    };
    rows.as_array().expect("a list").iter().enumerate().map(record).collect()
}

/// Writes records as one committed shard set.
pub(crate) fn write_shards(folder: &Path, records: &[Record], processor: &Processor) {
    write_set(folder, &[records], processor.summary());
}

/// Writes records, those of each shard, as one committed shard set.
pub(crate) fn write_set(folder: &Path, shards: &[&[Record]], processor: &ProcessorSummary) {
    fs::create_dir_all(folder).expect("created");
    let store = std::sync::Arc::new(LocalStore::new(folder));
    let settings = ShardSettings::new(processor.clone());
    let fingerprint = Fingerprint(*blake3::hash(format!("{shards:?}").as_bytes()).as_bytes());
    let build = BuildFolder::open(store, fingerprint, settings).expect("an empty folder");
    for (index, records) in (0..).zip(shards) {
        let mut writer = build.create_shard(index).expect("a shard");
        records.iter().for_each(|record| writer.push(record).expect("pushed"));
        build.complete_shard(index, &writer.finish().expect("finished"), Value::Null).expect("completed");
    }
    build.commit(shards.len() as u32, Default::default(), Value::Null).expect("committed");
}

/// A folder with `shards`, `recipe.toml` and, once trained, `run`.
pub(crate) struct Stage {
    pub(crate) folder: TempDir,
}

impl Stage {
    /// The golden data and settings under a train type.
    pub(crate) fn new(train_type: &str) -> Self {
        let stage = Self { folder: tempfile::tempdir().expect("a folder") };
        let processor = open_processor(&golden().join("processor"));
        write_shards(&stage.path("shards"), &golden_records(&processor), &processor);
        stage.write_recipe(train_type);
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_recipe(&self, train_type: &str) {
        let settings = &golden_json("expected.json")["settings"];
        let rates = &settings["rates"];
        let groups: String = match train_type {
            "freeze_vision_and_llm" => &["projector"][..],
            "freeze_vision" => &["projector", "language_model"],
            "lora" => &["projector"],
            _ => &["projector", "language_model", "vision_tower"],
        }
        .iter()
        .map(|group| format!("{group}.lr = {}\n", rates[group]))
        .collect();
        let groups = match train_type {
            "lora" => {
                format!("{groups}lora.lr = 2e-3\n[lora]\nrank = 2\nalpha = 4.0\ntargets = ['q_proj', 'v_proj']\n")
            }
            _ => groups,
        };
        let text = format!(
            "train_type = \"{train_type}\"\n[run]\noutput = '{}'\nseed = 3\nmax_steps = {}\n\
             [data]\nshards = '{}'\nshuffle = false\nprefetch = \"1MiB\"\n\
             [model]\npath = '{}'\nprocessor = '{}'\n\
             [batch]\nglobal = {}\nmicro = {}\nmax_length = 32\n[groups]\n{groups}\
             [optimizer]\nbetas = {}\neps = {}\nweight_decay = {}\nclip_norm = {}\n\
             [schedule]\nwarmup_steps = {}\nfloor = {}\n[checkpoint]\nevery = 5\nkeep = 2\n",
            self.path("run").display(),
            settings["steps"],
            self.path("shards").display(),
            golden().join("model").display(),
            golden().join("processor").display(),
            settings["global"],
            settings["micro"],
            settings["betas"],
            settings["eps"].as_f64().expect("a number"),
            settings["weight_decay"],
            settings["clip_norm"],
            settings["warmup"],
            settings["floor"],
        );
        fs::write(self.path("recipe.toml"), text).expect("written");
    }

    /// Puts `new` in the place of `old` in the recipe.
    pub(crate) fn edit_recipe(&self, old: &str, new: &str) {
        let text = fs::read_to_string(self.path("recipe.toml")).expect("there");
        assert!(text.contains(old), "no `{old}` in: {text}");
        fs::write(self.path("recipe.toml"), text.replace(old, new)).expect("written");
    }

    /// Trains in the folder `run` beside the recipe.
    pub(crate) fn train_in(&self, run: &str, sets: &[&str], resume: &Resume) -> Result<TrainReport, TrainError> {
        let output = format!("run.output={}", self.path(run).display());
        self.train(&[sets, &[&*output]].concat(), resume)
    }

    /// The `trainer_state.json` of a checkpoint.
    pub(crate) fn state(&self, run: &str, step: u64) -> Value {
        let path = self.path(run).join(format!("checkpoints/step-{step}/trainer_state.json"));
        serde_json::from_str(&fs::read_to_string(path).expect("a checkpoint")).expect("JSON")
    }

    /// Takes batches from a loader at `address` instead of reading the shards.
    pub(crate) fn use_loader(&self, address: &str) {
        let text = fs::read_to_string(self.path("recipe.toml")).expect("there");
        let shards = format!("shards = '{}'", self.path("shards").display());
        assert!(text.contains(&shards), "{text}");
        fs::write(self.path("recipe.toml"), text.replace(&shards, &format!("loader = \"{address}\"")))
            .expect("written");
    }

    pub(crate) fn recipe(&self, sets: &[String]) -> Result<Recipe, TrainError> {
        Recipe::load(&self.path("recipe.toml"), sets)
    }

    /// Trains in this process.
    pub(crate) fn train(&self, sets: &[&str], resume: &Resume) -> Result<TrainReport, TrainError> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        train(&self.recipe(&sets)?, resume, &vela_runtime::Shutdown::new())
    }

    /// The metrics of a run folder.
    pub(crate) fn metrics(&self, run: &str) -> Vec<StepMetrics> {
        read_metrics(&self.path(run).join("metrics.jsonl")).expect("readable")
    }

    /// `trainer train` on this recipe, not started yet.
    pub(crate) fn command(&self, sets: &[String], rest: &[&str]) -> Command {
        let mut command = trainer();
        command.args(["train", "--recipe"]).arg(self.path("recipe.toml"));
        for set in sets {
            command.args(["--set", set]);
        }
        command.args(rest).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// The real binary.
pub(crate) fn trainer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_trainer"))
}

/// Losses of a run by their bits.
pub(crate) fn loss_bits(lines: &[StepMetrics]) -> Vec<(u64, u64)> {
    lines.iter().map(|line| (line.step, line.loss.to_bits())).collect()
}

/// Copies the files of a flat folder.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("readable") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}
