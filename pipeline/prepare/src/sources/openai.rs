//! OpenAI messages: JSON lines (or a list) of `{id, messages}`, or of bare lists of messages, whose contents are texts or
//! lists of parts: `{type: text, text}`, `{type: image_url, image_url: {url}}` and the variants that trainers write, as
//! LLaMA-Factory's `{type, value}`.
//!
//! An image stands where its part stands, on a line of its own; if a message's texts hold as many marks (`<image>` or
//! InternVL's `<IMG_CONTEXT>`) as it has images, it stands at its mark.

use serde_json::Value;
use vela_types::{IMAGE_MARK, Role, Turn};

use super::fields::{Place, TurnFields, clean, id_text, read_text};
use super::json_file::{Head, JsonFormat};
use super::{Fault, RawContent};

/// A mark that stands for an image in files written for InternVL.
const OTHER_MARK: &str = "<IMG_CONTEXT>";

const TURNS: TurnFields<'_> = TurnFields {
    role: "role",
    text: "content",
    roles: &[
        ("user", Role::User),
        ("assistant", Role::Assistant),
        ("system", Role::System),
        ("developer", Role::System),
    ],
};

/// Any of the layouts.
pub(super) struct Openai;

impl JsonFormat for Openai {
    const SOURCE: &'static str = "openai";
    const HAS_LIST_RECORDS: bool = true;

    fn head(&self, bytes: &[u8]) -> Result<Head, serde_json::Error> {
        let record: Value = serde_json::from_slice(bytes)?;
        let messages = messages(&record);
        let parts = messages.iter().filter_map(|message| message["content"].as_array()).flatten();
        Ok(Head {
            id: record.get("id").and_then(id_text),
            images: parts.filter_map(|part| image_name(part).map(str::to_owned)).collect(),
            num_parts: 1,
            is_recognized: messages.iter().any(|message| message.get("role").is_some()),
        })
    }

    fn content(&self, record: &Value, _part: u32, place: &Place<'_>) -> Result<RawContent, Fault> {
        let (names, turns) = read_messages(messages(record))?;
        place.dialogue(Self::SOURCE, place.resolve(&names)?, turns)
    }
}

/// The names of the images in messages, in order, and the turns with their marks.
pub(super) fn read_messages(messages: &[Value]) -> Result<(Vec<String>, Vec<Turn>), Fault> {
    let (mut names, mut turns) = (Vec::new(), Vec::new());
    for (at, message) in messages.iter().enumerate() {
        let role = TURNS.read_role(at, message)?;
        check_weight(role, message, at)?;
        turns.push(Turn { role, text: read_content(&message["content"], at, &mut names)? });
    }
    Ok((names, turns))
}

fn messages(record: &Value) -> &[Value] {
    let messages = if record.is_array() { record } else { &record["messages"] };
    messages.as_array().map_or(&[], Vec::as_slice)
}

/// Refuses an answer that its file weighs: every answer is learnt alike, none is left out of the loss.
fn check_weight(role: Role, message: &Value, at: usize) -> Result<(), Fault> {
    let is_one = |weight: &Value| weight.is_null() || weight.as_f64() == Some(1.0);
    let weighed = ["loss_weight", "weight"].into_iter().find(|name| !is_one(&message[*name]));
    match weighed.filter(|_| role == Role::Assistant) {
        None => Ok(()),
        Some(name) => {
            let detail = format!("turn {at}, field `{name}`: expected 1 on an answer, found `{}`", message[name]);
            Err(Fault::new("turn_weight", detail))
        }
    }
}

/// The text of a message with its marks; the names of its images are added to `names`.
fn read_content(content: &Value, at: usize, names: &mut Vec<String>) -> Result<String, Fault> {
    let Some(parts) = content.as_array() else { return read_text(content, at, "content") };
    let own_names: Vec<&str> = parts.iter().filter_map(image_name).collect();
    let mut texts = Vec::new();
    for part in parts {
        match (image_name(part), part_text(part)) {
            (Some(_), _) => texts.push(IMAGE_MARK.to_owned()),
            (None, Some(text)) => texts.push(text.replace(OTHER_MARK, IMAGE_MARK)),
            _ => {
                let kind = part["type"].as_str().unwrap_or("none");
                let detail = format!("turn {at}: expected parts of text and images, found one of type `{kind}`");
                return Err(Fault::new("unknown_part", detail));
            }
        }
    }
    let is_text = |(part, _): &(&Value, &String)| image_name(part).is_none();
    let written: Vec<&str> = parts.iter().zip(&texts).filter(is_text).map(|(_, text)| text.as_str()).collect();
    let marks: usize = written.iter().map(|text| text.matches(IMAGE_MARK).count()).sum();
    let text = if marks == own_names.len() { written.join("\n") } else { texts.join("\n") };
    names.extend(own_names.into_iter().map(str::to_owned));
    Ok(clean(&text))
}

