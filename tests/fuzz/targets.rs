//! What is fuzzed: each target takes any bytes, and must neither panic nor break the rule that it asserts.

use std::cell::OnceCell;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use vela_prepare::{DemoDataConfig, ImageFolder, InputConfig, InputSet, Source, python_literal, write_demo_data};
use vela_processor::codec::{MAX_PIXELS, check_header, decode_rgb};
use vela_processor::{Processor, ProcessorOptions};
use vela_types::{IGNORE_LABEL, Language, Sample, Turn};

/// A target by its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All targets.
pub(crate) const TARGETS: [Target; 4] =
    [("cap_seg", cap_seg), ("records", records), ("image", image), ("template", template)];

/// Sources with the ending of the file that the bytes become.
pub(crate) const FORMATS: [(Source, &str); 15] = [
    (Source::Sa1b, "parquet"),
    (Source::Sa1bPaired, "parquet"),
    (Source::Llava, "json"),
    (Source::Llava, "jsonl"),
    (Source::AiChallenger, "json"),
    (Source::Coco, "json"),
    (Source::Minimind, "jsonl"),
    (Source::Minimind, "parquet"),
    (Source::Sharegpt, "json"),
    (Source::Sharegpt, "parquet"),
    (Source::Openai, "jsonl"),
    (Source::Finevision, "parquet"),
    (Source::Scienceqa, "json"),
    (Source::Webdataset, "tar"),
    (Source::VlmevalTsv, "tsv"),
];

/// The literal parser of `cap_seg` cells.
pub(crate) fn cap_seg(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        _ = python_literal::parse(text);
    }
}

/// The record parser of the source that the first byte chooses: a file is refused, or each of its records is an entry.
pub(crate) fn records(data: &[u8]) {
    let Some((&choice, content)) = data.split_first() else { return };
    let (source, ending) = FORMATS[usize::from(choice) % FORMATS.len()];
    let folder = scratch();
    let path = folder.join(format!("data.{ending}"));
    fs::write(&path, content).expect("a file in the temp folder");
    let images = Arc::new(ImageFolder::open(None, None).expect("no folder is listed"));
    let Ok(set) = InputSet::open(&InputConfig::new(source, &path), &images, 0, None) else { return };
    for file in &set.files {
        let (mut next, num) = (0, file.records.num_records());
        let read = file.records.read(0..num, &mut |entry| {
            assert_eq!(entry.record, next, "entries come in order");
            next += 1;
            ControlFlow::Continue(())
        });
        assert!(read.is_err() || next == num, "{next} entries of {num} records");
    }
}

/// The image decoder: refused, or as many pixels as the header says.
pub(crate) fn image(data: &[u8]) {
    if let Ok(pixels) = decode_rgb(data, "fuzz") {
        assert_eq!(pixels.data.len() as u64, u64::from(pixels.width) * u64::from(pixels.height) * 3);
        assert!(pixels.data.len() as u64 <= MAX_PIXELS * 3);
        assert!(check_header(data, "fuzz").is_ok(), "what decodes passes the header check");
    }
}

/// A dialogue of any text through a chat template that is any text, or through a sound one: refused, or labels under every
/// assistant turn.
pub(crate) fn template(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (own, dialogue) = text.split_once('\0').unwrap_or(("", &text));
    let folder = processor_folder();
    let processor = match own {
        "" => Processor::load(&folder, &ProcessorOptions::default()).expect("the demo's processor"),
        own => {
            let config = folder.join("tokenizer_config.json");
            let sound = fs::read_to_string(&config).expect("there");
            let mut fields: serde_json::Value = serde_json::from_str(&sound).expect("JSON");
            fields["chat_template"] = own.into();
            fs::write(&config, fields.to_string()).expect("written");
            let loaded = Processor::load(&folder, &ProcessorOptions::default());
            fs::write(&config, sound).expect("written");
            let Ok(processor) = loaded else { return };
            processor
        }
    };
    let mut turns: Vec<Turn> = Vec::new();
    for (index, text) in dialogue.split('\n').enumerate() {
        turns.push(if index % 2 == 0 { Turn::user(text) } else { Turn::assistant(text) });
    }
    let sample =
        Sample { id: "fuzz/0".into(), source: "fuzz".into(), language: Language::Other, images: vec![], turns };
    if sample.check().is_ok()
        && let Ok(processed) = processor.process(&sample, 512)
    {
        let record = processed.record;
        assert_eq!(record.input_ids.len(), record.labels.len());
        assert!(record.input_ids.len() <= 512 && record.labels.iter().any(|&label| label != IGNORE_LABEL));
    }
}

thread_local! {
    static SCRATCH: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
    static PROCESSOR: OnceCell<PathBuf> = const { OnceCell::new() };
}

/// A folder of this thread.
fn scratch() -> PathBuf {
    SCRATCH.with(|cell| cell.get_or_init(|| tempfile::tempdir().expect("a temp folder")).path().to_owned())
}

fn processor_folder() -> PathBuf {
    PROCESSOR.with(|cell| {
        let make = || {
            let output = scratch().join("demo");
            let config = DemoDataConfig { num_train: 2, num_heldout: 1, ..DemoDataConfig::new(output) };
            write_demo_data(&config).expect("demo data").processor
        };
        cell.get_or_init(make).clone()
    })
}
