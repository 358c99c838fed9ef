//! A JSON list or JSON lines of records, scanned once and read at any record without holding more than one.
//!
//! Ids repeat in the published files, so a sample's id is `<source>/<file>/<id>`, with `~2`, `~3`, ... from the second
//! record of that id on; a record that repeats an earlier one byte for byte is rejected as `duplicate_record`. A record
//! without an id is `#<record>`; where a record holds several samples they are `<id>#0`, `<id>#1`, ... Signs with a meaning in
//! sample ids are escaped in a record's own ([`escaped`]).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use vela_types::Fingerprint;

use super::fields::{Place, escaped, id_text, image_names};
use super::images::ImageListing;
use super::records::{CutError, Cutter, Layout, RawRecord, TOO_LONG, is_delimited_object};
use super::repeats::{Repeat, RepeatFinder};
use super::{Emit, Entry, Fault, RawContent, RawFile, SourceContext};
use crate::PrepareError;
use crate::json_records::json_words;

/// One seek mark every this many records.
const MARK_EVERY: u64 = 256;

/// How the records of a format are read.
pub(super) trait JsonFormat: Send + Sync {
    /// The source's name.
    const SOURCE: &'static str;
    /// True if a record may be a JSON list, so that `[` does not say that the file is one.
    const HAS_LIST_RECORDS: bool = false;

    /// What the scan needs of a record.
    fn head(&self, bytes: &[u8]) -> Result<Head, serde_json::Error>;

    /// Sample `part` of a record, from 0 to the head's `num_parts`.
    fn content(&self, record: &Value, part: u32, place: &Place<'_>) -> Result<RawContent, Fault>;
}

/// What the scan keeps of a record.
pub(super) struct Head {
    /// The record's own id.
    pub(super) id: Option<String>,
    /// Names of its images.
    pub(super) images: Vec<String>,
    /// Samples it holds.
    pub(super) num_parts: u32,
    /// True if it looks like a record of the format.
    pub(super) is_recognized: bool,
}

impl Default for Head {
    /// That of a record with a fault.
    fn default() -> Self {
        Self { id: None, images: Vec::new(), num_parts: 1, is_recognized: false }
    }
}

/// Where reading can begin.
struct Mark {
    offset: u64,
    line: u64,
    /// The first sample of the record that begins here.
    first: u64,
}

/// One scanned file: seek marks and repeated ids, no record.
pub(super) struct JsonFile<F> {
    path: PathBuf,
    context: SourceContext,
    format: F,
    layout: Layout,
    /// Elements of the list, or lines.
    num_elements: u64,
    /// Samples they hold, faulty ones among them.
    num_records: u64,
    num_recognized: u64,
    /// Of records 0, 256, 512, ...
    marks: Vec<Mark>,
    /// By the number of a record's first sample.
    repeats: HashMap<u64, Repeat>,
    listing: Fingerprint,
}

impl<F: JsonFormat> JsonFile<F> {
    pub(super) fn open(path: &Path, context: SourceContext, format: F) -> Result<Self, PrepareError> {
        let reader = BufReader::new(File::open(path).map_err(PrepareError::io("read", path))?);
        let is_lines = F::HAS_LIST_RECORDS && path.extension().is_some_and(|ending| ending != "json");
        let cutter = if is_lines { Cutter::start_lines(reader) } else { Cutter::start(reader) };
        let mut cutter = cutter.map_err(|fault| cut_fault(path, fault))?;
        let mut this = Self {
            path: path.to_owned(),
            context,
            format,
            layout: cutter.layout(),
            num_elements: 0,
            num_records: 0,
            num_recognized: 0,
            marks: Vec::new(),
            repeats: HashMap::new(),
            listing: Fingerprint::default(),
        };
        let (mut finder, mut listing) = (RepeatFinder::default(), ImageListing::default());
        while let Some(record) = cutter.next_record().map_err(|fault| cut_fault(path, fault))? {
            this.scan(&record, &mut finder, &mut listing)?;
        }
        this.repeats = finder.finish().map_err(PrepareError::io("sort the ids of", path))?;
        this.listing = listing.fingerprint();
        Ok(this)
    }

