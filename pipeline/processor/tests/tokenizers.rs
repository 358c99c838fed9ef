//! Equality of ids with tiktoken and `tokenizers`: `tests/golden/tokenizer` holds the texts, the ids and the script.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use vela_processor::{Processor, ProcessorOptions};

const IMAGE_CONFIG: &str = r#"{"image_processor_type": "CLIPImageProcessor"}"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&fs::read(root().join("tests/golden/tokenizer").join(name)).unwrap()).unwrap()
}

/// A folder with these files of `folder` and image settings, loaded with a template that the tokenizer can close.
fn load(folder: &Path, files: &[&str], template: &str) -> (TempDir, Processor) {
    let dir = TempDir::new().unwrap();
    for name in files {
        fs::copy(folder.join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("preprocessor_config.json"), IMAGE_CONFIG).unwrap();
    let options = ProcessorOptions { template: Some(template.into()), ..ProcessorOptions::default() };
    let processor = Processor::load(dir.path(), &options).unwrap_or_else(|error| panic!("{template}: {error:?}"));
    (dir, processor)
}

fn small_qwen() -> (TempDir, Processor) {
    load(&root().join("tests/golden/tokenizer/qwen"), &["qwen.tiktoken"], "qwen-v1")
}

fn small_llama3() -> (TempDir, Processor) {
    load(&root().join("tests/golden/tokenizer/llama3"), &["tokenizer.model"], "llama3.2")
}

/// A published tokenizer; none, by name, where its files are absent.
#[expect(clippy::print_stderr, reason = "a test that skips says so")]
fn published(folder: &str, files: &[&str], template: &str) -> Option<(TempDir, Processor)> {
    let dir = root().join("../shared/data/tokenizers").join(folder);
    if !dir.is_dir() {
        eprintln!("skipped: {} is absent", dir.display());
        return None;
    }
    Some(load(&dir, files, template))
}

fn published_qwen() -> Option<(TempDir, Processor)> {
    published("qwen_v1", &["qwen.tiktoken", "tokenizer_config.json"], "qwen-v1")
}

fn published_llama3() -> Option<(TempDir, Processor)> {
    published("llama3", &["tokenizer.model"], "llama3.2")
}

fn published_qwen2_5() -> Option<(TempDir, Processor)> {
    let files = ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"];
    published("qwen2.5-0.5b-instruct", &files, "qwen2.5")
}

fn check_strings(processor: &Processor, name: &str) {
    let (strings, expected) = (golden("strings.json"), golden("ids.json"));
    let cases = strings.as_array().unwrap().iter().zip(expected[name].as_array().unwrap());
    let wrong = cases.filter_map(|(text, ids)| {
        let found = processor.encode_text(text.as_str().unwrap()).unwrap();
        (serde_json::json!(found) != *ids).then(|| format!("{text}: expected {ids}, found {found:?}"))
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{name}: {} of {}: {wrong:#?}", wrong.len(), strings.as_array().unwrap().len());
}

/// The texts of the script's `Draws`, from the lists that it wrote down.
struct Draws {
    state: u64,
    lists: Value,
}

impl Draws {
    /// SplitMix64.
    fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let word = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((word ^ (word >> 31)) % bound as u64) as usize
    }

    fn letters(&mut self, first: u64, last: u64, most: usize) -> String {
        let count = 1 + self.below(most);
        let width = (last - first + 1) as usize;
        (0..count).map(|_| char::from_u32(first as u32 + self.below(width) as u32).unwrap()).collect()
    }

    fn pick(&mut self, list: &str) -> Value {
        let list = self.lists.pointer(list).unwrap().as_array().unwrap().clone();
        list[self.below(list.len())].clone()
    }

    fn piece(&mut self) -> String {
        match self.below(12) {
            0 => self.letters(0x61, 0x7A, 8),
            1 => self.letters(0x30, 0x39, 7),
            2 => self.letters(0x4E00, 0x9FA5, 6),
            3 => {
                let count = 1 + self.below(4);
                (0..count).map(|_| self.pick("/spaces").as_str().unwrap().to_owned()).collect()
            }
            4 | 5 => {
                let range = self.pick("/ranges");
                self.letters(range[0].as_u64().unwrap(), range[1].as_u64().unwrap(), 5)
            }
            6 => {
                let letter = char::from(b'A' + self.below(8) as u8);
                format!("{letter}{}", self.letters(0x300, 0x345, 2))
            }
            kind => self.pick(&format!("/others/{}", kind - 7)).as_str().unwrap().to_owned(),
        }
    }

    fn text(&mut self) -> String {
        let count = 1 + self.below(12);
        (0..count).map(|_| self.piece()).collect()
    }
}

/// FNV-1a, 64 bits, over words of 32 bits.
fn fnv(hash: u64, word: u32) -> u64 {
    word.to_le_bytes().iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// Ten thousand drawn texts, hashed by the hundred.
fn check_fuzz(processor: &Processor, name: &str) {
    let golden = golden("fuzz.json");
    let mut draws = Draws { state: 2026, lists: golden["lists"].clone() };
    for (block, expected) in golden["hashes"][name].as_array().unwrap().iter().enumerate() {
        let mut hash = 0xCBF2_9CE4_8422_2325;
        for _ in 0..100 {
            let ids = processor.encode_text(&draws.text()).unwrap();
            hash = ids.iter().fold(fnv(hash, ids.len() as u32), |hash, &id| fnv(hash, id));
        }
        assert_eq!(format!("{hash:016x}"), *expected, "{name}: a text of block {block}");
    }
}

#[test]
fn ids_of_small_tiktoken_files_equal_tiktoken() {
    for (name, (_dir, processor)) in [("small qwen", small_qwen()), ("small llama3", small_llama3())] {
        check_strings(&processor, name);
        check_fuzz(&processor, name);
    }
}

#[test]
fn ids_of_published_qwen_equal_tiktoken() {
    let Some((_dir, processor)) = published_qwen() else { return };
    check_strings(&processor, "qwen_v1");
    check_fuzz(&processor, "qwen_v1");
    assert_eq!((processor.summary().image_token_id, processor.vocab_size()), (151_851, 151_852));
    assert_eq!((processor.summary().pad_token_id, processor.stop_ids()), (151_643, &[151_643, 151_645][..]));
}

#[test]
fn ids_of_published_llama3_equal_tiktoken() {
    let Some((_dir, processor)) = published_llama3() else { return };
    check_strings(&processor, "llama3");
    check_fuzz(&processor, "llama3");
    assert_eq!((processor.summary().image_token_id, processor.summary().pad_token_id), (128_256, 128_004));
    assert_eq!(processor.stop_ids(), [128_009]);
}

#[test]
fn ids_of_published_qwen2_5_equal_tokenizers() {
    let Some((_dir, processor)) = published_qwen2_5() else { return };
    check_strings(&processor, "qwen2.5");
    check_fuzz(&processor, "qwen2.5");
}

#[test]
fn decoding_gives_back_what_was_encoded() {
    for (_dir, processor) in [small_qwen(), small_llama3()] {
        for text in ["图片 \n\n 12345 'll 🤷🏽‍♀️", "<|im_end|> is text", "\u{0}\u{7f}\u{ad}"] {
            let ids = processor.encode_text(text).unwrap();
            assert_eq!(processor.decode(&ids, false).unwrap(), text);
        }
    }
}

#[test]
fn a_saved_tiktoken_folder_is_the_same_processor_without_being_told_the_template() {
    for (_dir, processor) in [small_qwen(), small_llama3()] {
        let copy = TempDir::new().unwrap();
        processor.save(copy.path()).unwrap();
        let loaded = Processor::load(copy.path(), &ProcessorOptions::default()).unwrap();
        assert_eq!(loaded.summary(), processor.summary());
        let again = TempDir::new().unwrap();
        loaded.save(again.path()).unwrap();
        for entry in fs::read_dir(copy.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert_eq!(fs::read(copy.path().join(&name)).unwrap(), fs::read(again.path().join(&name)).unwrap());
        }
    }
}

#[test]
fn special_tokens_that_the_config_names_otherwise_keep_their_names() {
    let (dir, _) = small_llama3();
    let config = r#"{"added_tokens_decoder": {"455": {"content": "<image>", "special": true}}}"#;
    let num_ranks = fs::read_to_string(dir.path().join("tokenizer.model")).unwrap().lines().count();
    let config = config.replace("455", &(num_ranks + 2).to_string());
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let options = ProcessorOptions { template: Some("llama3.2".into()), ..ProcessorOptions::default() };
    let processor = Processor::load(dir.path(), &options).unwrap();
    assert_eq!(processor.summary().image_token_id as usize, num_ranks + 2);
    assert_eq!(processor.vocab_size() as usize, num_ranks + 256);
}

#[test]
fn a_sentencepiece_model_is_refused_with_the_remedy() {
    let (dir, _) = small_llama3();
    fs::write(dir.path().join("tokenizer.model"), b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02").unwrap();
    let message = Processor::load(dir.path(), &ProcessorOptions::default()).err().unwrap().to_string();
    assert!(message.contains("`tokenizer.model`") && message.contains("save the fast tokenizer"), "{message}");
}
