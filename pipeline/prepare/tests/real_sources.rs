//! Published files of each format, where they are at hand: every record becomes what the file's own text says.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vela_prepare::{AnswerForm, Entry, ImageFolder, InputConfig, InputSet, RawContent, Source, SourceOptions};
use vela_tests::sample_file;
use vela_types::{IMAGE_MARK, Role, Sample};

fn read(config: &InputConfig) -> Vec<Entry> {
    let images = Arc::new(ImageFolder::open(config.images.as_deref(), None).expect("images"));
    let set = InputSet::open(config, &images, 0, None).expect("opens");
    let mut entries = Vec::new();
    for file in &set.files {
        let mut emit = |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        };
        file.records.read(0..file.records.num_records(), &mut emit).expect("reads");
    }
    assert_eq!(entries.len() as u64, set.num_records());
    entries
}

fn causes(entries: &[Entry]) -> BTreeMap<&'static str, usize> {
    let mut causes = BTreeMap::new();
    entries
        .iter()
        .filter_map(|entry| entry.content.as_ref().err())
        .for_each(|fault| *causes.entry(fault.cause).or_default() += 1);
    causes
}

fn samples(entries: &[Entry]) -> Vec<&Sample> {
    let sample = |entry: &'_ Entry| match &entry.content {
        Ok(RawContent::Dialogue(sample)) => Some(sample.clone()),
        _ => None,
    };
    // Leaked: a test lives no longer than its process.
    entries.iter().filter_map(sample).map(|sample| &*Box::leak(Box::new(sample))).collect()
}

fn num_images(samples: &[&Sample]) -> usize {
    samples.iter().map(|sample| sample.images.len()).sum()
}

#[test]
fn llama_factory_demo_by_its_registry() {
    let Some(folder) = sample_file("llama_factory", "llama_factory_demo_by_its_registry") else { return };
    let with = |dataset: &str| InputConfig {
        options: SourceOptions { dataset: Some(dataset.to_owned()), ..SourceOptions::default() },
        ..InputConfig::new(Source::Sharegpt, &folder)
    };
    let entries = read(&with("mllm_demo"));
    assert_eq!(causes(&entries), BTreeMap::new());
    let samples = samples(&entries);
    assert_eq!(samples.len(), 6);
    assert_eq!(samples[0].images.len(), 2, "one image twice");
    assert_eq!(samples[0].turns[2].text, "What are they doing?<image>");
    let images = Arc::new(ImageFolder::open(None, None).expect("no folder"));
    for (dataset, word) in [("mllm_dmo", "mllm_demo"), ("llava_1k_en", "hub"), ("identity", "alpaca")] {
        let fault = InputSet::open(&with(dataset), &images, 0, None).err().expect(dataset);
        assert!(fault.is_usage() && fault.to_string().contains(word), "{fault}");
    }
}

#[test]
fn xtuner_messages_with_parts() {
    let Some(folder) = sample_file("xtuner/resource", "xtuner_messages_with_parts") else { return };
    let cases = [
        ("mllm_sft_multi_image_example_data", 11, 22),
        ("mllm_sft_multi_image_example_data2", 10, 18),
        ("mllm_sft_single_image_example_data", 22, 22),
        ("mllm_sft_single_image_example_data_new", 22, 22),
        ("openai_sft", 128, 0),
    ];
    for (name, records, images) in cases {
        let entries = read(&InputConfig::new(Source::Openai, folder.join(format!("{name}.jsonl"))));
        assert_eq!(causes(&entries), BTreeMap::new(), "{name}");
        let samples = samples(&entries);
        assert_eq!((samples.len(), num_images(&samples)), (records, images), "{name}");
    }
    let entries = read(&InputConfig::new(Source::Openai, folder.join("mllm_pretrain_image_example_data.jsonl")));
    assert_eq!(causes(&entries), [("unknown_role", 12)].into(), "text without a dialogue is named, not guessed at");
}

