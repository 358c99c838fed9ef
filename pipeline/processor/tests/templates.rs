//! Equality of text, ids and labels with the rules of the named templates (`tests/golden/templates` spells them out),
//! and what each of them promises for any dialogue.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;
use vela_processor::{Processor, ProcessorOptions, template_names};
use vela_types::{IGNORE_LABEL, IMAGE_MARK, Role, Turn};

const IMAGE_CONFIG: &str = r#"{"image_processor_type": "CLIPImageProcessor"}"#;
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "qwen.tiktoken",
    "tokenizer.model",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder with the tokenizer that a golden names, and no settings of its own.
#[expect(clippy::print_stderr, reason = "a test that skips says so")]
fn folder(tokenizer: &str) -> Option<TempDir> {
    let source = match tokenizer.strip_prefix("data/") {
        Some(published) => root().join("../shared/data").join(published),
        None => root().join("tests/golden").join(tokenizer),
    };
    if !source.is_dir() {
        eprintln!("skipped: {} is absent", source.display());
        return None;
    }
    let dir = TempDir::new().unwrap();
    for name in TOKENIZER_FILES.iter().filter(|name| source.join(name).is_file()) {
        fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("preprocessor_config.json"), IMAGE_CONFIG).unwrap();
    Some(dir)
}

fn load(tokenizer: &str, template: &str) -> Option<Processor> {
    let options = ProcessorOptions { template: Some(template.into()), ..ProcessorOptions::default() };
    let dir = folder(tokenizer)?;
    Some(Processor::load(dir.path(), &options).unwrap_or_else(|error| panic!("{template}, {tokenizer}: {error:?}")))
}

fn goldens() -> Value {
    serde_json::from_slice(&fs::read(root().join("tests/golden/templates/cases.json")).unwrap()).unwrap()
}

fn turns_of(dialogue: &Value) -> Vec<Turn> {
    let turn = |turn: &Value| {
        let text = turn[1].as_str().unwrap();
        match turn[0].as_str().unwrap() {
            "system" => Turn::system(text),
            "user" => Turn::user(text),
            _ => Turn::assistant(text),
        }
    };
    dialogue.as_array().unwrap().iter().map(turn).collect()
}

fn check(processor: &Processor, made: &Value, dialogues: &Value) {
    let place = format!("{} with {}", made["template"], made["tokenizer"]);
    for (name, turns) in dialogues.as_object().unwrap() {
        let turns = turns_of(turns);
        let Some(expected) = made["cases"].get(name) else {
            assert_eq!(processor.encode_dialogue(&turns).unwrap_err().cause(), "template", "{place}: {name}");
            continue;
        };
        assert_eq!(
            processor.render(&turns, false).unwrap().text,
            expected["text"].as_str().unwrap(),
            "{place}: {name}"
        );
        let tokens = processor.encode_dialogue(&turns).unwrap_or_else(|error| panic!("{place}: {name}: {error:?}"));
        assert_eq!(serde_json::json!(tokens.input_ids), expected["ids"], "{place}: {name}");
        let mask: String = tokens.labels.iter().map(|&label| if label == IGNORE_LABEL { '0' } else { '1' }).collect();
        assert_eq!(mask, expected["mask"].as_str().unwrap(), "{place}: {name}");
        let labelled = tokens.labels.iter().zip(&tokens.input_ids).filter(|(label, _)| **label != IGNORE_LABEL);
        labelled.for_each(|(&label, &id)| assert_eq!(label, id as i32));
    }
}

#[test]
fn text_ids_and_labels_of_named_templates_equal_the_published_rules() {
    let goldens = goldens();
    let mut seen = Vec::new();
    for made in goldens["made"].as_array().unwrap() {
        let (template, tokenizer) = (made["template"].as_str().unwrap(), made["tokenizer"].as_str().unwrap());
        let Some(processor) = load(tokenizer, template) else { continue };
        assert_eq!(processor.summary().template, template);
        check(&processor, made, &goldens["dialogues"]);
        seen.push(template);
    }
    assert!(template_names().all(|name| seen.contains(&name)), "{seen:?}");
}

#[test]
fn published_folders_render_the_same_by_their_own_templates() {
    let goldens = goldens();
    for made in goldens["made"].as_array().unwrap() {
        let (template, tokenizer) = (made["template"].as_str().unwrap(), made["tokenizer"].as_str().unwrap());
        if tokenizer.starts_with("data/") && ["qwen2.5", "minimind"].contains(&template) {
            let Some(dir) = folder(tokenizer) else { continue };
            let processor = Processor::load(dir.path(), &ProcessorOptions::default()).unwrap();
            assert_eq!(processor.summary().template, "folder");
            check(&processor, made, &goldens["dialogues"]);
        }
    }
}

