//! Chat asks exactly as training taught.

use std::path::PathBuf;

use vela_processor::codec::encode_png;
use vela_train::{Chat, Question, Resume};
use vela_types::{ImageRef, Language, Sample, Turn};

use crate::fixture::{Stage, trainer};

pub(crate) fn write_image(stage: &Stage) -> PathBuf {
    let rgb: Vec<u8> = (0..40 * 30 * 3).map(|index| (index * 7 % 251) as u8).collect();
    let path = stage.path("photo.png");
    std::fs::write(&path, encode_png(&rgb, 40, 30)).expect("written");
    path
}

fn trained() -> (Stage, PathBuf) {
    let stage = Stage::new("freeze_vision");
    let report = stage.train(&["run.max_steps=5"], &Resume::Fresh).expect("a run");
    (stage, report.checkpoint.expect("one"))
}

#[test]
fn defect_07_ids_and_pixels_are_those_of_training() {
    let (stage, checkpoint) = trained();
    let image = ImageRef::Path(write_image(&stage).display().to_string());
    let chat = Chat::load(&checkpoint).expect("a checkpoint is a model folder");
    let sample = Sample {
        id: "test/0".into(),
        source: "test".into(),
        language: Language::En,
        images: vec![image.clone()],
        turns: vec![Turn::user("<image>\nw9 w10 ?"), Turn::assistant("w11 w12")],
    };
    let record = chat.processor().process(&sample, 64).expect("a right sample").record;
    let asked = chat.process(&Question::new(vec![image], "w9 w10 ?")).expect("a right question");
    assert_eq!(asked.images, record.images);
    // Everything before the first label is the prompt, generation prompt included.
    let prompt_length = record.labels.iter().position(|&label| label >= 0).expect("an answer");
    assert_eq!(asked.input_ids, record.input_ids[..prompt_length]);
}

#[test]
fn answers_do_not_depend_on_the_company_of_other_questions() {
    let (stage, checkpoint) = trained();
    let image = ImageRef::Path(write_image(&stage).display().to_string());
    let chat = Chat::load(&checkpoint).expect("a checkpoint is a model folder");
    let questions = [
        Question::new(vec![image.clone()], "w9 w10 ?"),
        Question::new(vec![], "w8"),
        Question::new(vec![image], "w13"),
    ];
    let together = chat.answer_many(&questions, 6).expect("answers");
    for (question, answer) in questions.iter().zip(&together) {
        let alone = chat.answer(question, 6).expect("an answer");
        assert_eq!((&alone.answer, alone.tokens), (&answer.answer, answer.tokens));
        assert!(alone.tokens <= 6);
    }
}

#[test]
fn the_command_prints_the_contracts_keys_and_names_a_missing_image() {
    let (stage, checkpoint) = trained();
    let ask = |image: &PathBuf| {
        let mut command = trainer();
        command.args(["chat", "--question", "w9", "--max-new-tokens", "5", "--json", "--model"]).arg(&checkpoint);
        command.arg("--image").arg(image).output().expect("run")
    };
    let output = ask(&write_image(&stage));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    assert!(json["answer"].is_string() && json["tokens"].is_u64() && json["tokens_per_second"].is_number(), "{json}");
    let output = ask(&stage.path("absent.png"));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("absent.png"), "{told}");
}

#[test]
fn a_question_that_is_none_is_refused() {
    let (_stage, checkpoint) = trained();
    let ask = |question: &str| {
        let output =
            trainer().args(["chat", "--question", question, "--model"]).arg(&checkpoint).output().expect("run");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let long = "w9 ".repeat(1000);
    for (question, part) in [("", "some text"), ("<image>\nw9", "1 marks and 0 images"), (&long, "positions")] {
        let (code, told) = ask(question);
        assert!(code == Some(2) && told.contains(part), "{question}: {code:?} {told}");
    }
}
