//! What a processor promises for any input: label invariants, the length limit, causes of refusal, faithful copies.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use vela_processor::{Processor, ProcessorError, ProcessorOptions, codec, train_tokenizer};
use vela_types::{IGNORE_LABEL, ImageRef, Language, Role, Sample, Turn};

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/processor").join(family)
}

fn load(dir: &Path) -> Processor {
    Processor::load(dir, &ProcessorOptions::default()).unwrap_or_else(|error| panic!("{}: {error:?}", dir.display()))
}

fn sample(turns: Vec<Turn>, images: Vec<ImageRef>) -> Sample {
    Sample { id: "test/0".into(), source: "test".into(), language: Language::En, images, turns }
}

fn bytes(name: &str, data: impl Into<Vec<u8>>) -> ImageRef {
    ImageRef::Bytes { name: name.into(), data: data.into().into() }
}

fn picture(width: u32, height: u32) -> Vec<u8> {
    (0..width * height * 3).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Decoded text of each run of labels.
fn labelled_runs(processor: &Processor, turns: &[Turn]) -> Vec<String> {
    let tokens = processor.encode_dialogue(turns).unwrap();
    let runs = tokens.labels.split(|&label| label == IGNORE_LABEL).filter(|run| !run.is_empty());
    runs.map(|run| {
        let ids: Vec<u32> = run.iter().map(|&label| label as u32).collect();
        processor.decode(&ids, false).unwrap()
    })
    .collect()
}

/// Text as people write it, without the white space around it that templates may trim.
fn utterance() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        4 => "[a-zA-Z0-9 ,.!?'-]{1,12}",
        2 => "[\u{4E00}-\u{9FA5}，。！？]{1,8}",
        1 => "[\u{1F300}-\u{1F64F}\u{200D}\u{FE0F}]{1,4}",
        1 => "[éèüñçÀøßЖдعש]{1,5}",
        1 => Just("\n".to_owned()),
        1 => Just(" <|im_start|> ".to_owned()),
        1 => Just("</s><|eot".to_owned()),
        1 => "\\PC{1,6}",
    ];
    proptest::collection::vec(pieces, 1..6).prop_map(|pieces| {
        let text = pieces.concat().replace("<image>", "");
        format!("a{}z", text.trim())
    })
}