#[test]
fn lmms_finetune_files_with_lists_of_images_and_no_ids() {
    let Some(folder) = sample_file("lmms_finetune", "lmms_finetune_files_with_lists_of_images_and_no_ids") else {
        return;
    };
    let read = |name: &str| read(&InputConfig::new(Source::Llava, folder.join(name)));
    let entries = read("celeba_image_train.json");
    assert_eq!((causes(&entries), num_images(&samples(&entries))), (BTreeMap::new(), 90));
    let entries = read("multi_images.json");
    let samples = samples(&entries);
    assert_eq!((samples.len(), samples[0].images.len(), samples[0].turns[0].role), (2, 2, Role::System));
}

#[test]
fn minimind_records_of_three_generations() {
    let Some(folder) = sample_file("minimind_v", "minimind_records_of_three_generations") else { return };
    let entries = read(&InputConfig::new(Source::Minimind, folder.join("readme_records.jsonl")));
    let samples = samples(&entries);
    // The readme's two-image record shows one mark for two images, so it is named.
    assert_eq!(samples.len() + causes(&entries).values().sum::<usize>(), 10);
    for sample in samples {
        let marks: usize = sample.turns.iter().map(|turn| turn.text.matches(IMAGE_MARK).count()).sum();
        assert_eq!(marks, sample.images.len(), "{}", sample.id);
    }
}

#[test]
fn coco_instances_are_the_boxes_that_llava_was_shown() {
    let Some(folder) = sample_file("coco_mini", "coco_instances_are_the_boxes_that_llava_was_shown") else { return };
    for (split, images, boxes) in [("train2017", 80, 739 - 8), ("val2017", 79, 624 - 5)] {
        let input = folder.join(format!("annotations/instances_{split}.json"));
        let config = InputConfig { images: Some(folder.join(split)), ..InputConfig::new(Source::Coco, &input) };
        let entries = read(&config);
        assert_eq!((entries.len(), causes(&entries)), (images, BTreeMap::new()));
        let samples = samples(&entries);
        let lines: usize = samples.iter().map(|sample| sample.turns[1].text.lines().count()).sum();
        assert_eq!(lines, boxes);
        let file: serde_json::Value = serde_json::from_slice(&fs::read(&input).expect("there")).expect("JSON");
        let annotation = &file["annotations"][0];
        let of_image = |list: &str, key: &str, id: &serde_json::Value| {
            let items = file[list].as_array().expect("a list");
            items.iter().find(|item| item[key] == *id).expect("there").clone()
        };
        let image = of_image("images", "id", &annotation["image_id"]);
        let category =
            of_image("categories", "id", &annotation["category_id"])["name"].as_str().expect("a name").to_owned();
        let side = |at: usize| annotation["bbox"][at].as_f64().expect("a number");
        let (width, height) = (image["width"].as_f64().expect("a number"), image["height"].as_f64().expect("a number"));
        let expected = format!(
            "{category}: [{:.3}, {:.3}, {:.3}, {:.3}]",
            side(0) / width,
            side(1) / height,
            (side(0) + side(2)) / width,
            (side(1) + side(3)) / height
        );
        let id = format!("coco/instances_{split}/{}/boxes", annotation["image_id"]);
        let sample = samples.iter().find(|sample| sample.id == id).expect("a sample");
        assert!(sample.turns[1].text.lines().any(|line| line == expected), "{expected}\n{}", sample.turns[1].text);
    }
}

