//! Published files, where they are at hand; and values that Python printed.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use vela_prepare::python_literal::{Literal, parse};
use vela_prepare::{BuildConfig, ImageFolder, InputConfig, InputSet, RawContent, Reject, Source, build_shards};
use vela_runtime::{Progress, Shutdown};
use vela_tests::sample_file;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The value that JSON made of a Python one: tuples are lists.
fn literal(value: &Value) -> Literal {
    match value {
        Value::Null => Literal::None,
        Value::Bool(value) => Literal::Bool(*value),
        Value::Number(value) => {
            value.as_i64().map_or_else(|| Literal::Float(value.as_f64().expect("a float")), Literal::Int)
        }
        Value::String(text) => Literal::Text(text.clone()),
        Value::Array(items) => Literal::List(items.iter().map(literal).collect()),
        Value::Object(items) => {
            Literal::Dict(items.iter().map(|(key, value)| (Literal::Text(key.clone()), literal(value))).collect())
        }
    }
}

#[test]
fn what_python_printed_is_read_as_python_reads_it() {
    let cases = fs::read_to_string(workspace().join("tests/golden/python_literal/cases.jsonl")).expect("golden file");
    let mut num_cases = 0;
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).expect("JSON");
        let printed = case["repr"].as_str().expect("text");
        assert_eq!(parse(printed), Ok(literal(&case["json"])), "{printed}");
        num_cases += 1;
    }
    assert!(num_cases >= 300);
}

#[test]
fn published_llava_records_are_read_without_a_reject() {
    let Some(folder) = sample_file("llava_records", "published_llava_records_are_read_without_a_reject") else {
        return;
    };
    let images = Arc::new(ImageFolder::open(None, None).expect("no folder"));
    let set = InputSet::open(&InputConfig::new(Source::Llava, &folder), &images, 0, None).expect("files");
    assert!(set.files.len() >= 5);
    let mut num_samples = 0;
    for file in &set.files {
        let text = fs::read_to_string(folder.join(&file.name)).expect("file");
        let expected: Vec<Value> = serde_json::from_str(&text).expect("a JSON list");
        assert_eq!(file.records.num_records(), expected.len() as u64, "{}", file.name);
        let mut read = |entry: vela_prepare::Entry| {
            let Ok(RawContent::Dialogue(sample)) = entry.content else { panic!("{}: {entry:?}", file.name) };
            let turns = expected[entry.record as usize]["conversations"].as_array().expect("turns");
            assert_eq!(sample.turns.len(), turns.len(), "{}", sample.id);
            assert_eq!(sample.images.len(), 1, "{}", sample.id);
            num_samples += 1;
            ControlFlow::Continue(())
        };
        file.records.read(0..file.records.num_records(), &mut read).expect("reads");
    }
    assert!(num_samples >= 6);
}

/// Qwen2.5's tokenizer with Chinese-CLIP's published image settings.
fn qwen_with_chinese_clip(tokenizer: &Path, folder: &Path) {
    fs::create_dir_all(folder).expect("folder");
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"] {
        fs::copy(tokenizer.join(name), folder.join(name)).expect(name);
    }
    let settings = serde_json::json!({
        "image_processor_type": "ChineseCLIPImageProcessor", "do_convert_rgb": true,
        "do_resize": true, "size": {"height": 224, "width": 224}, "resample": 3,
        "do_center_crop": false, "do_rescale": true, "rescale_factor": 0.00392156862745098,
        "do_normalize": true, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    });
    fs::write(folder.join("preprocessor_config.json"), settings.to_string()).expect("settings");
}

#[test]
fn coco_photos_become_shards_and_exactly_the_absent_ones_are_rejected_by_name() {
    let test = "coco_photos_become_shards_and_exactly_the_absent_ones_are_rejected_by_name";
    let Some(coco) = sample_file("coco_mini", test) else { return };
    let Some(tokenizer) = sample_file("tokenizers/qwen2.5-0.5b-instruct", test) else { return };
    let root = tempfile::tempdir().expect("temp folder");
    let (processor, output) = (root.path().join("processor"), root.path().join("shards"));
    qwen_with_chinese_clip(&tokenizer, &processor);
    let captions = coco.join("annotations/captions_train2017.json");
    let images = coco.join("train2017");
    let mut input = InputConfig::new(Source::Coco, &captions);
    input.images = Some(images.clone());
    let config = BuildConfig::new(vec![input], processor, output.to_string_lossy());
    let report = build_shards(&config, &Progress::hidden(), &Shutdown::new()).expect("builds");

    let listed: Value = serde_json::from_slice(&fs::read(&captions).expect("captions")).expect("JSON");
    let names = listed["images"].as_array().expect("images").iter();
    let name_of: std::collections::HashMap<u64, &str> =
        names.map(|image| (image["id"].as_u64().expect("id"), image["file_name"].as_str().expect("name"))).collect();
    let annotations = listed["annotations"].as_array().expect("annotations");
    let absent: Vec<(u64, &str)> = annotations
        .iter()
        .enumerate()
        .map(|(at, annotation)| (at as u64, name_of[&annotation["image_id"].as_u64().expect("id")]))
        .filter(|(_, name)| !images.join(name).exists())
        .collect();
    assert!(!absent.is_empty() && absent.len() < annotations.len());
    assert_eq!(report.records, annotations.len() as u64);
    assert_eq!(report.samples, (annotations.len() - absent.len()) as u64);
    let text = fs::read_to_string(output.join("rejects.jsonl")).expect("reject list");
    let rejects: Vec<Reject> = text.lines().map(|line| serde_json::from_str(line).expect("a reject")).collect();
    assert_eq!(rejects.len(), absent.len());
    for (reject, (record, name)) in rejects.iter().zip(absent) {
        assert_eq!((reject.record, reject.cause.as_str()), (record, "missing_image"));
        assert!(reject.detail.contains(name), "{reject:?} does not name {name}");
    }
}
