//! Equality with the references: Pillow and the PIL image processors for pixels, transformers for ids and labels.
//! The expected values stand in `tests/golden/processor`, beside the script that makes them.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use vela_processor::{Processor, ProcessorOptions, codec};
use vela_types::{IGNORE_LABEL, ImageRef, Role, Turn};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/processor")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn load(dir: &Path) -> Processor {
    Processor::load(dir, &ProcessorOptions::default()).unwrap_or_else(|error| panic!("{}: {error:?}", dir.display()))
}

/// A processor with the golden Qwen2 text files and these image settings.
fn with_image_config(config: &Value) -> (TempDir, Processor) {
    let dir = TempDir::new().unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        fs::copy(golden().join("qwen2").join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("preprocessor_config.json"), config.to_string()).unwrap();
    let processor = load(dir.path());
    (dir, processor)
}

/// SHA-256 (FIPS 180-4), here so that the goldens need no crate.
fn sha256(data: &[u8]) -> String {
    let primes: Vec<u64> = (2u64..312).filter(|n| (2..*n).all(|d| n % d != 0)).collect();
    let bits = |root: f64| ((root.fract()) * 2f64.powi(32)) as u32;
    let rounds: Vec<u32> = primes.iter().take(64).map(|&p| bits((p as f64).cbrt())).collect();
    let mut state: Vec<u32> = primes.iter().take(8).map(|&p| bits((p as f64).sqrt())).collect();
    let mut message = data.to_vec();
    message.push(0x80);
    message.resize((message.len() + 8).next_multiple_of(64) - 8, 0);
    message.extend((data.len() as u64 * 8).to_be_bytes());
    for block in message.chunks_exact(64) {
        let mut words: Vec<u32> =
            block.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
        for at in 16..64 {
            let small = |word: u32, a: u32, b: u32, c: u32| word.rotate_right(a) ^ word.rotate_right(b) ^ (word >> c);
            let sum = words[at - 16]
                .wrapping_add(small(words[at - 15], 7, 18, 3))
                .wrapping_add(words[at - 7])
                .wrapping_add(small(words[at - 2], 17, 19, 10));
            words.push(sum);
        }
        let mut v = state.clone();
        for at in 0..64 {
            let big =
                |word: u32, a: u32, b: u32, c: u32| word.rotate_right(a) ^ word.rotate_right(b) ^ word.rotate_right(c);
            let choice = (v[4] & v[5]) ^ (!v[4] & v[6]);
            let first = v[7]
                .wrapping_add(big(v[4], 6, 11, 25))
                .wrapping_add(choice)
                .wrapping_add(rounds[at])
                .wrapping_add(words[at]);
            let majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
            let second = big(v[0], 2, 13, 22).wrapping_add(majority);
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(first);
            v[0] = first.wrapping_add(second);
        }
        state.iter_mut().zip(&v).for_each(|(state, word)| *state = state.wrapping_add(*word));
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

#[test]
fn the_hash_used_here_is_sha256() {
    assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

/// The picture that `hashed_pixels` of the script makes.
fn hashed_pixels(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let sample = |x: u32, y: u32, channel: u32| {
        let word = x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(2_246_822_519));
        let word = word.wrapping_add(channel.wrapping_mul(3_266_489_917)).wrapping_add(seed.wrapping_mul(668_265_263));
        let word = (word ^ (word >> 15)).wrapping_mul(2_246_822_519);
        match (x / 7 + y / 5) % 3 {
            0 => (word >> 24) as u8,
            1 => 0,
            _ => 255,
        }
    };
    let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    rows.flat_map(|(x, y)| [0, 1, 2].map(|channel| sample(x, y, channel))).collect()
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap() as u32
}

/// Files whose decoder is not bit-equal to Pillow's, each with the reason. Empty is the aim.
const INEXACT_FILES: [&str; 0] = [];

#[test]
fn every_file_decodes_to_pillows_pixels_and_every_tower_gets_its_processors_bytes() {
    let expected = read_json(&golden().join("pixels.json"));
    let towers: Vec<_> = expected["configs"].as_array().unwrap().iter().map(with_image_config).collect();
    let mut wrong = Vec::new();
    for case in expected["files"].as_array().unwrap() {
        let name = case["file"].as_str().unwrap();
        let path = golden().join("images").join(name);
        let decoded = match codec::decode_rgb(&fs::read(&path).unwrap(), name) {
            Ok(decoded) => decoded,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if (decoded.width, decoded.height) != (number(&case["width"]), number(&case["height"])) {
            wrong.push(format!("{name}: extent {} x {}", decoded.width, decoded.height));
        } else if sha256(&decoded.data) != case["rgb"] {
            wrong.push(format!("{name}: pixels"));
        }
        for (index, (_, processor)) in towers.iter().enumerate() {
            let tensor = processor.load_image(&ImageRef::Path(path.display().to_string())).unwrap();
            if sha256(&tensor.data) != case["tensors"][index] {
                wrong.push(format!("{name}: tensor of config {index}"));
            }
        }
    }
    wrong.retain(|line| !INEXACT_FILES.iter().any(|name| line.starts_with(name)));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn resizes_and_crops_of_all_sizes_and_filters_equal_the_pil_processors() {
    let expected = read_json(&golden().join("pixels.json"));
    let mut wrong = Vec::new();
    for case in expected["resizes"].as_array().unwrap() {
        let (width, height) = (number(&case["width"]), number(&case["height"]));
        let (_dir, processor) = with_image_config(&case["config"]);
        let data = codec::encode_png(&hashed_pixels(width, height, number(&case["seed"])), width, height).into();
        let tensor = processor.load_image(&ImageRef::Bytes { name: "generated".into(), data }).unwrap();
        if sha256(&tensor.data) != case["tensor"] {
            wrong.push(case["config"].to_string() + &format!(" from {width} x {height}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}

#[test]
fn a_small_resize_equals_the_pil_processor_sample_by_sample() {
    let case = &read_json(&golden().join("pixels.json"))["in_full"];
    let config =
        serde_json::json!({ "image_processor_type": "SiglipImageProcessor", "size": { "height": 4, "width": 5 } });
    let (_dir, processor) = with_image_config(&config);
    let data = codec::encode_png(&hashed_pixels(9, 7, 0), 9, 7).into();
    let tensor = processor.load_image(&ImageRef::Bytes { name: "generated".into(), data }).unwrap();
    let expected: Vec<u8> = case["chw"].as_array().unwrap().iter().map(|value| number(value) as u8).collect();
    assert_eq!(tensor.data.as_ref(), expected);
}

fn turns_of(case: &Value) -> Vec<Turn> {
    let role = |name: &Value| match name.as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        _ => Role::Assistant,
    };
    let turns = case["turns"].as_array().unwrap().iter();
    turns.map(|turn| Turn { role: role(&turn[0]), text: turn[1].as_str().unwrap().to_owned() }).collect()
}

fn ids_of(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn check_text(processor: &Processor, family: &str) {
    for case in read_json(&golden().join("text.json"))[family].as_array().unwrap() {
        let (name, turns) = (case["name"].as_str().unwrap(), turns_of(case));
        assert_eq!(processor.render(&turns, false).unwrap().text, case["text"].as_str().unwrap(), "{family}: {name}");
        let tokens = processor.encode_dialogue(&turns).unwrap();
        assert_eq!(tokens.input_ids, ids_of(&case["ids"]), "{family}: {name}");
        let mask: String = tokens.labels.iter().map(|&label| if label == IGNORE_LABEL { '0' } else { '1' }).collect();
        assert_eq!(mask, case["mask"].as_str().unwrap(), "{family}: {name}");
        let labelled = tokens.labels.iter().zip(&tokens.input_ids).filter(|(label, _)| **label != IGNORE_LABEL);
        labelled.for_each(|(&label, &id)| assert_eq!(label, id as i32));
        let prompt = processor.encode_prompt(&turns[..turns.len() - 1]).unwrap();
        assert_eq!(prompt, ids_of(&case["prompt_ids"]), "{family}: {name}");
        let decoded = processor.decode(&tokens.input_ids, false).unwrap();
        assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{family}: {name}");
    }
}

#[test]
fn ids_and_labels_equal_transformers_for_a_llama3_style_tokenizer() {
    let processor = load(&golden().join("llama3"));
    check_text(&processor, "llama3");
    // The tokenizer itself would add a second BOS before what the template begins with.
    let turns = [Turn::user("x"), Turn::assistant("y")];
    let ids = processor.encode_dialogue(&turns).unwrap().input_ids;
    let bos = ids[0];
    assert_eq!(processor.decode(&[bos], false).unwrap(), "<|begin_of_text|>");
    assert_eq!(ids.iter().filter(|&&id| id == bos).count(), 1);
}

#[test]
fn ids_and_labels_equal_transformers_for_vocab_and_merges_files() {
    check_text(&load(&golden().join("qwen2")), "qwen2");
}

#[test]
fn ids_and_labels_equal_transformers_for_published_qwen2_5() {
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tokenizers/qwen2.5-0.5b-instruct");
    if !published.is_dir() {
        eprintln!("skipped: {} is absent", published.display());
        return;
    }
    let dir = TempDir::new().unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"] {
        fs::copy(published.join(name), dir.path().join(name)).unwrap();
    }
    let config = r#"{"image_processor_type": "ChineseCLIPImageProcessor", "size": {"height": 224, "width": 224},
        "do_center_crop": false}"#;
    fs::write(dir.path().join("preprocessor_config.json"), config).unwrap();
    let processor = load(dir.path());
    check_text(&processor, "qwen2.5");
    let summary = processor.summary();
    assert_eq!((summary.image_token_id, summary.vocab_size), (151_665, 151_666));
    assert_eq!((summary.pad_token_id, summary.end_of_turn_id), (151_643, 151_645));
}