/// The documentation's own labels, in the layout of the published folders.
#[test]
fn cogvlm_labels_of_its_documentation_in_the_published_folders() {
    let test = "cogvlm_labels_of_its_documentation_in_the_published_folders";
    let Some(docs) = sample_file("cogvlm_sft_311k", test) else { return };
    let root = tempfile::tempdir().expect("temp folder");
    let labels = [
        ("captions_zh", "llava_details-minigpt4_3500_formate/labels_zh/00000001"),
        ("captions_en", "llava_details-minigpt4_3500_formate/labels_en/00000001"),
        ("conversations_en", "llava_instruction_multi_conversations_formate/labels_en/000070820"),
        ("conversations_zh", "llava_instruction_single_conversation_formate/labels/000070820"),
        ("conversations_zh", "llava_instruction_single_conversation_formate/labels/000070821"),
    ];
    for (document, name) in labels {
        let label = root.path().join(format!("{name}.json"));
        fs::create_dir_all(label.parent().expect("a folder")).expect("folder");
        fs::copy(docs.join(format!("doc_example_{document}.json")), &label).expect("a label");
        let image = label
            .parent()
            .expect("a folder")
            .with_file_name("images")
            .join(label.with_extension("jpg").file_name().expect("a name"));
        fs::create_dir_all(image.parent().expect("a folder")).expect("folder");
        if !name.ends_with('1') || name.contains("details") {
            fs::write(image, "x").expect("an image");
        }
    }
    let entries = read(&InputConfig::new(Source::Cogvlm, root.path()));
    assert_eq!((entries.len(), causes(&entries)), (5, [("missing_image", 1)].into()));
    let Ok(RawContent::Caption(caption)) = &entries[1].content else { panic!("{entries:?}") };
    assert!(caption.global.starts_with("这张照片展示了一男一女"), "{}", caption.global);
    assert_eq!(caption.id, "cogvlm/llava_details-minigpt4_3500_formate/labels_zh/00000001");
    let samples = samples(&entries);
    assert_eq!(samples.iter().map(|sample| sample.language.as_str()).collect::<Vec<_>>(), ["en", "zh"]);
    assert!(samples.iter().all(|sample| sample.turns[0].text.starts_with("<image>\n") && sample.images.len() == 1));
}

/// FNV-1a of 64 bits, the hash of the golden file.
fn short_hash(text: &str) -> String {
    let hash = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    format!("{:016x}", text.trim().bytes().fold(0xCBF2_9CE4_8422_2325, hash))
}

#[test]
fn scienceqa_texts_are_those_of_llavas_script() {
    let Some(folder) = sample_file("scienceqa", "scienceqa_texts_are_those_of_llavas_script") else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/scienceqa/texts.jsonl");
    let golden: Vec<serde_json::Value> = fs::read_to_string(golden)
        .expect("the golden file")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for (form, name) in [(AnswerForm::Lea, "lea"), (AnswerForm::Lepa, "lepa"), (AnswerForm::A, "a")] {
        let options = SourceOptions { answer: Some(form), ..SourceOptions::default() };
        let entries = read(&InputConfig { options, ..InputConfig::new(Source::Scienceqa, &folder) });
        assert_eq!((entries.len(), causes(&entries)), (246, BTreeMap::new()));
        let samples = samples(&entries);
        assert_eq!(num_images(&samples), 96);
        let expected: Vec<&serde_json::Value> = golden.iter().filter(|line| line["form"] == name).collect();
        assert_eq!(expected.len(), samples.len());
        for (sample, expected) in samples.iter().zip(expected) {
            assert_eq!(
                Some(sample.id.as_str()),
                expected["pid"].as_str().map(|pid| format!("scienceqa/problems/{pid}")).as_deref()
            );
            for (turn, field) in sample.turns.iter().zip(["question", "answer"]) {
                assert_eq!(expected[field], short_hash(&turn.text), "{name} {}: {}", sample.id, turn.text);
            }
        }
    }
}