/// A template, a small tokenizer for it and what closes its answers: the last, and those before.
const FAMILIES: [(&str, &str, [&str; 2]); 8] = [
    ("qwen-v1", "tokenizer/qwen", ["<|endoftext|>", "<|im_end|>"]),
    ("qwen2", "processor/qwen2", ["<|im_end|>"; 2]),
    ("qwen2.5", "processor/qwen2", ["<|im_end|>"; 2]),
    ("minimind", "processor/qwen2", ["<|im_end|>"; 2]),
    ("llama3.2", "tokenizer/llama3", ["<|eot_id|>"; 2]),
    ("llava-v1", "processor/llama3", ["<|eot_id|>"; 2]),
    ("llava-plain", "processor/llama3", ["\n"; 2]),
    ("llava-plain", "processor/qwen2", ["\n"; 2]),
];

/// Decoded text of each run of labels; answers of neighbouring turns never touch.
fn labelled_runs(processor: &Processor, turns: &[Turn]) -> Vec<String> {
    let tokens = processor.encode_dialogue(turns).unwrap();
    let runs = tokens.labels.split(|&label| label == IGNORE_LABEL).filter(|run| !run.is_empty());
    runs.map(|run| processor.decode(&run.iter().map(|&label| label as u32).collect::<Vec<_>>(), false).unwrap())
        .collect()
}

/// Text that no tokenizer here normalises or trims, with all that could upset a label.
fn utterance() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        4 => "[a-zA-Z0-9 ,.!?'-]{1,12}",
        2 => "[\u{4E00}-\u{9FA5}，。！？]{1,8}",
        1 => "[\u{1F300}-\u{1F64F}\u{200D}]{1,4}",
        1 => Just("\n\n".to_owned()),
        1 => Just("\u{10F000}\u{10F001}".to_owned()),
        1 => prop_oneof![
            Just("<|im_end|>"), Just("<|eot_id|>"), Just("<|endoftext|>"), Just("<|im_start|>assistant\n"), Just("<|begin_of_text|>"),
        ].prop_map(str::to_owned),
    ];
    proptest::collection::vec(pieces, 1..6).prop_map(|pieces| format!("a{}z", pieces.concat()))
}

fn dialogue() -> impl Strategy<Value = Vec<Turn>> {
    let pairs = proptest::collection::vec((utterance(), utterance()), 1..4);
    (proptest::option::of(utterance()), pairs).prop_map(|(system, pairs)| {
        let pairs = pairs
            .into_iter()
            .flat_map(|(question, answer)| [Turn::user(format!("{IMAGE_MARK}\n{question}")), Turn::assistant(answer)]);
        system.into_iter().map(Turn::system).chain(pairs).collect()
    })
}

/// What of a dialogue a template takes.
fn accepted(template: &str, turns: Vec<Turn>) -> Vec<Turn> {
    match template {
        "llava-plain" => turns.into_iter().filter(|turn| turn.role != Role::System).take(2).collect(),
        _ => turns,
    }
}

fn check_labels(processor: &Processor, template: &str, ends: [&str; 2], turns: &[Turn]) -> Result<(), TestCaseError> {
    let answers: Vec<&Turn> = turns.iter().filter(|turn| turn.role == Role::Assistant).collect();
    // The blank after `ASSISTANT:` is generated as well.
    let lead = if template == "llava-v1" { " " } else { "" };
    let end = |at: usize| ends[usize::from(at + 1 < answers.len())];
    let expected = answers.iter().enumerate().map(|(at, turn)| format!("{lead}{}{}", turn.text, end(at)));
    prop_assert_eq!(labelled_runs(processor, turns), expected.collect::<Vec<_>>(), "{}", template);
    let tokens = processor.encode_dialogue(turns).unwrap();
    let prompt = processor.encode_prompt(&turns[..turns.len() - 1]).unwrap();
    prop_assert_eq!(&tokens.input_ids[..prompt.len()], &prompt[..], "{}", template);
    let (before, after) = (tokens.labels[prompt.len() - 1], tokens.labels[prompt.len()]);
    prop_assert!(before == IGNORE_LABEL && after != IGNORE_LABEL, "{}: {} {}", template, before, after);
    Ok(())
}