fn dialogue() -> impl Strategy<Value = Vec<Turn>> {
    let pairs = proptest::collection::vec((utterance(), utterance()), 1..5);
    (proptest::option::of(utterance()), pairs).prop_map(|(system, pairs)| {
        let dialogue = pairs.into_iter().flat_map(|(question, answer)| [Turn::user(question), Turn::assistant(answer)]);
        system.into_iter().map(Turn::system).chain(dialogue).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_labels_of_every_turn_spell_its_answer_and_end_token(turns in dialogue()) {
        // Llama 3's tokenizer does not normalise, so that text survives to the byte; its pieces hold no end token.
        let processor = load(&golden("llama3"));
        let answers = turns.iter().filter(|turn| turn.role == Role::Assistant);
        let expected: Vec<String> = answers.map(|turn| format!("{}<|eot_id|>", turn.text)).collect();
        prop_assert_eq!(labelled_runs(&processor, &turns), expected);
    }

    #[test]
    fn spans_cover_exactly_the_answers_and_their_end_tokens(turns in dialogue(), prompt: bool) {
        let processor = load(&golden("qwen2"));
        let rendered = processor.render(&turns, prompt).unwrap();
        let spans: Vec<&str> = rendered.assistant_spans.iter().map(|span| &rendered.text[span.clone()]).collect();
        let answers = turns.iter().filter(|turn| turn.role == Role::Assistant);
        let expected: Vec<String> = answers.map(|turn| format!("{}<|im_end|>", turn.text)).collect();
        prop_assert_eq!(spans, expected);
    }

    #[test]
    fn damaged_files_are_refused_and_never_panic(at in 0usize..4000, value: u8, format in 0usize..3) {
        let (rgb, width, height) = (picture(40, 30), 40, 30);
        let mut encoded = match format {
            0 => codec::encode_png(&rgb, width, height),
            1 => codec::encode_jpeg(&rgb, width, height, 90),
            _ => fs::read(golden("images").join("webp_lossy.webp")).unwrap(),
        };
        let at = at % encoded.len();
        encoded[at] ^= value | 1;
        if let Err(error) = codec::decode_rgb(&encoded, "flipped") {
            prop_assert_ne!(error.cause(), "processor");
        }
    }
}

#[test]
fn bad_images_are_rejected_each_with_its_cause() {
    let processor = load(&golden("qwen2"));
    let jpeg = codec::encode_jpeg(&picture(64, 48), 64, 48, 90);
    let png = codec::encode_png(&picture(64, 48), 64, 48);
    let mut bomb = codec::encode_jpeg(&picture(8, 8), 8, 8, 90);
    let frame = bomb.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    bomb[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    let no_end = jpeg[..jpeg.len() - 2].to_vec();
    let cases = [
        (ImageRef::Path("absent/picture.jpg".into()), "missing_image"),
        (ImageRef::Path(env!("CARGO_MANIFEST_DIR").into()), "unreadable_image"),
        (ImageRef::Url("http://example.org/picture.jpg".into()), "remote_image"),
        (bytes("empty.jpg", Vec::new()), "empty_image"),
        (bytes("text.jpg", "this is a caption, not a picture"), "unknown_image_format"),
        (bytes("cut.jpg", &jpeg[..jpeg.len() / 2]), "truncated_image"),
        (bytes("header.jpg", &jpeg[..30]), "truncated_image"),
        (bytes("no_end.jpg", no_end), "truncated_image"),
        (bytes("cut.png", &png[..png.len() / 2]), "truncated_image"),
        (bytes("bomb.jpg", bomb), "image_too_large"),
    ];
    for (image, cause) in cases {
        let error = processor.load_image(&image).expect_err(cause);
        assert_eq!(error.cause(), cause, "{}: {error}", image.name());
        assert!(error.to_string().contains(image.name()), "{error}");
    }
}

#[test]
fn a_file_is_read_by_its_content_whatever_it_is_called() {
    let processor = load(&golden("qwen2"));
    let png = codec::encode_png(&picture(30, 20), 30, 20);
    let named_rightly = processor.load_image(&bytes("picture.png", png.clone())).unwrap();
    let named_wrongly = processor.load_image(&bytes("picture.jpg", png)).unwrap();
    assert_eq!(named_rightly, named_wrongly);
}

#[test]
fn a_sample_that_breaks_its_invariants_is_rejected_by_name() {
    let processor = load(&golden("qwen2"));
    let image = || bytes("a.png", codec::encode_png(&picture(4, 4), 4, 4));
    let cases = [
        (sample(vec![Turn::user("<image> what?")], vec![image()]), "odd_turns"),
        (sample(vec![Turn::user("what?"), Turn::assistant(" ")], vec![]), "empty_turn"),
        (sample(vec![], vec![]), "no_turns"),
    ];
    for (sample, cause) in cases {
        assert_eq!(processor.process(&sample, 1000).expect_err(cause).cause(), cause);
    }
    let untrainable = processor.encode_dialogue(&[Turn::user("only a question")]);
    assert!(matches!(untrainable, Err(ProcessorError::NoLabels)));
}

#[test]
fn a_saved_processor_is_the_same_processor() {
    for family in ["qwen2", "llama3"] {
        let original = load(&golden(family));
        let dir = TempDir::new().unwrap();
        original.save(dir.path()).unwrap();
        let copy = load(dir.path());
        assert_eq!(original.summary(), copy.summary());
        let turns = [Turn::user("<image> 猫?"), Turn::assistant("Yes.")];
        assert_eq!(original.encode_dialogue(&turns).unwrap(), copy.encode_dialogue(&turns).unwrap());
        // The image token is written into the copy for other readers, and only once.
        let again = TempDir::new().unwrap();
        copy.save(again.path()).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert_eq!(fs::read(dir.path().join(&name)).unwrap(), fs::read(again.path().join(&name)).unwrap());
        }
    }
}

#[test]
fn the_fingerprint_moves_with_any_file_and_setting() {
    let dir = TempDir::new().unwrap();
    load(&golden("qwen2")).save(dir.path()).unwrap();
    let before = load(dir.path()).summary().fingerprint;
    let options = ProcessorOptions { template_date: "2024-07-27".parse().ok(), ..ProcessorOptions::default() };
    assert_ne!(Processor::load(dir.path(), &options).unwrap().summary().fingerprint, before);
    let config = r#"{"image_processor_type": "CLIPImageProcessor", "resample": 2}"#;
    fs::write(dir.path().join("preprocessor_config.json"), config).unwrap();
    assert_ne!(load(dir.path()).summary().fingerprint, before);
}

#[test]
fn a_trained_tokenizer_makes_a_whole_processor_and_the_same_bytes_each_time() {
    let texts =
        ["红色的圆形在左边。", "The red circle is on the left.", "蓝色的方形在右边。", "the the the circle circle"];
    let files = train_tokenizer(&texts, 300).unwrap();
    assert_eq!(files, train_tokenizer(&texts, 300).unwrap());
    let dir = TempDir::new().unwrap();
    files.iter().for_each(|(name, content)| fs::write(dir.path().join(name), content).unwrap());
    fs::write(dir.path().join("preprocessor_config.json"), r#"{"image_processor_type": "CLIPImageProcessor"}"#)
        .unwrap();
    let processor = load(dir.path());
    assert!(processor.vocab_size() <= 300, "{}", processor.vocab_size());
    let turns =
        [Turn::user("<image>\n什么颜色？"), Turn::assistant("红色。"), Turn::user("?"), Turn::assistant("Red é 🎉")];
    assert_eq!(labelled_runs(&processor, &turns), ["红色。<|end|>", "Red é 🎉<|end|>"]);
    assert_eq!(processor.stop_ids(), [processor.summary().end_of_turn_id]);
    assert!(train_tokenizer(&texts, 100).is_err());
}

#[cfg(unix)]
#[test]
fn a_device_or_folder_is_no_image() {
    let dir = TempDir::new().unwrap();
    let files = train_tokenizer(&["red circle"], 300).unwrap();
    files.iter().for_each(|(name, content)| fs::write(dir.path().join(name), content).unwrap());
    fs::write(dir.path().join("preprocessor_config.json"), r#"{"image_processor_type": "CLIPImageProcessor"}"#)
        .unwrap();
    let processor = load(dir.path());
    for path in ["/dev/zero", "/tmp"] {
        let refused = processor.load_image(&vela_types::ImageRef::Path(path.into())).expect_err(path);
        assert_eq!(refused.cause(), "unreadable_image");
    }
}

#[test]
fn a_folder_that_cannot_serve_says_what_it_lacks() {
    let dir = TempDir::new().unwrap();
    let message = |dir: &Path| match Processor::load(dir, &ProcessorOptions::default()) {
        Ok(_) => panic!("loaded"),
        Err(error) => error.to_string(),
    };
    assert!(message(dir.path()).contains("`tokenizer.json`"));
    load(&golden("llama3")).save(dir.path()).unwrap();
    let config = dir.path().join("tokenizer_config.json");
    let write = |template: &str| {
        let value = serde_json::json!({ "eos_token": "<|eot_id|>", "chat_template": template });
        fs::write(&config, value.to_string()).unwrap();
    };
    write("{% for m in messages %}{{ m.content | upper }}<|eot_id|>{% endfor %}");
    assert!(message(dir.path()).contains("alters assistant turns"));
    write("{% for m in messages %}{{ m.content }}\n{% endfor %}");
    assert!(message(dir.path()).contains("end-of-turn"));
    write("{% for m in messages %}{{ m.content }");
    assert!(message(dir.path()).contains("compile"));
    fs::remove_file(dir.path().join("preprocessor_config.json")).unwrap();
    assert!(message(dir.path()).contains("`preprocessor_config.json`"));
}
