//! LLaVA records: a JSON list or JSON lines of `{id, image, conversations: [{from, value}], system_prompt}`.
//!
//! White space: CRLF becomes LF and each turn is trimmed; nothing inside a turn moves, so `<image>` stays first or last
//! as the file has it.

use serde_json::Value;
use vela_types::{Role, Turn};

use super::fields::{Place, TurnFields, clean, image_names};
use super::json_file::{Head, JsonFormat};
use super::{Fault, RawContent};

/// LLaVA-Pretrain, CC3M `chat.json`, Instruct-150K, the 665K mix, and what follows their layout.
pub(super) struct Llava;

/// `from` and `value`; files converted by others have the roles of OpenAI there.
pub(super) const TURNS: TurnFields<'_> = TurnFields {
    role: "from",
    text: "value",
    roles: &[
        ("human", Role::User),
        ("gpt", Role::Assistant),
        ("system", Role::System),
        ("user", Role::User),
        ("assistant", Role::Assistant),
    ],
};

impl JsonFormat for Llava {
    const SOURCE: &'static str = "llava";

    fn head(&self, bytes: &[u8]) -> Result<Head, serde_json::Error> {
        Head::of_conversations(bytes)
    }

    fn content(&self, record: &Value, _part: u32, place: &Place<'_>) -> Result<RawContent, Fault> {
        let images = place.resolve(&image_names(&record["image"], "image")?)?;
        let mut turns = TURNS.read_all(&record["conversations"], "conversations")?;
        if let Some(system) = record["system_prompt"].as_str() {
            turns.insert(0, Turn::system(clean(system)));
        }
        place.dialogue(Self::SOURCE, images, turns)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use vela_types::Sample;

    use super::super::json_file::JsonFile;
    use super::super::testing::{causes, read_json};
    use super::super::{Entry, RawFile, SourceContext};
    use super::*;
    use crate::PrepareError;

    fn entries(name: &str, content: &[u8]) -> Result<Vec<Entry>, PrepareError> {
        read_json(name, content, Llava)
    }

    fn record(fields: &str, question: &str) -> String {
        format!(
            r#"{{{fields}"conversations":[{{"from":"human","value":"{question}"}},{{"from":"gpt","value":"An answer."}}]}}"#
        )
    }

    #[test]
    fn lists_as_records_and_keys_that_stand_twice_are_rejects() {
        let turns = r#"[{"from":"human","value":"<image>hi"},{"from":"gpt","value":"A."}]"#;
        let lines = [
            format!(r#"{{"id":"1","image":"a.jpg","conversations":{turns}}}"#),
            format!(r#"["2","a.jpg",{turns}]"#),
            format!(r#"{{"id":"3","image":"a.jpg","image":"b.jpg","conversations":{turns}}}"#),
            format!(r#"{{"id":"4","x":1,"x":1,"conversations":{turns}}}"#),
            "7".to_owned(),
            format!(r#"{{"id":"5","conversations":{turns}"#),
        ];
        let entries = entries("a.jsonl", lines.join("\n").as_bytes()).expect("lines");
        let expected = ["", "wrong_type", "duplicate_key", "duplicate_key", "wrong_type", "broken_json"];
        assert_eq!(causes(&entries), expected);
        let detail = |at: usize| entries[at].content.as_ref().expect_err("a reject").detail.clone();
        assert!(detail(1).contains("expected an object, found a list"), "{}", detail(1));
        assert!(detail(2).contains("`image`"), "{}", detail(2));
        assert_eq!(detail(5), "line 6: EOF while parsing an object");
    }

    #[test]
    fn ids_images_and_marks_in_every_form_are_read() {
        let lines = [
            record(r#""id":"a","image":"x.jpg","#, r"<image>\r\nWhat?"),
            record(r#""id":7,"image":"x.jpg","#, r"What?\n<image>"),
            record("", "No image here?"),
            record(r#""image":["x.jpg","y.jpg"],"#, "<image><image> Which?"),
            record(r#""image":"x.jpg, y.png","#, "<image><image> Which?"),
            record(r#""image":"a, b.jpg","#, "<image> One file with a comma?"),
            record(r#""id":"t","image":"","#, "Text?"),
        ];
        let entries = entries("a.jsonl", format!("\u{feff}{}\r\n\r\n", lines.join("\r\n")).as_bytes()).expect("reads");
        let samples: Vec<&Sample> = entries
            .iter()
            .map(|entry| match &entry.content {
                Ok(RawContent::Dialogue(sample)) => sample,
                other => panic!("{other:?}"),
            })
            .collect();
        let ids: Vec<&str> = samples.iter().map(|sample| sample.id.as_str()).collect();
        assert_eq!(ids[..4], ["llava/set/a", "llava/set/7", "llava/set/#2", "llava/set/#3"]);
        assert_eq!(samples.iter().map(|sample| sample.images.len()).collect::<Vec<_>>(), [1, 1, 0, 2, 2, 1, 0]);
        assert_eq!(samples[0].turns[0].text, "<image>\nWhat?");
        assert_eq!(samples[1].turns[0].text, "What?\n<image>");
    }

    #[test]
    fn every_kind_of_dirt_is_one_named_reject_and_the_rest_goes_on() {
        let mut lines: Vec<Vec<u8>> = [
            record(r#""id":"a","image":"x.jpg","#, "no mark"),
            record(r#""id":"b","image":"x.jpg","#, "<image><image> twice"),
            record(r#""id":"c","#, "<image> in a text-only record"),
            r#"{"id":"d","image":"x.jpg","conversations":[{"from":"human","value":"<image> Hi"}]}"#.into(),
            r#"{"id":"e","conversations":[{"from":"gpt","value":"First."},{"from":"human","value":"Hi"}]}"#.into(),
            r#"{"id":"f","conversations":[{"from":"human","value":"Hi"},{"from":"gpt","value":" "}]}"#.into(),
            r#"{"id":"g","conversations":[{"from":"tool","value":"Hi"}]}"#.into(),
            r#"{"id":"h"}"#.into(),
            r#"{"id":"i","conversations":[}"#.into(),
            "[1, 2]".into(),
            r#"{"id":"j","image":5,"conversations":[]}"#.into(),
            r#"{"id":"k","image":"http://host/k.jpg","conversations":[]}"#.into(),
            record(r#""id":"fine","#, "Hello?"),
        ]
        .map(String::into_bytes)
        .into();
        lines.push(b"{\"id\":\"\xff\"}".to_vec());
        // The first line starts with an object, so the file is lines although one line is a list.
        let entries = entries("a.jsonl", &lines.join(&b'\n')).expect("reads");
        let expected = [
            "mark_count",
            "mark_count",
            "mark_count",
            "odd_turns",
            "odd_turns",
            "empty_turn",
            "unknown_role",
            "missing_field",
            "broken_json",
            "wrong_type",
            "wrong_type",
            "missing_image",
            "",
            "not_utf8",
        ];
        assert_eq!(causes(&entries), expected);
    }

    #[test]
    fn repeated_ids_keep_their_own_text_and_copies_are_rejected() {
        let lines = [
            record(r#""id":"a","#, "First?"),
            record(r#""id":"a","#, "Second?"),
            record(r#""id":"a","#, "First?"),
            record(r#""id":"b","#, "First?"),
            record(r#""id":"a","#, "Third?"),
        ];
        let entries = entries("a.json", format!("[{}]", lines.join(",")).as_bytes()).expect("reads");
        assert_eq!(causes(&entries), ["", "", "duplicate_record", "", ""]);
        let ids: Vec<&str> =
            entries.iter().filter_map(|entry| entry.content.as_ref().ok()).map(RawContent::id).collect();
        assert_eq!(ids, ["llava/set/a", "llava/set/a~2", "llava/set/b", "llava/set/a~3"]);
    }

    #[test]
    fn a_list_inside_the_list_is_one_reject() {
        let good = record(r#""id":"a","#, "Hi?");
        let text = format!("[[1, 2], {good}, [], [{good}], 7, null, \"a\"]");
        let entries = entries("a.json", text.as_bytes()).expect("reads");
        let wrong = "wrong_type";
        assert_eq!(causes(&entries), [wrong, "", wrong, wrong, wrong, wrong, wrong]);
    }

    #[test]
    fn a_broken_list_is_a_fault_of_the_file_with_its_place() {
        let cases =
            [(&b"[{\"id\": 1},\n {\"id\" 2}]"[..], "line 2"), (b"[{\"id\": 1}", "byte 10"), (b"[{}] x", "byte 5")];
        for (text, place) in cases {
            let fault = entries("a.json", text).expect_err("broken").to_string();
            assert!(fault.contains("a.json") && fault.contains(place), "{fault}");
        }
    }

    #[test]
    fn a_range_deep_in_the_file_reads_the_same_entries() {
        let folder = tempfile::tempdir().expect("temp folder");
        for (name, open, between, close) in [("a.json", "[", ",\n", "]"), ("a.jsonl", "", "\n", "\n")] {
            let lines: Vec<String> = (0..700).map(|at| record(&format!("\"id\":{at},"), "Hi?")).collect();
            let path = folder.path().join(name);
            std::fs::write(&path, format!("{open}{}{close}", lines.join(between))).expect("file");
            let file = JsonFile::open(&path, SourceContext::for_test("set"), Llava).expect("scans");
            let mut ids = Vec::new();
            let mut collect = |entry: Entry| {
                ids.push(entry.content.expect("sound").id().to_owned());
                ControlFlow::Continue(())
            };
            file.read(510..515, &mut collect).expect("reads");
            assert_eq!(ids, (510..515).map(|at| format!("llava/set/{at}")).collect::<Vec<_>>());
        }
    }
}