thread_local! {
    static PROCESSORS: Vec<Processor> =
        FAMILIES.iter().map(|(template, tokenizer, _)| load(tokenizer, template).unwrap()).collect();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn labels_spell_each_answer_and_its_end_and_prompts_are_their_beginnings(turns in dialogue()) {
        PROCESSORS.with(|processors| {
            let mut families = processors.iter().zip(FAMILIES);
            families.try_for_each(|(processor, (template, _, ends))| {
                check_labels(processor, template, ends, &accepted(template, turns.clone()))
            })
        })?;
    }
}

#[test]
fn a_template_is_chosen_by_a_file_in_the_folder_and_by_the_caller_before_it() {
    let dir = folder("processor/qwen2").unwrap();
    let own = Processor::load(dir.path(), &ProcessorOptions::default()).unwrap();
    let settings = r#"{"template": "qwen2.5", "system": "Be brief."}"#;
    fs::write(dir.path().join("vela_processor.json"), settings).unwrap();
    let chosen = Processor::load(dir.path(), &ProcessorOptions::default()).unwrap();
    let options = ProcessorOptions { template: Some("minimind".into()), ..ProcessorOptions::default() };
    let asked = Processor::load(dir.path(), &options).unwrap();
    let names = [&own, &chosen, &asked].map(|processor| processor.summary().template.as_str());
    assert_eq!(names, ["folder", "qwen2.5", "minimind"]);
    let prints = [&own, &chosen, &asked].map(|processor| processor.summary().fingerprint);
    assert!(prints[0] != prints[1] && prints[1] != prints[2] && prints[0] != prints[2]);
    let turns = [Turn::user("x"), Turn::assistant("y")];
    let text =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny<|im_end|>\n";
    assert_eq!(chosen.render(&turns, false).unwrap().text, text);
    let with_system = [Turn::system("Own."), Turn::user("x"), Turn::assistant("y")];
    assert!(chosen.render(&with_system, false).unwrap().text.starts_with("<|im_start|>system\nOwn.<|im_end|>"));
}

#[test]
fn unknown_templates_and_settings_are_refused_with_what_is_known() {
    let dir = folder("tokenizer/qwen").unwrap();
    let message = |options: &ProcessorOptions| {
        let error = Processor::load(dir.path(), options).err().unwrap();
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    };
    let unnamed = message(&ProcessorOptions::default());
    assert!(template_names().all(|name| unnamed.contains(&format!("`{name}`"))), "{unnamed}");
    let unknown = message(&ProcessorOptions { template: Some("chatglm".into()), ..ProcessorOptions::default() });
    assert!(unknown.contains("`chatglm`") && unknown.contains("`llava-plain`"), "{unknown}");
    for (settings, expected) in [
        (r#"{"templat": "qwen2"}"#, "unknown field `templat`, expected one of `template`"),
        (r#"{"template": "qwen-v1", "template_date": "26 Jul 2024"}"#, "expected a day as YYYY-MM-DD"),
        (r#"{"template": "qwen-v3"}"#, "`qwen-v1`"),
    ] {
        fs::write(dir.path().join("vela_processor.json"), settings).unwrap();
        let found = message(&ProcessorOptions::default());
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn the_day_a_template_tells_is_a_setting_that_the_summary_and_a_copy_keep() {
    let dir = folder("tokenizer/llama3").unwrap();
    let options = ProcessorOptions {
        template: Some("llama3.2".into()),
        template_date: Some("2025-01-09".parse().unwrap()),
        ..ProcessorOptions::default()
    };
    let processor = Processor::load(dir.path(), &options).unwrap();
    let turns = [Turn::user("x"), Turn::assistant("y")];
    let told = "Cutting Knowledge Date: December 2023\nToday Date: 09 Jan 2025\n\n";
    assert!(processor.render(&turns, false).unwrap().text.contains(told));
    assert_eq!(processor.summary().template_date, "2025-01-09");
    let copy = TempDir::new().unwrap();
    processor.save(copy.path()).unwrap();
    let loaded = Processor::load(copy.path(), &ProcessorOptions::default()).unwrap();
    assert_eq!(loaded.summary(), processor.summary());
    assert_eq!(loaded.encode_dialogue(&turns).unwrap(), processor.encode_dialogue(&turns).unwrap());
    let by_default = load("tokenizer/llama3", "llama3.2").unwrap();
    assert_eq!(by_default.summary().template_date, "2024-07-26");
    assert_ne!(by_default.summary().fingerprint, processor.summary().fingerprint);
}

#[test]
fn a_folder_template_that_starts_twice_is_refused() {
    let dir = folder("processor/llama3").unwrap();
    let source = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}";
    fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    let message = Processor::load(dir.path(), &ProcessorOptions::default()).err().unwrap().to_string();
    assert!(message.contains("expected one start token"), "{message}");
}
