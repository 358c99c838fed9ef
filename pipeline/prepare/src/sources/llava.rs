//! LLaVA records: a JSON list or JSON lines of `{id, image, conversations: [{from, value}]}`.
//!
//! White space: CRLF becomes LF and each turn is trimmed; nothing inside a turn moves, so `<image>` stays first or last
//! as the file has it. Ids repeat in the published files, so a sample's id is `llava/<file>/<id>`, with `~2`, `~3`, ... from
//! the second record of that id on; a record that repeats an earlier one byte for byte is rejected as `duplicate_record`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use vela_types::{Fingerprint, ImageRef, Language, Role, Sample, Turn};

use super::images::ImageListing;
use super::records::{CutError, Cutter, Layout, RawRecord};
use super::{Emit, Entry, Fault, ImageFolder, RawContent, RawFile};
use crate::PrepareError;

/// One seek mark every this many records.
const MARK_EVERY: u64 = 256;
/// Names that end so may stand in a comma list.
const IMAGE_ENDINGS: [&str; 10] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"];

/// What the scan keeps of a repeated id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// Same bytes as the record of this number.
    Copy(u64),
    /// The n-th record of its id, from 2.
    Nth(u32),
}

/// One scanned file: seek marks and repeated ids, no record.
pub(super) struct LlavaFile {
    path: PathBuf,
    stem: String,
    images: Arc<ImageFolder>,
    layout: Layout,
    num_records: u64,
    /// Offset and line of records 0, 256, 512, ...
    marks: Vec<(u64, u64)>,
    repeats: HashMap<u64, Repeat>,
    /// Records with a field `conversations`.
    num_dialogues: u64,
    listing: Fingerprint,
}

/// What the scan parses of a record.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    id: Value,
    image: Value,
    conversations: Option<IgnoredAny>,
}

impl LlavaFile {
    pub(super) fn open(path: &Path, stem: String, images: Arc<ImageFolder>) -> Result<Self, PrepareError> {
        let reader = BufReader::new(File::open(path).map_err(PrepareError::io("read", path))?);
        let mut cutter = Cutter::start(reader).map_err(|fault| cut_fault(path, fault))?;
        let mut this = Self {
            path: path.to_owned(),
            stem,
            images,
            layout: cutter.layout(),
            num_records: 0,
            marks: Vec::new(),
            repeats: HashMap::new(),
            num_dialogues: 0,
            listing: Fingerprint::default(),
        };
        let (mut keys, mut listing) = (Vec::new(), ImageListing::default());
        while let Some(record) = cutter.next_record().map_err(|fault| cut_fault(path, fault))? {
            if this.num_records.is_multiple_of(MARK_EVERY) {
                this.marks.push((record.offset, record.line));
            }
            let head = this.scan_head(&record)?;
            keys.extend(id_text(&head.id).map(|id| Key::new(&id, &record, this.num_records)));
            for name in image_names(&head.image).unwrap_or_default() {
                this.images.note(&mut listing, &name, this.folder());
            }
            this.num_dialogues += u64::from(head.conversations.is_some());
            this.num_records += 1;
        }
        this.repeats = find_repeats(keys);
        this.listing = listing.fingerprint();
        Ok(this)
    }