    fn scan(
        &mut self,
        record: &RawRecord,
        finder: &mut RepeatFinder,
        listing: &mut ImageListing,
    ) -> Result<(), PrepareError> {
        if self.num_elements.is_multiple_of(MARK_EVERY) {
            self.marks.push(Mark { offset: record.offset, line: record.line, first: self.num_records });
        }
        let head = self.scan_head(record)?;
        if let Some(id) = &head.id {
            let added = finder.add(id, &record.bytes, self.num_records);
            added.map_err(PrepareError::io("sort the ids of", &self.path))?;
        }
        for name in &head.images {
            self.context.images.note(listing, name, self.folder());
        }
        self.num_recognized += u64::from(head.is_recognized);
        self.num_records += u64::from(head.num_parts);
        self.num_elements += 1;
        Ok(())
    }

    /// What the scan needs of a record; an empty one for a record with a fault of its own, such as a list in its place.
    /// In a list a syntax error is a fault of the file if it leaves open where the record ends, as nothing after it can be trusted.
    fn scan_head(&self, record: &RawRecord) -> Result<Head, PrepareError> {
        if record.is_too_long {
            return Ok(Head::default());
        }
        let parsed = match is_wanted::<F>(&record.bytes) {
            true => self.format.head(&record.bytes),
            false => serde_json::from_slice::<IgnoredAny>(&record.bytes).map(|_| Head::default()),
        };
        match parsed {
            Ok(head) => Ok(head),
            Err(fault) if self.layout == Layout::List && !fault.is_data() && is_open_ended(&record.bytes) => {
                let line = record.line + fault.line() as u64 - 1;
                let position = format!("record {} at byte {} (line {line})", self.num_elements, record.offset);
                let (path, found) = (self.path.clone(), format!("`{}`", json_words(&fault)));
                Err(PrepareError::BrokenFile { path, position, expected: "a JSON value", found })
            }
            Err(_) => Ok(Head::default()),
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The samples of a record, one by one; a record with a fault is one. `first` is the number of its first sample.
    fn parse(&self, record: u64, first: u64, raw: &RawRecord) -> impl Iterator<Item = Result<RawContent, Fault>> {
        let is_wanted = is_wanted::<F>(&raw.bytes);
        let head = if is_wanted { self.format.head(&raw.bytes).unwrap_or_default() } else { Head::default() };
        let fields = parse_fields(raw).and_then(|fields| {
            check_keys(raw)?;
            match is_wanted {
                true => Ok(fields),
                false => Err(Fault::new("wrong_type", format!("expected an object, found {}", kind_of(&fields)))),
            }
        });
        (0..head.num_parts).map(move |part| {
            let fields = fields.as_ref().map_err(Clone::clone)?;
            let repeat = self.repeats.get(&first);
            let mut id = self.sample_id(record, head.id.as_deref(), repeat);
            if head.num_parts > 1 {
                id = format!("{id}#{part}");
            }
            if let Some(Repeat::Copy(original)) = repeat {
                let original = original + u64::from(part);
                return Err(Fault::new("duplicate_record", format!("same id and content as record {original}")).of(&id));
            }
            let place = Place { id: &id, images: &self.context.images, folder: self.folder() };
            self.format.content(fields, part, &place).map_err(|fault| fault.of(&id))
        })
    }

    fn sample_id(&self, record: u64, own_id: Option<&str>, repeat: Option<&Repeat>) -> String {
        let (source, stem) = (F::SOURCE, &self.context.stem);
        match (own_id.map(escaped), repeat) {
            (None, _) => format!("{source}/{stem}/#{record}"),
            (Some(id), Some(Repeat::Nth(nth))) => format!("{source}/{stem}/{id}~{nth}"),
            (Some(id), _) => format!("{source}/{stem}/{id}"),
        }
    }
}

/// False for what cannot be a record of the format, such as a list: serde would take its elements for fields in their order.
fn is_wanted<F: JsonFormat>(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'{') || F::HAS_LIST_RECORDS
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "an object",
        Value::Array(_) => "a list",
        Value::String(_) => "a text",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "null",
    }
}

fn parse_fields(raw: &RawRecord) -> Result<Value, Fault> {
    if raw.is_too_long {
        return Err(Fault::new("too_large", format!("line {}: expected {TOO_LONG}", raw.line)));
    }
    let text = std::str::from_utf8(&raw.bytes).map_err(|fault| {
        let at = raw.offset + fault.valid_up_to() as u64;
        Fault::new("not_utf8", format!("line {}, byte {at} of the file: expected UTF-8", raw.line))
    })?;
    serde_json::from_str(text).map_err(|fault| {
        let line = raw.line + (fault.line() as u64).saturating_sub(1);
        Fault::new("broken_json", format!("line {line}: {}", json_words(&fault)))
    })
}

/// Refuses a record in which a key stands twice in one object, at any depth: which of the two is meant cannot be told.
fn check_keys(raw: &RawRecord) -> Result<(), Fault> {
    match serde_json::from_slice::<Keys>(&raw.bytes) {
        Ok(Keys { repeated: Some(key) }) => {
            Err(Fault::new("duplicate_key", format!("field `{key}`: expected it once, found it twice")))
        }
        _ => Ok(()),
    }
}

/// The first key that stands twice in an object of a value.
#[derive(Default)]
struct Keys {
    repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        parser.deserialize_any(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Keys, S::Error> {
        let mut found = Keys::default();
        while let Some(item) = items.next_element::<Keys>()? {
            found.repeated = found.repeated.or(item.repeated);
        }
        Ok(found)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut object: M) -> Result<Keys, M::Error> {
        let (mut seen, mut repeated) = (HashSet::new(), None);
        while let Some(key) = object.next_key::<String>()? {
            let inner = object.next_value::<Keys>()?.repeated;
            if repeated.is_none() {
                repeated = if seen.insert(key.clone()) { inner } else { Some(key) };
            }
        }
        Ok(Keys { repeated })
    }
}

impl<F: JsonFormat> RawFile for JsonFile<F> {
    fn num_records(&self) -> u64 {
        self.num_records
    }