#[test]
fn scienceqa_splits_and_broken_files() {
    let Some(folder) = sample_file("scienceqa", "scienceqa_splits_and_broken_files") else { return };
    let with = |split: &str, input: PathBuf| {
        let options = SourceOptions { split: Some(split.to_owned()), ..SourceOptions::default() };
        InputConfig { options, ..InputConfig::new(Source::Scienceqa, input) }
    };
    let entries = read(&with("test", folder.join("problems.json")));
    assert_eq!((entries.len(), causes(&entries)), (4241, [("unknown_problem", 4241 - 123)].into()));
    let there = |sample: &&&Sample| sample.images.iter().all(|image| Path::new(image.name()).is_file());
    let samples = samples(&entries);
    let with_image: Vec<&&Sample> = samples.iter().filter(|sample| !sample.images.is_empty()).collect();
    let num_there = with_image.iter().copied().filter(there).count();
    // Only the images of even ids are among the sample data.
    let is_even = |sample: &&&&Sample| sample.id.ends_with(['0', '2', '4', '6', '8']);
    assert_eq!(num_there, with_image.iter().filter(is_even).count());
    assert!(num_there > 0 && num_there < with_image.len());

    let images = Arc::new(ImageFolder::open(None, None).expect("no folder"));
    let open = |config: &InputConfig| InputSet::open(config, &images, 0, None).err().expect("refused");
    let fault = open(&with("dev", folder.clone()));
    assert!(fault.is_usage() && fault.to_string().contains("`minival`"), "{fault}");
    let fault = open(&InputConfig::new(Source::Scienceqa, folder.join("problems_truncated_head.json")));
    assert!(fault.is_usage() && fault.to_string().contains("problems_truncated_head.json`: byte "), "{fault}");
}

#[test]
fn webdataset_shards_without_pairs_lose_no_key_in_silence() {
    let Some(folder) = sample_file("webdataset", "webdataset_shards_without_pairs_lose_no_key_in_silence") else {
        return;
    };
    let entries = read(&InputConfig::new(Source::Webdataset, &folder));
    assert_eq!((entries.len(), causes(&entries)), (103, [("compressed_member", 3), ("unknown_member", 100)].into()));
    let fault = entries[0].content.as_ref().expect_err("compressed");
    assert_eq!(fault.id.as_deref(), Some("webdataset/compressed/compressed%2F0001"));
    assert!(fault.detail.contains("0001.txt.gz"), "{}", fault.detail);
    let images = Arc::new(ImageFolder::open(None, None).expect("no folder"));
    let config = InputConfig::new(Source::Webdataset, folder.join("mpdata.tar"));
    let fault = InputSet::open(&config, &images, 0, None).err().expect("no pair at all");
    assert!(fault.is_usage() && fault.to_string().contains("without a single record"), "{fault}");
}

#[test]
fn evalscope_tables_with_bare_quotes_and_short_rows() {
    let test = "evalscope_tables_with_bare_quotes_and_short_rows";
    let Some(folder) = sample_file("evalscope/custom_eval/multimodal", test) else { return };
    let entries = read(&InputConfig::new(Source::VlmevalTsv, folder.join("mcq/example.tsv")));
    assert_eq!(causes(&entries), BTreeMap::new());
    let samples = samples(&entries);
    assert_eq!(samples.iter().map(|sample| sample.images.len()).collect::<Vec<_>>(), [4, 1, 1]);
    let select = "Please select the correct answer from the options above. \n";
    let expected = [
        format!(
            "Question: Which image shows a dog?\nOptions:\nA. <image>\nB. <image>\nC. <image>\nD. <image>\n{select}"
        ),
        format!(
            "Question: <image> What building is this?\nOptions:\nA. School\nB. Hospital\nC. Park\nD. Museum\n{select}"
        ),
    ];
    assert_eq!(samples[..2].iter().map(|sample| sample.turns[0].text.as_str()).collect::<Vec<_>>(), expected);
    assert_eq!(samples.iter().map(|sample| sample.turns[1].text.as_str()).collect::<Vec<_>>(), ["A", "D", "B"]);
    let images = Arc::new(ImageFolder::open(None, None).expect("no folder"));
    let config = InputConfig::new(Source::VlmevalTsv, folder.join("vqa/example_openai.tsv"));
    let fault = InputSet::open(&config, &images, 0, None).err().expect("another table");
    assert!(fault.is_usage() && fault.to_string().contains("`question`"), "{fault}");
}