    /// What the scan needs of a record; an empty one for a record with a fault of its own, such as a list in its place.
    /// In a list a syntax error is a fault of the file, as nothing after it can be trusted.
    fn scan_head(&self, record: &RawRecord) -> Result<Head, PrepareError> {
        let parsed = match record.bytes.first() {
            Some(b'{') => serde_json::from_slice::<Head>(&record.bytes),
            _ => serde_json::from_slice::<IgnoredAny>(&record.bytes).map(|_| Head::default()),
        };
        match parsed {
            Ok(head) => Ok(head),
            Err(fault) if self.layout == Layout::List && !fault.is_data() && is_utf8(&record.bytes) => {
                Err(PrepareError::BrokenFile {
                    path: self.path.clone(),
                    position: format!(
                        "record {} at byte {} (line {})",
                        self.num_records,
                        record.offset,
                        record.line + fault.line() as u64 - 1
                    ),
                    expected: "a JSON value",
                    found: format!("`{fault}`"),
                })
            }
            Err(_) => Ok(Head::default()),
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn parse(&self, record: u64, raw: &RawRecord) -> Result<RawContent, Fault> {
        let text = std::str::from_utf8(&raw.bytes).map_err(|fault| {
            let at = raw.offset + fault.valid_up_to() as u64;
            Fault::new("not_utf8", format!("line {}, byte {at} of the file: expected UTF-8", raw.line))
        })?;
        let fields: Value = serde_json::from_str(text)
            .map_err(|fault| Fault::new("broken_json", format!("line {}: {fault}", raw.line)))?;
        let own_id = id_text(&fields["id"]);
        let id = self.sample_id(record, own_id.as_deref());
        if let Some(Repeat::Copy(first)) = self.repeats.get(&record) {
            return Err(Fault::new("duplicate_record", format!("same id and content as record {first}")).of(&id));
        }
        self.sample(&id, &fields).map(RawContent::Dialogue).map_err(|fault| fault.of(&id))
    }

    fn sample_id(&self, record: u64, own_id: Option<&str>) -> String {
        let stem = &self.stem;
        match (own_id, self.repeats.get(&record)) {
            (None, _) => format!("llava/{stem}/#{record}"),
            (Some(id), Some(Repeat::Nth(nth))) => format!("llava/{stem}/{id}~{nth}"),
            (Some(id), _) => format!("llava/{stem}/{id}"),
        }
    }

    fn sample(&self, id: &str, fields: &Value) -> Result<Sample, Fault> {
        let names = image_names(&fields["image"])?;
        let images: Vec<ImageRef> =
            names.iter().map(|name| self.images.resolve(name, self.folder())).collect::<Result<_, _>>()?;
        let Some(conversations) = fields["conversations"].as_array() else {
            return Err(Fault::new("missing_field", "field `conversations`: expected a list"));
        };
        let turns = conversations.iter().enumerate().map(|(at, turn)| read_turn(at, turn));
        let mut turns: Vec<Turn> = turns.collect::<Result<_, _>>()?;
        turns.retain(|turn| turn.role != Role::System || !turn.text.is_empty());
        let all_text: String = turns.iter().map(|turn| turn.text.as_str()).collect();
        let language = Language::guess(&all_text);
        let sample = Sample { id: id.to_owned(), source: "llava".to_owned(), language, images, turns };
        sample.check().map_err(|fault| Fault::new(fault.cause(), fault.to_string()))?;
        Ok(sample)
    }
}

impl RawFile for LlavaFile {
    fn num_records(&self) -> u64 {
        self.num_records
    }

    fn num_recognized(&self) -> u64 {
        self.num_dialogues
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        let mark = (records.start / MARK_EVERY) as usize;
        let Some(&(offset, line)) = self.marks.get(mark).filter(|_| !records.is_empty()) else { return Ok(()) };
        let mut file = File::open(&self.path).map_err(PrepareError::io("read", &self.path))?;
        file.seek(SeekFrom::Start(offset)).map_err(PrepareError::io("read", &self.path))?;
        let mut cutter = Cutter::resume(BufReader::new(file), self.layout, offset, line);
        let mut record = mark as u64 * MARK_EVERY;
        while record < records.end
            && let Some(raw) = cutter.next_record().map_err(|fault| cut_fault(&self.path, fault))?
        {
            let wanted = records.contains(&record);
            if wanted && emit(Entry { record, content: self.parse(record, &raw) }) == ControlFlow::Break(()) {
                break;
            }
            record += 1;
        }
        Ok(())
    }
}

/// Hashes of id and content, with the record's number.
struct Key {
    id: u64,
    content: u64,
    record: u64,
}

impl Key {
    fn new(id: &str, raw: &RawRecord, record: u64) -> Self {
        Self { id: short_hash(id.as_bytes()), content: short_hash(&raw.bytes), record }
    }
}

/// 24 bytes per record while scanning; afterwards only records whose id came before are kept.
fn find_repeats(mut keys: Vec<Key>) -> HashMap<u64, Repeat> {
    keys.sort_unstable_by_key(|key| (key.id, key.record));
    let mut repeats = HashMap::new();
    for group in keys.chunk_by(|left, right| left.id == right.id).filter(|group| group.len() > 1) {
        let mut first_of: HashMap<u64, u64> = HashMap::new();
        for key in group {
            match first_of.get(&key.content) {
                Some(&first) => _ = repeats.insert(key.record, Repeat::Copy(first)),
                None => {
                    first_of.insert(key.content, key.record);
                    if first_of.len() > 1 {
                        repeats.insert(key.record, Repeat::Nth(first_of.len() as u32));
                    }
                }
            }
        }
    }
    repeats
}

fn cut_fault(path: &Path, fault: CutError) -> PrepareError {
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

fn is_utf8(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

fn short_hash(bytes: &[u8]) -> u64 {
    Fingerprint(*blake3::hash(bytes).as_bytes()).to_seed()
}

/// Ids are texts or integers; anything else counts as absent.
fn id_text(id: &Value) -> Option<String> {
    match id {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A name, a list of names, or a comma list (only if each part ends like an image file); none for a text-only record.
fn image_names(image: &Value) -> Result<Vec<String>, Fault> {
    let wrong = || Fault::new("wrong_type", "field `image`: expected a text or a list of texts");
    match image {
        Value::Null => Ok(vec![]),
        Value::String(text) if text.trim().is_empty() => Ok(vec![]),
        Value::String(text) => {
            let parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
            let is_list = parts.iter().all(|part| {
                let ending = part.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
                ending.is_some_and(|ending| IMAGE_ENDINGS.contains(&ending.as_str()))
            });
            Ok(if is_list { parts } else { vec![text.trim().to_owned()] })
        }
        Value::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

fn read_turn(at: usize, turn: &Value) -> Result<Turn, Fault> {
    let role = match turn["from"].as_str() {
        Some("human" | "user") => Role::User,
        Some("gpt" | "assistant") => Role::Assistant,
        Some("system") => Role::System,
        Some(other) => {
            let detail = format!("turn {at}, field `from`: expected human, gpt or system, found `{other}`");
            return Err(Fault::new("unknown_role", detail));
        }
        None => return Err(Fault::new("missing_field", format!("turn {at}, field `from`: expected a text"))),
    };
    match &turn["value"] {
        Value::String(text) => Ok(Turn { role, text: text.replace("\r\n", "\n").trim().to_owned() }),
        Value::Null => Err(Fault::new("empty_turn", format!("turn {at}, field `value`: expected text, found none"))),
        _ => Err(Fault::new("wrong_type", format!("turn {at}, field `value`: expected a text"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(name: &str, content: &[u8]) -> Result<Vec<Entry>, PrepareError> {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("file");
        let images = Arc::new(ImageFolder::open(None, None)?);
        let file = LlavaFile::open(&path, "set".into(), images)?;
        let mut entries = Vec::new();
        file.read(0..file.num_records(), &mut |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        })?;
        assert_eq!(entries.len() as u64, file.num_records());
        Ok(entries)
    }

    fn causes(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.content.as_ref().err().map_or("", |fault| fault.cause)).collect()
    }

    fn record(fields: &str, question: &str) -> String {
        format!(
            r#"{{{fields}"conversations":[{{"from":"human","value":"{question}"}},{{"from":"gpt","value":"An answer."}}]}}"#
        )
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
            "missing_field",
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
        let wrong = "missing_field";
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
            let images = Arc::new(ImageFolder::open(None, None).expect("no folder"));
            let file = LlavaFile::open(&path, "set".into(), images).expect("scans");
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
