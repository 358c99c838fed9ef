//! LLaMA-Factory's dialogues: `messages` and `images` in JSON, JSON lines or Parquet, under the names that its registry
//! `dataset_info.json` gives them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vela_types::{ImageRef, Role, Turn};

use super::fields::{Place, TurnFields, clean, id_text, image_names};
use super::json_file::{Head, JsonFormat};
use super::table_file::{Row, TableFormat};
use super::{Fault, RawContent, cells};
use crate::PrepareError;
use crate::input_path::check_input;

const SOURCE: &str = "sharegpt";
const REGISTRY: &str = "dataset_info.json";

/// Names of fields and roles.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Columns {
    messages: String,
    images: String,
    /// Videos and sounds, which no sample can hold.
    media: [String; 2],
    system: String,
    role: String,
    content: String,
    roles: Vec<(String, Role)>,
}

impl Default for Columns {
    /// Those of `mllm_demo`, which most data sets published for LLaMA-Factory have.
    fn default() -> Self {
        Self::new(&Entry { tags: Tags::openai(), ..Entry::default() }, "messages")
    }
}

/// What the registry says of a data set.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    file_name: Option<String>,
    formatting: Option<String>,
    ranking: bool,
    columns: Names,
    tags: Tags,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Names {
    messages: Option<String>,
    images: Option<String>,
    videos: Option<String>,
    audios: Option<String>,
    system: Option<String>,
    chosen: Option<String>,
    rejected: Option<String>,
    kto_tag: Option<String>,
}

impl Entry {
    /// The key that says that the set holds preferences between answers, not dialogues to learn.
    fn preference(&self) -> Option<&'static str> {
        let Names { chosen, rejected, kto_tag, .. } = &self.columns;
        let keys = [
            ("ranking", self.ranking),
            ("kto_tag", kto_tag.is_some()),
            ("chosen", chosen.is_some()),
            ("rejected", rejected.is_some()),
        ];
        keys.into_iter().find(|(_, is_there)| *is_there).map(|(key, _)| key)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Tags {
    role_tag: Option<String>,
    content_tag: Option<String>,
    user_tag: Option<String>,
    assistant_tag: Option<String>,
    system_tag: Option<String>,
}

impl Tags {
    fn openai() -> Self {
        let name = |name: &str| Some(name.to_owned());
        let (role_tag, content_tag) = (name("role"), name("content"));
        Self { role_tag, content_tag, user_tag: name("user"), assistant_tag: name("assistant"), system_tag: None }
    }
}

impl Columns {
    /// The registry's names; for those it leaves out, LLaMA-Factory's defaults.
    fn new(entry: &Entry, messages: &str) -> Self {
        let or = |name: &Option<String>, default: &str| name.clone().unwrap_or_else(|| default.to_owned());
        let Tags { role_tag, content_tag, user_tag, assistant_tag, system_tag } = &entry.tags;
        Self {
            messages: or(&entry.columns.messages, messages),
            images: or(&entry.columns.images, "images"),
            media: [or(&entry.columns.videos, "videos"), or(&entry.columns.audios, "audios")],
            system: or(&entry.columns.system, "system"),
            role: or(role_tag, "from"),
            content: or(content_tag, "value"),
            roles: vec![
                (or(user_tag, "human"), Role::User),
                (or(assistant_tag, "gpt"), Role::Assistant),
                (or(system_tag, "system"), Role::System),
            ],
        }
    }

    /// Refuses a record that names videos or sounds, by what `value` shows of a column.
    fn check_media(&self, value: impl Fn(&str) -> Value) -> Result<(), Fault> {
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.trim().is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        match self.media.iter().find(|column| !is_empty(&value(column))) {
            None => Ok(()),
            Some(column) => Err(Fault::new(
                "other_media",
                format!("field `{column}`: expected images alone, found videos or sounds"),
            )),
        }
    }

    fn turns(&self, messages: &Value, system: &Value) -> Result<Vec<Turn>, Fault> {
        let roles: Vec<(&str, Role)> = self.roles.iter().map(|(name, role)| (name.as_str(), *role)).collect();
        let fields = TurnFields { role: &self.role, text: &self.content, roles: &roles };
        let mut turns = fields.read_all(messages, &self.messages)?;
        if let Some(system) = system.as_str() {
            turns.insert(0, Turn::system(clean(system)));
        }
        Ok(turns)
    }
}

/// The file of `dataset` and its columns, from the registry `input` or the one in the folder `input`.
pub(super) fn registered(input: &Path, dataset: &str) -> Result<(PathBuf, Columns), PrepareError> {
    let registry = if input.is_dir() { input.join(REGISTRY) } else { input.to_owned() };
    check_input(&registry)?;
    let text = fs::read(&registry).map_err(PrepareError::io("read", &registry))?;
    let wrong = |expected: &str, found: String| PrepareError::Flag {
        flag: "--dataset",
        expected: format!("{expected} in `{}`", registry.display()),
        found,
    };
    let mut entries: serde_json::Map<String, Value> =
        serde_json::from_slice(&text).map_err(|fault| wrong("a registry", fault.to_string()))?;
    let Some(entry) = entries.remove(dataset) else {
        let names: Vec<String> = entries.keys().map(|name| format!("`{name}`")).collect();
        return Err(wrong(&format!("one of {}", names.join(", ")), dataset.to_owned()));
    };
    let entry: Entry = serde_json::from_value(entry).map_err(|fault| wrong("a data set", fault.to_string()))?;
    if let Some(key) = entry.preference() {
        return Err(wrong("a data set of dialogues", format!("{dataset}` of preferences, by its key `{key}")));
    }
    match (entry.formatting.as_deref(), &entry.file_name) {
        (Some("sharegpt" | "openai"), Some(file)) => {
            let folder = registry.parent().unwrap_or(Path::new(""));
            Ok((folder.join(file), Columns::new(&entry, "conversations")))
        }
        (Some("sharegpt" | "openai"), None) => {
            Err(wrong("a data set with a local `file_name`", format!("{dataset}, which names a hub")))
        }
        (formatting, _) => {
            let found = format!("{dataset}, which is `{}`", formatting.unwrap_or("alpaca"));
            Err(wrong("a data set with `formatting` sharegpt or openai", found))
        }
    }
}

/// Records with these columns.
pub(super) struct Sharegpt(pub(super) Columns);

impl JsonFormat for Sharegpt {
    const SOURCE: &'static str = SOURCE;