/// The text of a text part; `None` for other parts.
fn part_text(part: &Value) -> Option<&str> {
    part["text"].as_str().or_else(|| part["value"].as_str().filter(|_| part["type"] == "text"))
}

/// The name, path or data URL of an image part; `None` for other parts.
fn image_name(part: &Value) -> Option<&str> {
    let kind = part["type"].as_str()?;
    let value = match kind {
        "image_url" | "image" | "input_image" => [&part["image_url"], &part["image"], &part["value"], &part["url"]],
        _ => return None,
    };
    value.into_iter().find_map(|value| value.as_str().or_else(|| value["url"].as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::testing::{causes, read_json, samples};

    #[test]
    fn parts_become_marks_in_their_places() {
        let lines = r#"{"id": 1, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
            {"type": "text", "text": "First"}, {"type": "image_url", "image_url": {"url": "a.jpg"}},
            {"type": "text", "text": "or second?"}, {"type": "image", "image": "b.jpg"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "First."}]}]}"#;
        let lines = lines.replace('\n', " ");
        let samples = samples(read_json("a.jsonl", lines.as_bytes(), Openai).expect("reads"));
        assert_eq!(samples[0].turns[1].text, "First\n<image>\nor second?\n<image>");
        assert_eq!(
            samples[0].images.iter().map(|image| image.name().ends_with("b.jpg")).collect::<Vec<_>>(),
            [false, true]
        );
    }

    #[test]
    fn marks_in_the_text_are_the_places_if_there_is_one_per_image() {
        let line = r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a.jpg"},
            {"type": "image_url", "value": "b.jpg"}, {"type": "text", "text": "<IMG_CONTEXT>\n<IMG_CONTEXT>\nSame?"}]},
            {"role": "assistant", "content": "No."}]}"#;
        let samples = samples(read_json("a.jsonl", line.replace('\n', " ").as_bytes(), Openai).expect("reads"));
        assert_eq!(samples[0].turns[0].text, "<image>\n<image>\nSame?");
        assert_eq!(samples[0].images.len(), 2);
    }

    #[test]
    fn bare_lists_are_records_of_lines_and_faults_are_named() {
        let lines = r#"[{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
{"messages": [{"role": "pretrain", "content": "Text."}]}
{"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": "a.mp4"}]}]}
{"messages": []}
7"#;
        let entries = read_json("a.jsonl", lines.as_bytes(), Openai).expect("reads");
        assert_eq!(causes(&entries), ["", "unknown_role", "unknown_part", "no_turns", "no_turns"]);
    }

    #[test]
    fn texts_may_stand_under_value_and_weights_of_answers_must_be_one() {
        let lines = r#"{"messages": [{"role": "system", "content": [{"type": "text", "value": "Be brief."}], "loss_weight": 0.0}, {"role": "user", "content": [{"type": "image_url", "value": "a.jpg"}, {"type": "text", "value": "What?"}], "loss_weight": 0.0}, {"role": "assistant", "content": [{"type": "text", "value": "A cat."}], "loss_weight": 1.0}]}
{"messages": [{"role": "user", "content": [{"type": "text", "value": "What?"}], "loss_weight": 0.0}, {"role": "assistant", "content": [{"type": "text", "value": "A dog."}], "loss_weight": 0.0}]}
{"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog.", "weight": 0}]}
{"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog.", "weight": 1}]}
{"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog.", "weight": "1"}]}
{"messages": [{"role": "user", "content": [{"type": "video_url", "value": "a.mp4"}]}]}"#;
        let mut entries = read_json("a.jsonl", lines.as_bytes(), Openai).expect("reads");
        assert_eq!(causes(&entries), ["", "turn_weight", "turn_weight", "", "turn_weight", "unknown_part"]);
        entries.truncate(1);
        let sample = &samples(entries)[0];
        let texts: Vec<&str> = sample.turns.iter().map(|turn| turn.text.as_str()).collect();
        assert_eq!((texts, sample.images.len()), (vec!["Be brief.", "<image>\nWhat?", "A cat."], 1));
    }

    #[test]
    fn a_data_url_is_the_image_itself() {
        let line = r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url":
            "data:image/png;base64,iVBORw0K"}}, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "A."}]}"#;
        let samples = samples(read_json("a.jsonl", line.replace('\n', "").as_bytes(), Openai).expect("reads"));
        let vela_types::ImageRef::Bytes { data, .. } = &samples[0].images[0] else { panic!("bytes") };
        assert_eq!(&data[..], b"\x89PNG\r\n");
    }
}