    fn num_recognized(&self) -> u64 {
        self.num_recognized
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, samples: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        let after = self.marks.partition_point(|mark| mark.first <= samples.start);
        let Some(nearest) = after.checked_sub(1).filter(|_| !samples.is_empty()) else { return Ok(()) };
        let Mark { offset, line, first } = self.marks[nearest];
        let mut file = File::open(&self.path).map_err(PrepareError::io("read", &self.path))?;
        file.seek(SeekFrom::Start(offset)).map_err(PrepareError::io("read", &self.path))?;
        let mut cutter = Cutter::resume(BufReader::new(file), self.layout, offset, line);
        let (mut record, mut sample) = (nearest as u64 * MARK_EVERY, first);
        while sample < samples.end
            && let Some(raw) = cutter.next_record().map_err(|fault| cut_fault(&self.path, fault))?
        {
            for content in self.parse(record, sample, &raw) {
                let wanted = samples.contains(&sample);
                if wanted && emit(Entry { record: sample, content }) == ControlFlow::Break(()) {
                    return Ok(());
                }
                sample += 1;
            }
            record += 1;
        }
        Ok(())
    }
}

/// A fault of a file that cannot be cut into records.
pub(super) fn cut_fault(path: &Path, fault: CutError) -> PrepareError {
    match fault {
        CutError::Io(source) => PrepareError::io("read", path)(source),
        CutError::Layout(fault) => PrepareError::BrokenFile {
            path: path.to_owned(),
            position: format!("byte {} (line {})", fault.offset, fault.line),
            expected: fault.expected,
            found: fault.found,
        },
    }
}

/// True of a broken record that may end elsewhere.
fn is_open_ended(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok() && !is_delimited_object(bytes)
}

/// Id, image and dialogue of a record, under the names that most formats give them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PlainFields {
    id: Value,
    image: Value,
    conversations: Option<IgnoredAny>,
}

impl Head {
    /// That of a record with `id`, `image` and `conversations`.
    pub(super) fn of_conversations(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let fields: PlainFields = serde_json::from_slice(bytes)?;
        Ok(Self {
            id: id_text(&fields.id),
            images: image_names(&fields.image, "image").unwrap_or_default(),
            num_parts: 1,
            is_recognized: fields.conversations.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::sources::CaptionChoice;
    use crate::sources::ai_challenger::AiChallenger;
    use crate::sources::llava::Llava;
    use crate::sources::openai::Openai;
    use crate::sources::sharegpt::{Columns, Sharegpt};
    use crate::sources::testing::{causes, read_json};

    fn talk(fields: &str, field: &str, role: [&str; 3]) -> String {
        let [name, user, assistant] = role;
        let text = if name == "from" { "value" } else { "content" };
        format!(
            r#"{{{fields}"{field}": [{{"{name}": "{user}", "{text}": "Q"}}, {{"{name}": "{assistant}", "{text}": "A."}}]}}"#
        )
    }

    #[test]
    fn an_odd_value_costs_its_record_and_not_the_list() {
        let llava = |fields: &str| talk(fields, "conversations", ["from", "human", "gpt"]);
        let messages = |fields: &str| talk(fields, "messages", ["role", "user", "assistant"]);
        let odd = [r#""note": "\ud800", "#, r#""score": NaN, "#, "\"note\": \"a\ttab\", "];
        let list = |record: &dyn Fn(&str) -> String| {
            let records: Vec<String> =
                ["", odd[0], odd[1], "", odd[2], ""].iter().map(|fields| record(fields)).collect();
            format!("[{}]", records.join(",\n"))
        };
        let columns = Columns::default();
        let captions = |fields: &str| format!(r#"{{{fields}"image_id": "1.jpg", "caption": ["A."]}}"#);
        let challenger = AiChallenger { choice: CaptionChoice::All, seed: 0 };
        let read = [
            read_json("a.json", list(&llava).as_bytes(), Llava),
            read_json("a.json", list(&messages).as_bytes(), Sharegpt(columns)),
            read_json("a.json", list(&messages).as_bytes(), Openai),
            read_json("a.json", list(&captions).as_bytes(), challenger),
        ];
        for (format, entries) in read.into_iter().enumerate() {
            let mut entries = entries.unwrap_or_else(|fault| panic!("format {format}: {fault}"));
            // The same caption of the same image again.
            entries.retain(|entry| !entry.content.as_ref().is_err_and(|fault| fault.cause == "duplicate_record"));
            let broken = entries.iter().filter(|entry| entry.content.is_err()).count();
            assert_eq!((broken, causes(&entries).contains(&"broken_json")), (3, true), "format {format}: {entries:?}");
        }
    }

    #[test]
    fn no_two_records_share_an_id_whatever_they_call_themselves() {
        let llava = |id: &str, text: &str| {
            let id = if id.is_empty() { String::new() } else { format!("\"id\": \"{id}\", ") };
            talk(&id, "conversations", ["from", "human", "gpt"]).replace("\"Q\"", &format!("\"{text}\""))
        };
        let records = [
            llava("a", "1"),
            llava("a", "2"),
            llava("a~2", "3"),
            llava("", "4"),
            llava("#3", "5"),
            llava("a%7E2", "6"),
            llava("b@2", "7"),
        ];
        let entries = read_json("a.json", format!("[{}]", records.join(",")).as_bytes(), Llava).expect("reads");
        let ids: Vec<&str> = entries.iter().map(|entry| entry.content.as_ref().expect("sound").id()).collect();
        let own = ["a", "a~2", "a%7E2", "#3", "%233", "a%257E2", "b%402"];
        assert_eq!(ids, own.map(|own| format!("llava/set/{own}")));
        let captions = r#"[{"image_id": "x", "caption": ["A.", "B."]}, {"image_id": "x#0", "caption": ["C."]}, {"image_id": "y/x", "caption": ["D."]}]"#;
        let challenger = AiChallenger { choice: CaptionChoice::All, seed: 0 };
        let entries = read_json("a.json", captions.as_bytes(), challenger).expect("reads");
        let ids: BTreeSet<&str> = entries.iter().map(|entry| entry.content.as_ref().expect("sound").id()).collect();
        assert_eq!(
            ids,
            ["x#0", "x#1", "x%230", "y%2Fx"]
                .map(|own| format!("ai-challenger/set/{own}"))
                .iter()
                .map(String::as_str)
                .collect()
        );
    }

    #[test]
    fn a_key_that_stands_twice_is_found_at_any_depth() {
        let sound = talk("", "conversations", ["from", "human", "gpt"]);
        let turn = sound.replace(r#""value": "A.""#, r#""value": "A.", "value": "B.""#);
        let meta = sound.replacen('{', r#"{"meta": [[{"a": {"b": 1, "c": null, "b": 2.5}}], true], "#, 1);
        let own = sound.replacen('{', r#"{"id": 1, "id": 2, "#, 1);
        let same_in_two = sound.replacen('{', r#"{"a": {"b": -1}, "c": {"b": "x"}, "#, 1);
        let lines = [sound, turn, meta, own, same_in_two].join("\n");
        let entries = read_json("a.jsonl", lines.as_bytes(), Llava).expect("reads");
        assert_eq!(causes(&entries), ["", "duplicate_key", "duplicate_key", "duplicate_key", ""]);
        let details = entries[1..4].iter().map(|entry| &entry.content.as_ref().expect_err("twice").detail);
        assert!(details.zip(["`value`", "`b`", "`id`"]).all(|(detail, key)| detail.contains(key)));
    }

    #[test]
    fn a_copy_names_the_record_that_it_repeats() {
        let captions =
            [r#"{"image_id": "x", "caption": ["A.", "B."]}"#, r#"{"image_id": "y", "caption": ["C.", "D."]}"#];
        let list = format!("[{}, {}, {}]", captions[0], captions[1], captions[1]);
        let challenger = AiChallenger { choice: CaptionChoice::All, seed: 0 };
        let entries = read_json("a.json", list.as_bytes(), challenger).expect("reads");
        assert_eq!(causes(&entries), ["", "", "", "", "duplicate_record", "duplicate_record"]);
        let details = entries[4..].iter().map(|entry| entry.content.as_ref().expect_err("a copy").detail.as_str());
        assert_eq!(details.collect::<Vec<_>>(), ["same id and content as record 2", "same id and content as record 3"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_one_reject_and_the_rest_is_read() {
        let line = |text: &str| {
            format!(
                r#"{{"conversations": [{{"from": "human", "value": "{text}"}}, {{"from": "gpt", "value": "A."}}]}}"#
            )
        };
        let lines = [line("Q"), line(&"long ".repeat(14 << 20)), line("Q")];
        let entries = read_json("a.jsonl", lines.join("\n").as_bytes(), Llava).expect("reads");
        assert_eq!(causes(&entries), ["", "too_large", ""]);
        let fault = entries[1].content.as_ref().expect_err("a fault");
        assert!(fault.detail.contains("64 MiB") && fault.detail.contains("line 2"), "{}", fault.detail);
        let list = format!("[{}]", lines.join(","));
        assert!(read_json("a.json", list.as_bytes(), Llava).expect_err("a list").to_string().contains("64 MiB"));
    }
}