    fn head(&self, bytes: &[u8]) -> Result<Head, serde_json::Error> {
        let record: Value = serde_json::from_slice(bytes)?;
        Ok(Head {
            id: id_text(&record["id"]),
            images: image_names(&record[&self.0.images], &self.0.images).unwrap_or_default(),
            num_parts: 1,
            is_recognized: record.get(&self.0.messages).is_some(),
        })
    }

    fn content(&self, record: &Value, _part: u32, place: &Place<'_>) -> Result<RawContent, Fault> {
        let columns = &self.0;
        columns.check_media(|column| record[column].clone())?;
        let images = place.resolve(&image_names(&record[&columns.images], &columns.images)?)?;
        let turns = columns.turns(&record[&columns.messages], &record[&columns.system])?;
        place.dialogue(SOURCE, images, turns)
    }
}

impl TableFormat for Sharegpt {
    const SOURCE: &'static str = SOURCE;

    fn required(&self) -> Vec<&str> {
        vec![&self.0.messages]
    }

    fn optional(&self) -> Vec<&str> {
        let [videos, audios] = &self.0.media;
        vec![&self.0.images, &self.0.system, videos, audios]
    }

    fn image_columns(&self) -> Vec<&str> {
        vec![&self.0.images]
    }

    fn content(&self, row: &Row<'_>, place: &Place<'_>) -> Result<RawContent, Fault> {
        let columns = &self.0;
        columns.check_media(|column| cells::to_json(&row.value(column)))?;
        let images: Vec<ImageRef> = cells::images(&row.value(&columns.images), &columns.images, place)?;
        let (messages, system) = (row.value(&columns.messages), row.value(&columns.system));
        let turns = columns.turns(&cells::to_json(&messages), &cells::to_json(&system))?;
        place.dialogue(SOURCE, images, turns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::testing::{causes, read_json};

    /// What the registry says of a set with this entry.
    fn registered_as(entry: &str) -> Result<(PathBuf, Columns), PrepareError> {
        let folder = tempfile::tempdir().expect("temp folder");
        fs::write(folder.path().join(REGISTRY), format!(r#"{{"set": {entry}}}"#)).expect("file");
        registered(folder.path(), "set")
    }

    #[test]
    fn sets_of_preferences_are_refused_by_what_they_are() {
        let cases = [
            (
                r#"{"file_name": "dpo_en_demo.json", "ranking": true, "formatting": "sharegpt",
                "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}}"#,
                "ranking",
            ),
            (
                r#"{"file_name": "kto_en_demo.json", "formatting": "sharegpt",
                "columns": {"messages": "messages", "kto_tag": "label"}, "tags": {"role_tag": "role"}}"#,
                "kto_tag",
            ),
            (r#"{"file_name": "a.json", "formatting": "sharegpt", "columns": {"chosen": "yes"}}"#, "chosen"),
        ];
        for (entry, said) in cases {
            let fault = registered_as(entry).expect_err(said);
            let text = fault.to_string();
            assert!(fault.is_usage() && text.contains("`set`") && text.contains(said), "{text}");
        }
        assert!(registered_as(r#"{"file_name": "a.json", "ranking": false, "formatting": "sharegpt"}"#).is_ok());
    }

    #[test]
    fn records_with_videos_or_sounds_are_rejected_under_any_name() {
        let messages =
            r#""messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]"#;
        let fields = [
            "\"images\": []",
            "\"videos\": [\"1.mp4\"]",
            "\"audios\": [\"1.flac\"]",
            "\"videos\": [], \"audios\": null",
            "\"clips\": \"1.mp4\"",
        ];
        let lines: Vec<String> = fields.iter().map(|field| format!("{{{messages}, {field}}}")).collect();
        let read =
            |columns: Columns| read_json("a.jsonl", lines.join("\n").as_bytes(), Sharegpt(columns)).expect("reads");
        assert_eq!(causes(&read(Columns::default())), ["", "other_media", "other_media", "", ""]);
        let entry = r#"{"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages", "videos": "clips"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}"#;
        let (_, columns) = registered_as(entry).expect("an entry");
        assert_eq!(causes(&read(columns))[4], "other_media");
    }
}
