//! Builds through the library: what goes in comes out or is named, and the bytes depend on nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude::{Column, DataFrame, ParquetWriter};
use serde_json::{Value, json};
use vela_prepare::{
    BuildConfig, BuildReport, BuildWorker, DemoDataConfig, DemoDataReport, DialogueConfig, DialogueMode, ImageFolder,
    InputConfig, InputSet, PrepareError, Reject, Source, SourceOptions, build_shards, write_demo_data,
};
use vela_processor::{Processor, ProcessorOptions};
use vela_runtime::{Progress, Shutdown};
use vela_shard::{Manifest, ShardReader, open_store};
use vela_types::{Language, Record};

/// A temp folder with demo data in it.
struct Demo {
    folder: tempfile::TempDir,
    data: DemoDataReport,
}

impl Demo {
    fn new(num_train: usize) -> Self {
        let folder = tempfile::tempdir().expect("temp folder");
        let output = folder.path().join("demo");
        let data = write_demo_data(&DemoDataConfig { num_train, num_heldout: 2, ..DemoDataConfig::new(output) });
        Self { folder, data: data.expect("demo data") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The demo's own dialogues, whose questions are the held-out ones.
    fn zh(&self) -> InputConfig {
        let images = Some(self.data.sa1b_images.clone());
        let dialogue = DialogueConfig { short_answers: true, ..DialogueMode::Rules.into() };
        InputConfig { images, dialogue, ..InputConfig::new(Source::Sa1b, &self.data.sa1b) }
    }

    fn en(&self) -> InputConfig {
        InputConfig::new(Source::Llava, &self.data.llava)
    }

    fn config(&self, inputs: Vec<InputConfig>, name: &str) -> BuildConfig {
        let output = self.path(name).to_string_lossy().into_owned();
        BuildConfig { workers: 2, ..BuildConfig::new(inputs, &self.data.processor, output) }
    }

    /// Writes `records` as JSON lines beside the demo's English images and builds them.
    fn build_lines(&self, name: &str, lines: &[String]) -> BuildReport {
        let path = self.data.llava.with_file_name(format!("{name}.jsonl"));
        fs::write(&path, lines.join("\n")).expect("lines");
        build(&self.config(vec![InputConfig::new(Source::Llava, path)], name))
    }
}

fn build(config: &BuildConfig) -> BuildReport {
    try_build(config).expect("builds")
}

fn try_build(config: &BuildConfig) -> Result<BuildReport, PrepareError> {
    build_shards(config, &Progress::hidden(), &Shutdown::new())
}

/// Every file of a folder with its content.
fn contents(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
    let files = entries.filter(|path| path.is_file());
    files
        .map(|path| (path.file_name().expect("name").to_string_lossy().into(), fs::read(&path).expect("file")))
        .collect()
}

fn records(folder: &str) -> Vec<Record> {
    let store = open_store(folder).expect("store");
    let manifest = Manifest::load(store.as_ref()).expect("manifest");
    let readers = manifest.shards.iter().map(|entry| ShardReader::open(store.as_ref(), entry).expect("shard"));
    readers.flat_map(|reader| (0..reader.rows()).map(move |row| reader.read(row).expect("row"))).collect()
}

fn rejects(folder: &str) -> Vec<Reject> {
    let text = fs::read_to_string(Path::new(folder).join("rejects.jsonl")).expect("reject list");
    text.lines().map(|line| serde_json::from_str(line).expect("a reject")).collect()
}

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect()
}

fn line(id: &str, image: Value, question: &str, answer: &str) -> String {
    let turns = json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
    json!({"id": id, "image": image, "conversations": turns}).to_string()
}

#[test]
fn both_layouts_become_one_shard_set_in_both_languages() {
    let demo = Demo::new(20);
    let config = demo.config(vec![demo.zh(), demo.en()], "both");
    let report = build(&config);
    assert_eq!((report.samples, report.records, report.images), (40, 40, 40));
    assert!(report.rejected.is_empty() && report.peak_queue_bytes > 0);
    let records = records(&config.output);
    assert_eq!(records.iter().filter(|record| record.language == Language::Zh).count(), 20);
    assert!(
        records[0].id.starts_with("sa1b/train-0000-of-0001-") && records[20].id == "llava/demo_instruct/demo_000000"
    );
    let tokens: usize = records.iter().map(|record| record.input_ids.len()).sum();
    assert_eq!(report.tokens, tokens as u64);
    assert_eq!(BuildReport { kept_shards: 1, ..build(&config) }.samples, 40, "a finished build is found finished");
}

#[test]
fn records_in_are_samples_out_plus_named_rejects() {
    let demo = Demo::new(4);
    let images = demo.data.llava.parent().expect("folder").join("images");
    let png = fs::read(images.join("en_000000.png")).expect("png");
    fs::write(images.join("lies.jpg"), &png).expect("png under a wrong name");
    let jpeg = fs::read(demo.data.sa1b_images.join("sa_000000.jpg")).expect("jpeg");
    fs::write(images.join("cut.jpg"), &jpeg[..jpeg.len() - 100]).expect("a jpeg without its end");
    fs::write(images.join("empty.png"), b"").expect("empty");
    fs::write(images.join("text.png"), b"not an image at all").expect("text");
    let good = || json!("images/en_000001.png");
    let lines = [
        line("good", good(), "<image>\nWhat?", "A shape."),
        line("lies", json!("images/lies.jpg"), "What?\n<image>", "A shape."),
        line("cut", json!("images/cut.jpg"), "<image>\nWhat?", "A shape."),
        line("empty", json!("images/empty.png"), "<image>\nWhat?", "A shape."),
        line("text", json!("images/text.png"), "<image>\nWhat?", "A shape."),
        line("absent", json!("images/absent.png"), "<image>\nWhat?", "A shape."),
        line("twice", good(), "<image><image>\nWhat?", "A shape."),
        line("none", good(), "What?", "A shape."),
        line("text only", Value::Null, "What is red?", "A colour."),
        line("marked text", Value::Null, "<image> What is red?", "A colour."),
        line("silent", good(), "<image>\nWhat?", " "),
        "{\"id\": broken".to_owned(),
        line("good", good(), "<image>\nWhat?", "A shape."),
    ];
    let report = demo.build_lines("dirt", &lines);
    let expected = counts(&[
        ("truncated_image", 1),
        ("empty_image", 1),
        ("unknown_image_format", 1),
        ("missing_image", 1),
        ("mark_count", 3),
        ("empty_turn", 1),
        ("broken_json", 1),
        ("duplicate_record", 1),
    ]);
    assert_eq!(report.rejected, expected);
    assert_eq!((report.records, report.samples), (13, 3));
    let named = rejects(&report.output);
    assert_eq!(named.iter().map(|reject| reject.record).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 9, 10, 11, 12]);
    assert!(named.iter().all(|reject| reject.file == "dirt.jsonl" && !reject.detail.is_empty()));
    assert_eq!(named[3].id.as_deref(), Some("llava/dirt/absent"));
    assert!(named[2].detail.contains("not an image: starts with `not an i`"), "{}", named[2].detail);
}

