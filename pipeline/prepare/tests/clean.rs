//! Cleaning, parts and mixes through the library: what is left out is counted, and nothing else changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use vela_prepare::{
    BuildConfig, BuildReport, CleanConfig, DemoDataConfig, DemoDataReport, InputConfig, KeptLanguage, Likeness, Part,
    Source, build_shards, write_demo_data,
};
use vela_runtime::{Progress, Shutdown};
use vela_shard::{Manifest, ShardReader, open_store};

struct Place {
    folder: tempfile::TempDir,
    demo: DemoDataReport,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp folder");
        let demo = DemoDataConfig { num_train: 4, num_heldout: 1, ..DemoDataConfig::new(folder.path().join("demo")) };
        let demo = write_demo_data(&demo).expect("demo data");
        Self { folder, demo }
    }

    /// Text-only dialogues of these answers, ids `0`, `1`, ...
    fn lines(&self, name: &str, answers: &[String]) -> PathBuf {
        let line = |(id, answer): (usize, &String)| {
            let turns = json!([{"from": "human", "value": "Say it."}, {"from": "gpt", "value": answer}]);
            json!({"id": id, "conversations": turns}).to_string()
        };
        let path = self.folder.path().join(format!("{name}.jsonl"));
        let lines: Vec<String> = answers.iter().enumerate().map(line).collect();
        fs::write(&path, lines.join("\n")).expect("lines");
        path
    }

    fn build(&self, name: &str, inputs: Vec<InputConfig>, clean: CleanConfig) -> (BuildReport, Vec<String>) {
        let output = self.folder.path().join(name).to_string_lossy().into_owned();
        let config =
            BuildConfig { clean, workers: 2, ..BuildConfig::new(inputs, &self.demo.processor, output.clone()) };
        let report = build_shards(&config, &Progress::hidden(), &Shutdown::new()).expect("built");
        (report, ids(&output))
    }

    fn build_answers(&self, name: &str, answers: &[&str], clean: CleanConfig) -> (BuildReport, Vec<String>) {
        let answers: Vec<String> = answers.iter().map(|&answer| answer.to_owned()).collect();
        self.build(name, vec![InputConfig::new(Source::Llava, self.lines(name, &answers))], clean)
    }
}

/// The part of each sample's id after the file.
fn ids(output: &str) -> Vec<String> {
    let store = open_store(output).expect("store");
    let manifest = Manifest::load(store.as_ref()).expect("manifest");
    let readers = manifest.shards.iter().map(|entry| ShardReader::open(store.as_ref(), entry).expect("shard"));
    let records = readers.flat_map(|reader| (0..reader.rows()).map(move |row| reader.read(row).expect("row")));
    records.map(|record| record.id.rsplit('/').next().expect("a part").to_owned()).collect()
}

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect()
}

#[test]
fn filters_and_duplicates_are_listed_with_their_causes_and_are_no_faults() {
    let place = Place::new();
    let long =
        "A wooden table stands in front of a window, and on it lie two red apples, a knife and a folded newspaper.";
    let near = long.replace("folded", "folding");
    let same = long.to_uppercase().replace(", ", " ");
    let answers = [
        long,
        "Too short.",
        near.as_str(),
        same.as_str(),
        "一张桌子上放着两个红色的苹果和一把刀，旁边还有一份报纸。",
        "Something else stands here.",
    ];
    let clean = CleanConfig {
        languages: vec![KeptLanguage::En],
        min_chars: Some(11),
        dedupe: vec![Likeness::Text, Likeness::NearText],
        ..CleanConfig::default()
    };
    let (report, ids) = place.build_answers("filters", &answers, clean);
    assert_eq!(ids, ["0", "5"]);
    let expected = [("too_few_chars", 1), ("near_duplicate_text", 1), ("duplicate_text", 1), ("other_language", 1)];
    assert_eq!(report.rejected, counts(&expected));
    assert_eq!((report.records, report.samples, report.reject_rate()), (6, 2, 0.0));
    let list = fs::read_to_string(Path::new(&report.output).join("rejects.jsonl")).expect("a list");
    assert_eq!(list.lines().count(), 4, "{list}");
}