#[test]
fn defect_09_the_seed_alone_decides_prompts_and_dialogues() {
    let demo = Demo::new(12);
    for dialogue in [DialogueMode::Caption, DialogueMode::Rules] {
        let input = InputConfig { dialogue: dialogue.into(), ..demo.zh() };
        let build_seed = |seed, name: &str| {
            let config = BuildConfig { seed, ..demo.config(vec![input.clone()], &format!("{name}-{dialogue:?}")) };
            build(&config);
            contents(&config.output)
        };
        let first = build_seed(1, "first");
        assert_eq!(first, build_seed(1, "again"));
        assert_ne!(first["shard-00000.parquet"], build_seed(2, "other")["shard-00000.parquet"]);
    }
}

#[test]
fn one_worker_and_four_write_the_same_bytes() {
    let demo = Demo::new(60);
    let build_with = |workers, name: &str| {
        // 10 records of 32 x 32 pixels and 4 KiB of text per shard.
        let shard_size_bytes = 10 * (3 * 32 * 32 + 4096);
        let config = demo.config(vec![demo.zh(), demo.en()], name);
        let report = build(&BuildConfig { workers, shard_size_bytes, ..config.clone() });
        assert_eq!(report.shards, 12);
        contents(&config.output)
    };
    assert_eq!(build_with(1, "one"), build_with(4, "four"));
}