#[test]
fn images_are_compared_byte_for_byte() {
    let place = Place::new();
    let images = place.demo.llava.parent().expect("folder").join("images");
    fs::copy(images.join("en_000000.png"), images.join("copy.png")).expect("copied");
    let line = |id: &str, image: &str| {
        let turns =
            json!([{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": format!("It is {id}.")}]);
        json!({"id": id, "image": format!("images/{image}"), "conversations": turns}).to_string()
    };
    let path = place.demo.llava.with_file_name("images.jsonl");
    fs::write(&path, [line("a", "en_000000.png"), line("b", "en_000001.png"), line("c", "copy.png")].join("\n"))
        .expect("lines");
    let clean = CleanConfig { dedupe: vec![Likeness::Image], ..CleanConfig::default() };
    let (report, ids) = place.build("images", vec![InputConfig::new(Source::Llava, path)], clean);
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(report.rejected, counts(&[("duplicate_image", 1)]));
}

#[test]
fn a_record_without_its_image_does_not_stand_for_a_sound_one() {
    let place = Place::new();
    let line = |id: &str, image: &str| {
        let turns = json!([{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It is one."}]);
        json!({"id": id, "image": format!("images/{image}"), "conversations": turns}).to_string()
    };
    let images = place.demo.llava.parent().expect("folder").join("images");
    fs::write(images.join("broken.png"), "no image").expect("file");
    let lines =
        [line("a", "absent.png"), line("b", "broken.png"), line("c", "en_000000.png"), line("d", "en_000001.png")];
    let path = place.demo.llava.with_file_name("absent.jsonl");
    fs::write(&path, lines.join("\n")).expect("lines");
    let clean = CleanConfig { dedupe: vec![Likeness::Text], ..CleanConfig::default() };
    let (report, ids) = place.build("absent", vec![InputConfig::new(Source::Llava, path)], clean);
    assert_eq!(ids, ["c"]);
    let expected = [("missing_image", 1), ("unknown_image_format", 1), ("duplicate_text", 1)];
    assert_eq!(report.rejected, counts(&expected));
}

#[test]
fn the_parts_are_disjoint_whole_and_fixed_by_the_ids_alone() {
    let place = Place::new();
    let answers: Vec<String> = (0..400).map(|index| format!("Answer number {index}.")).collect();
    let path = place.lines("parts", &answers);
    let part = |name: &str, part: Part| {
        let clean = CleanConfig { validation: Some(0.1), part: Some(part), ..CleanConfig::default() };
        place.build(name, vec![InputConfig::new(Source::Llava, &path)], clean)
    };
    let ((train_report, train), (report, validation)) =
        (part("train", Part::Train), part("validation", Part::Validation));
    assert!((20..70).contains(&validation.len()), "{}", validation.len());
    assert_eq!(report.left_out, counts(&[("other_part", train.len() as u64)]));
    assert_eq!(train_report.left_out, counts(&[("other_part", validation.len() as u64)]));
    assert!(report.rejected.is_empty() && train_report.records == train.len() as u64);
    let all: BTreeSet<&String> = train.iter().chain(&validation).collect();
    assert_eq!((all.len(), train.len() + validation.len()), (400, 400));

    let fewer = place.lines("parts", &answers[..200]);
    let clean = CleanConfig { validation: Some(0.1), part: Some(Part::Validation), ..CleanConfig::default() };
    let (_, again) = place.build("fewer", vec![InputConfig::new(Source::Llava, fewer)], clean);
    let expected: Vec<&String> = validation.iter().filter(|id| id.parse::<usize>().expect("a number") < 200).collect();
    assert_eq!(again.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn weights_repeat_and_draw_records() {
    let place = Place::new();
    let answers: Vec<String> = (0..200).map(|index| format!("Answer number {index}.")).collect();
    let input =
        |weight: f64| InputConfig { weight, ..InputConfig::new(Source::Llava, place.lines("weights", &answers)) };
    let (report, ids) = place.build("half", vec![input(0.5)], CleanConfig::default());
    assert!((70..130).contains(&ids.len()), "{}", ids.len());
    assert_eq!(report.left_out, counts(&[("not_drawn", 200 - ids.len() as u64)]));
    let clean = CleanConfig { dedupe: vec![Likeness::Text], ..CleanConfig::default() };
    let (report, twice) = place.build("more", vec![input(1.5)], clean);
    assert!(report.rejected.is_empty(), "a copy is alike by intention: {:?}", report.rejected);
    let (first, second): (Vec<&String>, Vec<&String>) = twice.iter().partition(|id| !id.contains('@'));
    assert_eq!(first.len(), 200);
    assert_eq!(second, ids.iter().map(|id| format!("{id}@2")).collect::<Vec<_>>().iter().collect::<Vec<_>>());
}

#[test]
fn no_shard_is_smaller_for_what_is_left_out() {
    let place = Place::new();
    let answers: Vec<String> = (0..300).map(|index| format!("Answer number {index}.")).collect();
    let output = place.folder.path().join("even").to_string_lossy().into_owned();
    let clean = CleanConfig { validation: Some(0.2), part: Some(Part::Train), ..CleanConfig::default() };
    let inputs = vec![InputConfig::new(Source::Llava, place.lines("even", &answers))];
    let config =
        BuildConfig { clean, shard_size_bytes: 400 << 10, ..BuildConfig::new(inputs, &place.demo.processor, &output) };
    let report = build_shards(&config, &Progress::hidden(), &Shutdown::new()).expect("built");
    let manifest = Manifest::load(open_store(&output).expect("store").as_ref()).expect("manifest");
    let rows: Vec<u64> = manifest.shards.iter().map(|shard| shard.rows).collect();
    assert!(rows.len() > 2 && rows[..rows.len() - 1].iter().all(|&num| num == rows[0]), "{rows:?}");
    assert_eq!(rows.iter().sum::<u64>(), report.samples);
}

/// Published sets name their files alike, `train-00000-of-00001.parquet` say.
#[test]
fn inputs_whose_samples_would_share_ids_need_names() {
    let place = Place::new();
    let answers: Vec<String> = (0..3).map(|index| format!("Answer number {index}.")).collect();
    fs::create_dir(place.folder.path().join("other")).expect("folder");
    let paths = [place.lines("train", &answers), place.lines("other/train", &answers[..2])];
    let inputs = |name: Option<&str>| {
        let second = InputConfig { name: name.map(str::to_owned), ..InputConfig::new(Source::Llava, &paths[1]) };
        vec![InputConfig::new(Source::Llava, &paths[0]), second]
    };
    let output = place.folder.path().join("named").to_string_lossy().into_owned();
    let build = |inputs: Vec<InputConfig>| {
        let config = BuildConfig::new(inputs, &place.demo.processor, output.clone());
        build_shards(&config, &Progress::hidden(), &Shutdown::new())
    };
    let fault = build(inputs(None)).expect_err("refused");
    let text = fault.to_string();
    assert!(fault.is_usage() && paths.iter().all(|path| text.contains(&*path.to_string_lossy())), "{text}");
    assert!(build(inputs(Some("a/b"))).expect_err("no word").is_usage());
    let report = build(inputs(Some("other"))).expect("built");
    assert_eq!((report.samples, report.records), (5, 5));
    let store = open_store(&output).expect("store");
    let manifest = Manifest::load(store.as_ref()).expect("manifest");
    let reader = ShardReader::open(store.as_ref(), &manifest.shards[0]).expect("shard");
    let ids: Vec<String> = (0..reader.rows()).map(|row| reader.read(row).expect("row").id).collect();
    assert_eq!(ids, ["llava/train/0", "llava/train/1", "llava/train/2", "llava/other/train/0", "llava/other/train/1"]);
}