#[test]
fn a_folder_of_another_build_is_refused_with_the_remedy() {
    let demo = Demo::new(4);
    let config = demo.config(vec![demo.en()], "taken");
    build(&config);
    let before = contents(&config.output);
    let fault = try_build(&BuildConfig { max_length: 77, ..config.clone() }).expect_err("another build");
    assert!(fault.is_usage() && fault.to_string().contains("--output"), "{fault}");
    assert_eq!(contents(&config.output), before);
    let strange = demo.config(vec![demo.en()], "strange");
    fs::create_dir_all(&strange.output).expect("folder");
    fs::write(Path::new(&strange.output).join("thesis.txt"), "mine").expect("file");
    assert!(matches!(try_build(&strange), Err(PrepareError::OutputInUse { .. })));
}

#[test]
fn a_registry_that_reads_the_file_another_way_is_another_build() {
    let demo = Demo::new(2);
    let folder = demo.path("factory");
    fs::create_dir(&folder).expect("folder");
    let turn = |role: &str, first: &str, second: &str| json!({"role": role, "content": first, "other": second});
    let messages = [turn("user", "Which?", "Who?"), turn("assistant", "This one.", "That one.")];
    fs::write(folder.join("set.json"), json!([{"messages": messages}]).to_string()).expect("records");
    let register = |content: &str| {
        let tags =
            json!({"role_tag": "role", "content_tag": content, "user_tag": "user", "assistant_tag": "assistant"});
        let entry = json!({"file_name": "set.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags});
        fs::write(folder.join("dataset_info.json"), json!({"set": entry}).to_string()).expect("registry");
    };
    let options = SourceOptions { dataset: Some("set".to_owned()), ..SourceOptions::default() };
    let inputs = vec![InputConfig { options, ..InputConfig::new(Source::Sharegpt, &folder) }];
    let config = BuildConfig { inputs, ..demo.config(vec![], "registered") };
    let plan = || BuildWorker::open(&BuildConfig { output: demo.path("plan").display().to_string(), ..config.clone() });
    register("content");
    assert_eq!(build(&config).samples, 1);
    let task = plan().expect("planned").tasks().remove(0);
    register("other");
    let fault = try_build(&config).expect_err("the shards are of another reading");
    assert!(matches!(fault, PrepareError::OutputInUse { .. }), "{fault}");
    fs::remove_dir_all(demo.path("plan")).expect("removed");
    let late = plan().expect("planned").build_shard(&task, &Progress::hidden(), &Shutdown::new());
    assert!(matches!(late, Err(PrepareError::OtherPlan { .. })), "{late:?}");
    register("content");
    assert_eq!(build(&config).kept_shards, 1, "the first reading is the first build");
}

#[test]
fn a_damaged_or_missing_shard_is_made_again_and_the_others_are_kept() {
    let demo = Demo::new(40);
    let config = BuildConfig { shard_size_bytes: 10 * (3 * 32 * 32 + 4096), ..demo.config(vec![demo.en()], "repair") };
    assert_eq!(build(&config).kept_shards, 0);
    let before = contents(&config.output);
    let mut bytes = before["shard-00001.parquet"].clone();
    bytes[100] ^= 1;
    fs::write(Path::new(&config.output).join("shard-00001.parquet"), bytes).expect("flip");
    fs::remove_file(Path::new(&config.output).join("shard-00003.parquet")).expect("removed");
    assert_eq!(build(&config).kept_shards, 2);
    assert_eq!(contents(&config.output), before);
}

#[test]
fn new_images_are_another_input_and_so_another_build() {
    let demo = Demo::new(6);
    let photo = demo.data.sa1b_images.join("sa_000003.jpg");
    let away = demo.path("away.jpg");
    fs::rename(&photo, &away).expect("moved");
    let config = demo.config(vec![demo.zh()], "gap");
    let report = build(&config);
    assert_eq!(report.rejected, counts(&[("missing_image", 1)]));
    assert!(rejects(&report.output)[0].detail.contains("--images"));
    fs::rename(&away, &photo).expect("moved back");
    assert!(matches!(try_build(&config), Err(PrepareError::OutputInUse { .. })));
    assert_eq!(build(&BuildConfig { output: format!("{}2", config.output), ..config }).samples, 6);
}

/// A BMP of one colour: pictures of one side have one size in bytes, whatever they show.
fn bmp(grey: u8) -> Vec<u8> {
    const SIDE: u32 = 8;
    let pixels = vec![grey; (SIDE * SIDE * 3) as usize];
    let mut file = b"BM".to_vec();
    for word in [54 + pixels.len() as u32, 0, 54, 40, SIDE, SIDE, 1 | 24 << 16, 0, pixels.len() as u32, 0, 0, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(pixels);
    file
}

#[test]
fn images_beside_the_data_file_are_inputs_too() {
    let demo = Demo::new(2);
    let images = demo.data.llava.parent().expect("folder").join("images");
    let lines = [
        line("there", json!("images/en_000000.png"), "<image>\nWhat?", "A shape."),
        line("late", json!("images/late.bmp"), "<image>\nWhat?", "A shape."),
    ];
    let report = demo.build_lines("late", &lines);
    assert_eq!((report.samples, &report.rejected), (1, &counts(&[("missing_image", 1)])));
    fs::write(images.join("unused.bmp"), bmp(1)).expect("an image that no record names");
    assert_eq!(demo.build_lines("late", &lines).kept_shards, 1);
    fs::write(images.join("late.bmp"), bmp(1)).expect("the missing image");
    let again =
        demo.config(vec![InputConfig::new(Source::Llava, demo.data.llava.with_file_name("late.jsonl"))], "late");
    assert!(matches!(try_build(&again), Err(PrepareError::OutputInUse { .. })));
}

#[test]
fn captions_too_name_the_images_beside_their_file() {
    let root = tempfile::tempdir().expect("temp folder");
    let (coco, sa1b) = (root.path().join("captions.json"), root.path().join("captions.parquet"));
    let captions = json!({
        "images": [{"id": 7, "file_name": "late.bmp"}, {"id": 8, "file_name": "unused.bmp"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "A cat."}],
    });
    fs::write(&coco, captions.to_string()).expect("captions");
    let column = |name: &str, text: &str| Column::new(name.into(), vec![text.to_owned()]);
    let columns = vec![column("url", "late.bmp"), column("cap_seg", "{'global_caption': 'A cat.'}")];
    let mut frame = DataFrame::new_infer_height(columns).expect("a table");
    ParquetWriter::new(fs::File::create(&sa1b).expect("file")).finish(&mut frame).expect("Parquet");
    let beside = Arc::new(ImageFolder::open(None, None).expect("no folder"));
    let listings = || {
        [(Source::Coco, &coco), (Source::Sa1b, &sa1b)].map(|(source, path)| {
            InputSet::open(&InputConfig::new(source, path), &beside, 0, None).expect("a sound file").files[0]
                .records
                .images()
        })
    };
    let before = listings();
    fs::write(root.path().join("unused.bmp"), bmp(1)).expect("an image that no record names");
    assert_eq!(listings(), before);
    fs::write(root.path().join("late.bmp"), bmp(1)).expect("the missing image");
    let after = listings();
    assert!(after[0] != before[0] && after[1] != before[1]);
}

#[test]
fn an_image_replaced_by_one_of_the_same_size_is_another_build_with_another_fingerprint() {
    let demo = Demo::new(2);
    let data = demo.data.llava.with_file_name("grey.jsonl");
    fs::write(&data, line("a", json!("images/grey.bmp"), "<image>\nWhat?", "A shape.")).expect("lines");
    let path = demo.data.llava.with_file_name("images").join("grey.bmp");
    for images in [None, Some(demo.data.llava.parent().expect("folder").to_owned())] {
        let name = format!("grey-{}", images.is_some());
        let input = InputConfig { images, ..InputConfig::new(Source::Llava, &data) };
        fs::write(&path, bmp(10)).expect("an image");
        let first = build(&demo.config(vec![input.clone()], &name));
        fs::write(&path, bmp(200)).expect("another image");
        let found = try_build(&demo.config(vec![input.clone()], &name));
        assert!(matches!(found, Err(PrepareError::OutputInUse { .. })), "{found:?}");
        let second = build(&demo.config(vec![input.clone()], &format!("{name}-2")));
        assert_ne!(first.fingerprint, second.fingerprint, "other pixels, other fingerprint");
        fs::write(&path, bmp(10)).expect("the first image");
        let third = build(&demo.config(vec![input], &format!("{name}-3")));
        assert_eq!(first.fingerprint, third.fingerprint, "times are no part of the fingerprint");
    }
}

#[test]
fn a_damaged_lengths_index_and_a_lost_reject_list_are_made_again() {
    let demo = Demo::new(40);
    fs::remove_file(demo.data.sa1b_images.join("sa_000013.jpg")).expect("removed");
    let config = BuildConfig { shard_size_bytes: 10 * (3 * 32 * 32 + 4096), ..demo.config(vec![demo.zh()], "repair") };
    assert_eq!(build(&config).rejected, counts(&[("missing_image", 1)]));
    let before = contents(&config.output);
    let place = |name: &str| Path::new(&config.output).join(name);
    for name in ["lengths.bin", "lengths.sums"] {
        let mut content = before[name].clone();
        content[40] ^= 1;
        fs::write(place(name), content).expect("flip");
        assert_eq!(build(&config).kept_shards, 4, "{name}: lengths are read from the shards");
        assert_eq!(contents(&config.output), before);
    }
    fs::remove_file(place("lengths.bin")).expect("removed");
    fs::remove_file(place("lengths.sums")).expect("removed");
    fs::remove_file(place("rejects.jsonl")).expect("removed");
    assert_eq!(build(&config).kept_shards, 4, "good shards stay, those with rejects too");
    assert_eq!(contents(&config.output), before);
    fs::write(place("rejects.jsonl"), &before["rejects.jsonl"][..30]).expect("cut");
    fs::remove_file(place("shard-00002.parquet")).expect("removed");
    assert_eq!(build(&config).kept_shards, 3);
    assert_eq!(contents(&config.output), before);
}

#[test]
fn image_names_that_leave_the_image_folder_are_rejected() {
    let demo = Demo::new(2);
    let images = demo.data.llava.with_file_name("images");
    let outside = demo.path("outside.png");
    fs::copy(images.join("en_000000.png"), &outside).expect("an image elsewhere");
    let inside = images.join("en_000001.png");
    let names = ["../../outside.png", outside.to_str().expect("text"), "en_000000.png", inside.to_str().expect("text")];
    let lines = names.iter().map(|name| line(name, json!(name), "<image>\nWhat?", "A shape."));
    let data = demo.data.llava.with_file_name("escape.jsonl");
    fs::write(&data, lines.collect::<Vec<_>>().join("\n")).expect("lines");
    let input = InputConfig { images: Some(images), ..InputConfig::new(Source::Llava, &data) };
    let report = build(&demo.config(vec![input], "escape"));
    assert_eq!((report.samples, &report.rejected), (2, &counts(&[("outside_images", 2)])));
    assert!(rejects(&report.output).iter().all(|reject| reject.detail.contains("--images")));
}

#[test]
fn a_stopped_build_continues_and_nothing_left_is_an_error() {
    let demo = Demo::new(30);
    let config = BuildConfig { shard_size_bytes: 10 * (3 * 32 * 32 + 4096), ..demo.config(vec![demo.en()], "stopped") };
    let stop = Shutdown::new();
    stop.request();
    let fault = build_shards(&config, &Progress::hidden(), &stop).expect_err("stopped at once");
    assert!(matches!(fault, PrepareError::Interrupted { done: 0, total: 3, .. }), "{fault}");
    assert_eq!(build(&config).samples, 30);
    let path = demo.data.llava.with_file_name("bad.jsonl");
    fs::write(&path, "{\"conversations\":[]}\n".repeat(2)).expect("lines");
    let fault = try_build(&demo.config(vec![InputConfig::new(Source::Llava, path)], "none")).expect_err("no sample");
    assert!(matches!(fault, PrepareError::NothingLeft { records: 2, .. }), "{fault}");
}

#[test]
fn a_commit_leaves_the_files_that_other_tasks_are_writing_and_the_last_task_removes_litter() {
    let demo = Demo::new(4);
    let config = demo.config(vec![demo.en()], "tasks");
    let litter = Path::new(&config.output).join("shard-00000.parquet.0123456789abcdef.partial");
    let open = || BuildWorker::open(&config).expect("planned");
    let (worker, late) = (open(), open());
    let task = worker.tasks().remove(0);
    let made = worker.build_shard(&task, &Progress::hidden(), &Shutdown::new()).expect("made");
    fs::write(&litter, "half").expect("written");
    worker.commit().expect("committed");
    assert_eq!(late.build_shard(&task, &Progress::hidden(), &Shutdown::new()).expect("its row"), made);
    assert!(litter.exists(), "the other task may be writing it");
    drop(worker);
    late.commit().expect("committed");
    assert!(!litter.exists());
}

#[test]
fn a_strangers_unfinished_file_is_neither_taken_nor_removed() {
    let demo = Demo::new(2);
    let config = demo.config(vec![demo.en()], "strange");
    let film = Path::new(&config.output).join("film.mkv.partial");
    fs::create_dir_all(&config.output).expect("folder");
    fs::write(&film, "half a film").expect("file");
    let fault = try_build(&config).expect_err("a stranger's file").to_string();
    assert!(fault.contains("film.mkv.partial"), "{fault}");
    fs::remove_file(&film).expect("there");
    build(&config);
    fs::write(&film, "half a film").expect("file");
    assert_eq!(build(&config).kept_shards, 1);
    assert_eq!(fs::read(&film).expect("there"), b"half a film");
}

#[test]
fn a_template_and_a_system_turn_of_the_command_line_are_those_of_the_records() {
    let demo = Demo::new(2);
    let text = |config: &BuildConfig| {
        build(config);
        let processor = Processor::load(&Path::new(&config.output).join("processor"), &ProcessorOptions::default());
        let processor = processor.expect("the copy has what the flags said");
        processor.decode(&records(&config.output)[0].input_ids, false).expect("decoded")
    };
    let plain = demo.config(vec![demo.en()], "plain");
    let system = BuildConfig { system: Some("red circle".to_owned()), ..demo.config(vec![demo.en()], "system") };
    let (plain_text, system_text) = (text(&plain), text(&system));
    assert!(!plain_text.contains("red circle") && system_text.contains("red circle"), "{system_text}");
    let again = BuildConfig { output: plain.output.clone(), ..system };
    assert!(matches!(try_build(&again), Err(PrepareError::OutputInUse { .. })), "another plan");
}

#[test]
fn turns_beyond_the_length_limit_are_dropped_whole_and_counted() {
    let demo = Demo::new(40);
    let long = build(&demo.config(vec![demo.zh()], "long"));
    let config = BuildConfig { max_length: 60, ..demo.config(vec![demo.zh()], "short") };
    let short = build(&config);
    assert_eq!(long.dropped_turns, 0);
    assert_eq!(short.samples + short.rejected.values().sum::<u64>(), 40);
    assert!(short.dropped_turns > 0 && records(&config.output).iter().all(|record| record.input_ids.len() <= 60));
}

#[test]
fn chinese_held_out_questions_are_among_those_trained() {
    let demo = Demo::new(150);
    let config = demo.config(vec![demo.zh()], "rules");
    build(&config);
    let processor = Processor::load(&demo.data.processor, &ProcessorOptions::default()).expect("processor");
    let trained: String = records(&config.output)
        .iter()
        .map(|record| processor.decode(&record.input_ids, true).expect("decodes"))
        .collect();
    let heldout = fs::read_to_string(demo.data.heldout.join("zh.jsonl")).expect("held-out questions");
    let questions: Vec<Value> = heldout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(questions.len(), 10);
    for question in questions {
        let text = question["question"].as_str().expect("text");
        assert!(trained.contains(text), "`{text}` was never asked in training");
        let image = demo.data.heldout.join(question["image"].as_str().expect("name"));
        assert!(image.is_file());
    }
}

#[test]
fn a_build_into_a_folder_of_its_inputs_continues() {
    let demo = Demo::new(12);
    let folder = demo.data.llava.parent().expect("folder").to_owned();
    let inputs = vec![InputConfig { images: Some(folder.clone()), ..InputConfig::new(Source::Llava, &folder) }];
    let config = BuildConfig { output: folder.join("shards").display().to_string(), ..demo.config(inputs, "unused") };
    let first = build(&config);
    assert_eq!(build(&config).kept_shards, first.shards);
}
