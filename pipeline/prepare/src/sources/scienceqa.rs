//! ScienceQA: `problems.json`, one object of problems by their ids, beside it `pid_splits.json` and
//! `images/<split>/<id>/image.png`. Each problem is one sample, `scienceqa/<file>/<id>`, with or without an image.
//!
//! The text is what LLaVA's `convert_sqa_to_llava.py` writes, character by character: the question without the `Question: ` that
//! ScienceQA's own prompts begin with, context (the hint, or `N/A`), options; then, on a line of its own, the image. As there, double
//! spaces become one, and a backslash with an `n` in a lecture or solution is a line break. Image captions are not used. The answer's
//! form is an [`AnswerForm`].
//!
//! Ids and offsets stay in memory, at most some 130 bytes a problem; the problems do not.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use vela_types::{Fingerprint, IMAGE_MARK, ImageRef, Turn};

use super::fields::{Place, clean, escaped};
use super::images::ImageListing;
use super::{AnswerForm, Emit, Entry, Fault, RawContent, RawFile, SourceContext};
use crate::PrepareError;

const SOURCE: &str = "scienceqa";
/// The name of the file of problems.
pub(super) const PROBLEMS_FILE: &str = "problems.json";
const SPLITS_FILE: &str = "pid_splits.json";
const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];

/// Where the problem of an id is.
#[derive(Clone, Copy)]
enum Found {
    /// Its `:` stands at or after this byte.
    At(u64),
    /// The split names it and the file has none of that id.
    Absent,
    /// An earlier record has the id.
    Again,
}

/// One file of problems.
pub(super) struct ProblemFile {
    path: PathBuf,
    context: SourceContext,
    /// In the order of the file, or of the split.
    problems: Vec<(Box<str>, Found)>,
    num_recognized: u64,
    listing: Fingerprint,
}

impl ProblemFile {
    pub(super) fn open(path: &Path, context: SourceContext) -> Result<Self, PrepareError> {
        let (problems, listing) = (Vec::new(), Fingerprint::default());
        let mut this = Self { path: path.to_owned(), context, problems, num_recognized: 0, listing };
        let (mut listing, mut problems) = (ImageListing::default(), Vec::new());
        let folder = path.parent().unwrap_or(Path::new(""));
        scan(path, &mut |pid, offset, problem| {
            let is_known = problem.get("question").is_some() && problem.get("choices").is_some();
            this.num_recognized += u64::from(is_known);
            if let Ok(Some(names)) = image_names(&pid, &problem) {
                let name = names.iter().find(|name| folder.join(name).is_file()).unwrap_or(&names[0]);
                this.context.images.note(&mut listing, name, folder);
            }
            problems.push((pid.into_boxed_str(), Found::At(offset)));
        })?;
        this.problems = match &this.context.options.split {
            Some(split) => this.of_split(split, problems)?,
            None => mark_repeats(problems),
        };
        this.listing = this.with_split(listing.fingerprint());
        Ok(this)
    }

    /// The problems of a split, in its order.
    fn of_split(&self, split: &str, problems: Vec<(Box<str>, Found)>) -> Result<Vec<(Box<str>, Found)>, PrepareError> {
        let path = self.path.with_file_name(SPLITS_FILE);
        let wrong = |expected: String| PrepareError::Flag { flag: "--split", expected, found: split.to_owned() };
        let file = File::open(&path).map_err(|fault| match fault.kind() {
            io::ErrorKind::NotFound => wrong(format!("`{SPLITS_FILE}` beside `{}`", self.path.display())),
            _ => PrepareError::io("read", &path)(fault),
        })?;
        let mut splits: HashMap<String, Vec<Value>> =
            serde_json::from_reader(BufReader::new(file)).map_err(|fault| {
                let position = format!("line {} column {}", fault.line(), fault.column());
                let (expected, found) = ("a JSON object of lists of ids", format!("`{fault}`"));
                PrepareError::BrokenFile { path: path.clone(), position, expected, found }
            })?;
        let Some(pids) = splits.remove(split) else {
            let mut names: Vec<String> = splits.keys().map(|name| format!("`{name}`")).collect();
            names.sort_unstable();
            return Err(wrong(format!("one of {} in `{}`", names.join(", "), path.display())));
        };
        // As in Python, the last of two problems with one id counts.
        let found: HashMap<Box<str>, Found> = problems.into_iter().collect();
        let chosen = pids.iter().map(|pid| {
            let pid = pid.as_str().map_or_else(|| pid.to_string(), str::to_owned).into_boxed_str();
            let place = found.get(&pid).copied().unwrap_or(Found::Absent);
            (pid, place)
        });
        Ok(mark_repeats(chosen.collect()))
    }

    /// `listing` and, of a split, which problems it names: its file is not an input of its own.
    fn with_split(&self, listing: Fingerprint) -> Fingerprint {
        if self.context.options.split.is_none() {
            return listing;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&listing.0);
        for (pid, _) in &self.problems {
            hasher.update(&(pid.len() as u64).to_le_bytes()).update(pid.as_bytes());
        }
        Fingerprint(*hasher.finalize().as_bytes())
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The problem whose id ends right before `offset`.
    fn read_problem(&self, file: &mut File, offset: u64) -> Result<Value, PrepareError> {
        file.seek(SeekFrom::Start(offset)).map_err(PrepareError::io("read", &self.path))?;
        let mut reader = BufReader::new(file);
        let mut next = [0];
        while next != *b":" {
            reader.read_exact(&mut next).map_err(PrepareError::io("read", &self.path))?;
        }
        Value::deserialize(&mut serde_json::Deserializer::from_reader(reader))
            .map_err(|fault| broken(&self.path, offset, &fault))
    }

    fn content(&self, pid: &str, problem: &Value, id: &str) -> Result<RawContent, Fault> {
        let form = self.context.options.answer.unwrap_or(AnswerForm::Lea);
        let (mut question, answer) = texts(problem, form)?;
        let place = Place { id, images: &self.context.images, folder: self.folder() };
        let mut images = Vec::new();
        if let Some(names) = image_names(pid, problem)? {
            question = format!("{question}\n{IMAGE_MARK}");
            images.push(self.image(&names)?);
        }
        place.dialogue(SOURCE, images, vec![Turn::user(clean(&question)), Turn::assistant(clean(&answer))])
    }

    /// The first of `names` that is a file below `--images`, or beside the problems; the first of them if none is.
    fn image(&self, names: &[String; 3]) -> Result<ImageRef, Fault> {
        let root = self.context.images.root().unwrap_or(self.folder());
        let name = names.iter().find(|name| root.join(name).is_file()).unwrap_or(&names[0]);
        Ok(ImageRef::Path(root.join(name).to_string_lossy().into_owned()))
    }
}

impl RawFile for ProblemFile {
    fn num_records(&self) -> u64 {
        self.problems.len() as u64
    }

    fn num_recognized(&self) -> u64 {
        self.num_recognized
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        let mut file = File::open(&self.path).map_err(PrepareError::io("read", &self.path))?;
        for record in records {
            let (pid, found) = &self.problems[record as usize];
            let id = format!("{SOURCE}/{}/{}", self.context.stem, escaped(pid));
            let content = match found {
                Found::At(offset) => {
                    let problem = self.read_problem(&mut file, *offset)?;
                    self.content(pid, &problem, &id)
                }
                Found::Absent => {
                    let detail = format!("`{SPLITS_FILE}` names the problem `{pid}`, and the file has none of that id");
                    Err(Fault::new("unknown_problem", detail))
                }
                Found::Again => Err(Fault::new("duplicate_id", "an earlier problem has the same id")),
            };
            if emit(Entry { record, content: content.map_err(|fault| fault.of(&id)) }) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

fn mark_repeats(mut problems: Vec<(Box<str>, Found)>) -> Vec<(Box<str>, Found)> {
    let is_again: Vec<bool> = {
        let mut seen = HashSet::new();
        problems.iter().map(|(pid, _)| !seen.insert(&**pid)).collect()
    };
    for ((_, found), is_again) in problems.iter_mut().zip(is_again) {
        if is_again {
            *found = Found::Again;
        }
    }
    problems
}

/// The names under which the image of a problem may stand; `None` for a problem without an image.
fn image_names(pid: &str, problem: &Value) -> Result<Option<[String; 3]>, Fault> {
    let image = match &problem["image"] {
        Value::Null => return Ok(None),
        Value::String(name) => name.as_str(),
        _ => return Err(Fault::new("wrong_type", "field `image`: expected a text or null")),
    };
    let split = problem["split"].as_str().unwrap_or_default();
    let is_plain = |part: &&str| !part.contains(['/', '\\']) && *part != ".." && *part != ".";
    if let Some(part) = [pid, image, split].iter().find(|part| !is_plain(part)) {
        let detail = format!("`{part}`: expected the name of a file or folder, without a path");
        return Err(Fault::new("outside_images", detail));
    }
    let name = format!("{pid}/{image}");
    Ok(Some([format!("images/{split}/{name}"), format!("{split}/{name}"), name]))
}

/// Question and answer as LLaVA's script writes them.
fn texts(problem: &Value, form: AnswerForm) -> Result<(String, String), Fault> {
    let (question, choices) = (required_text(problem, "question")?, choices(problem)?);
    let letter = answer_letter(problem, choices.len())?;
    let options: Vec<String> =
        choices.iter().zip('A'..='Z').map(|(choice, letter)| format!("({letter}) {choice}")).collect();
    let context = match optional_text(problem, "hint")?.trim() {
        "" => "N/A",
        hint => hint,
    };
    let question = format!("Question: {question}\nContext: {context}\nOptions: {}\n", options.join(" "));
    let part = |field| Ok(optional_text(problem, field)?.replace("\\n", "\n"));
    let (lecture, solution): (String, String) = (part("lecture")?, part("solution")?);
    let answer = match form {
        AnswerForm::Lea => format!("Answer: {lecture} {solution} The answer is {letter}."),
        AnswerForm::Lepa => {
            let part = |name: &str, text: &str| match text.trim() {
                "" => String::new(),
                _ => format!("{name}: {text}\n"),
            };
            format!("{}{}###\nANSWER: {letter}.", part("LECTURE", &lecture), part("SOLUTION", &solution))
        }
        AnswerForm::A => format!("Answer: The answer is {letter}."),
    };
    Ok((finished(&question, "Question: "), finished(&answer, "Answer: ")))
}

/// Double spaces made one, as the script does it; what the text begins with is taken out wherever it stands.
fn finished(text: &str, prefix: &str) -> String {
    let text = text.replace("  ", " ");
    match text.trim() {
        text if text.starts_with(prefix) => text.replace(prefix, ""),
        text => text.to_owned(),
    }
}

fn required_text<'a>(problem: &'a Value, field: &str) -> Result<&'a str, Fault> {
    match optional_text(problem, field)? {
        text if text.trim().is_empty() => {
            Err(Fault::new("missing_field", format!("field `{field}`: expected a text, found none")))
        }
        text => Ok(text),
    }
}

fn optional_text<'a>(problem: &'a Value, field: &str) -> Result<&'a str, Fault> {
    match &problem[field] {
        Value::Null => Ok(""),
        Value::String(text) => Ok(text),
        _ => Err(Fault::new("wrong_type", format!("field `{field}`: expected a text"))),
    }
}

fn choices(problem: &Value) -> Result<Vec<&str>, Fault> {
    let choices = problem["choices"].as_array().filter(|choices| (1..=26).contains(&choices.len()));
    let choices = choices.ok_or_else(|| Fault::new("missing_field", "field `choices`: expected 1 to 26 texts"))?;
    let wrong = || Fault::new("wrong_type", "field `choices`: expected texts");
    choices.iter().map(|choice| choice.as_str().ok_or_else(wrong)).collect()
}

fn answer_letter(problem: &Value, num_choices: usize) -> Result<char, Fault> {
    let answer = problem["answer"].as_u64().filter(|answer| *answer < num_choices as u64);
    let found = &problem["answer"];
    let wrong = || {
        let detail = format!("field `answer`: expected a number from 0 to {}, found `{found}`", num_choices - 1);
        Fault::new("unknown_answer", detail)
    };
    Ok(char::from(b'A' + answer.ok_or_else(wrong)? as u8))
}

/// Shows each problem with its id and the offset right after the id; one is held at a time.
fn scan(path: &Path, visit: &mut dyn FnMut(String, u64, Value)) -> Result<(), PrepareError> {
    let mut file = File::open(path).map_err(PrepareError::io("read", path))?;
    let mut head = Vec::new();
    (&mut file).take(3).read_to_end(&mut head).map_err(PrepareError::io("read", path))?;
    let start = if head == BYTE_ORDER_MARK { 3 } else { 0 };
    file.seek(SeekFrom::Start(start)).map_err(PrepareError::io("read", path))?;
    let at = Cell::new(start);
    let mut parser = serde_json::Deserializer::from_reader(Counted { reader: BufReader::new(file), at: &at });
    let scanned = parser.deserialize_map(Problems { at: &at, visit }).and_then(|()| parser.end());
    scanned.map_err(|fault| broken(path, at.get(), &fault))
}

/// The parser's fault, at or before byte `at`.
fn broken(path: &Path, at: u64, fault: &serde_json::Error) -> PrepareError {
    match fault.io_error_kind() {
        Some(kind) => PrepareError::io("read", path)(kind.into()),
        None => PrepareError::BrokenFile {
            path: path.to_owned(),
            position: format!("byte {at} (line {})", fault.line()),
            expected: "a JSON object of problems by their ids",
            found: format!("`{fault}`"),
        },
    }
}

/// A reader that counts. The parser takes one byte at a time and, right after a key, none too many.
struct Counted<'a, R> {
    reader: R,
    at: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let num = self.reader.read(out)?;
        self.at.set(self.at.get() + num as u64);
        Ok(num)
    }
}

struct Problems<'a> {
    at: &'a Cell<u64>,
    visit: &'a mut dyn FnMut(String, u64, Value),
}

impl<'de> Visitor<'de> for Problems<'_> {
    type Value = ();

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("an object of problems")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(pid) = map.next_key::<String>()? {
            let offset = self.at.get();
            (self.visit)(pid, offset, map.next_value()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::sources::testing::{causes, check_named, read_all, samples};
    use crate::sources::{ImageFolder, SourceOptions};

    fn problem() -> Value {
        json!({
            "question": "Which  one?", "choices": ["red", "blue"], "answer": 1, "hint": "", "image": null,
            "lecture": "First.\nSecond.", "solution": "It is\\nblue.", "split": "train",
        })
    }

    fn with(field: &str, value: Value) -> Value {
        let mut problem = problem();
        problem[field] = value;
        problem
    }

    fn open(root: &Path, options: SourceOptions, images: Option<&Path>) -> Result<ProblemFile, PrepareError> {
        let images = Arc::new(ImageFolder::open(images, None).expect("listing"));
        let context = SourceContext { images, options, ..SourceContext::for_test("problems") };
        ProblemFile::open(&root.join(PROBLEMS_FILE), context)
    }

    fn read(text: &str) -> Result<Vec<Entry>, PrepareError> {
        let root = tempfile::tempdir().expect("temp folder");
        fs::write(root.path().join(PROBLEMS_FILE), text).expect("file");
        read_all(&open(root.path(), SourceOptions::default(), None)?)
    }

    #[test]
    fn the_three_forms_of_an_answer() {
        let expected = [
            (AnswerForm::Lea, "First.\nSecond. It is\nblue. The answer is B."),
            (AnswerForm::Lepa, "LECTURE: First.\nSecond.\nSOLUTION: It is\nblue.\n###\nANSWER: B."),
            (AnswerForm::A, "The answer is B."),
        ];
        for (form, answer) in expected {
            let question = "Which one?\nContext: N/A\nOptions: (A) red (B) blue";
            assert_eq!(texts(&problem(), form), Ok((question.to_owned(), answer.to_owned())));
        }
        let bare = json!({"question": "Q?", "choices": ["x"], "answer": 0, "hint": " Look. "});
        assert_eq!(texts(&bare, AnswerForm::Lepa).expect("texts").1, "###\nANSWER: A.");
        let (question, answer) = texts(&bare, AnswerForm::Lea).expect("texts");
        assert_eq!((question.as_str(), answer.trim()), ("Q?\nContext: Look.\nOptions: (A) x", "The answer is A."));
    }

    #[test]
    fn problems_with_and_without_images_and_with_faults() {
        let problems = [
            ("..", with("image", json!("image.png"))),
            ("a", problem()),
            ("b", with("image", json!("image.png"))),
            ("c", with("answer", json!(2))),
            ("d", with("choices", json!([]))),
            ("e", with("question", json!(" "))),
            ("f", with("hint", json!(7))),
            ("g", with("image", json!("../x.png"))),
            ("h", json!(5)),
            ("a", with("question", json!("Again?"))),
        ];
        let fields: Vec<String> = problems.iter().map(|(pid, problem)| format!("{pid:?} :\n{problem:#}")).collect();
        let text = format!("\u{feff}\n{{{}}} \n", fields.join(" , "));
        let entries = read(&text).expect("reads");
        let expected = [
            "outside_images",
            "",
            "",
            "unknown_answer",
            "missing_field",
            "missing_field",
            "wrong_type",
            "outside_images",
            "missing_field",
            "duplicate_id",
        ];
        assert_eq!(causes(&entries), expected);
        let samples = samples(entries.into_iter().skip(1).take(2).collect());
        assert_eq!((samples[0].id.as_str(), samples[0].images.len()), ("scienceqa/problems/a", 0));
        assert_eq!(samples[1].turns[0].text, "Which one?\nContext: N/A\nOptions: (A) red (B) blue\n<image>");
        assert!(samples[1].images[0].name().ends_with("images/train/b/image.png"));
    }

    #[test]
    fn images_are_found_in_each_of_the_layouts() {
        let root = tempfile::tempdir().expect("temp folder");
        let problems = json!({ "7": with("image", json!("image.png")) });
        fs::write(root.path().join(PROBLEMS_FILE), problems.to_string()).expect("file");
        let photos = root.path().join("photos");
        fs::create_dir(&photos).expect("folder");
        for name in ["7/image.png", "train/7/image.png", "images/train/7/image.png"] {
            for (folder, images) in [(root.path(), None), (&photos, Some(photos.as_path()))] {
                let path = folder.join(name);
                fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
                fs::write(&path, "x").expect("file");
                let read = read_all(&open(root.path(), SourceOptions::default(), images).expect("opens"));
                assert_eq!(samples(read.expect("reads"))[0].images[0].name(), path.to_string_lossy());
            }
        }
    }

    #[test]
    fn a_split_names_its_problems_in_its_order() {
        let root = tempfile::tempdir().expect("temp folder");
        let problems = json!({ "1": problem(), "2": problem(), "3": problem() });
        fs::write(root.path().join(PROBLEMS_FILE), problems.to_string()).expect("file");
        let of = |split: &str| {
            let options = SourceOptions { split: Some(split.to_owned()), ..SourceOptions::default() };
            open(root.path(), options, None)
        };
        let told = of("train").err().expect("no file of splits").to_string();
        assert!(told.contains("pid_splits.json"), "{told}");
        let splits = json!({ "train": ["3", "1", "9", "3", 2], "val": ["1"] });
        fs::write(root.path().join(SPLITS_FILE), splits.to_string()).expect("file");
        let train = of("train").expect("opens");
        let entries = read_all(&train).expect("reads");
        assert_eq!(causes(&entries), ["", "", "unknown_problem", "duplicate_id", ""]);
        let ids: Vec<&str> = entries.iter().filter_map(|entry| Some(entry.content.as_ref().ok()?.id())).collect();
        assert_eq!(ids, ["scienceqa/problems/3", "scienceqa/problems/1", "scienceqa/problems/2"]);
        let told = of("trian").err().expect("unknown").to_string();
        assert!(told.contains("`train`, `val`") && told.contains("trian"), "{told}");
        fs::write(root.path().join(SPLITS_FILE), splits.to_string().replace("\"9\"", "\"8\"")).expect("file");
        assert_ne!(of("train").expect("opens").images(), train.images(), "the split is an input");
    }

    #[test]
    fn a_broken_file_is_named_with_its_place() {
        for (text, place) in
            [("{\"1\": {\"a\": 1,", "byte 14 (line 1)"), ("[]", "byte 1"), ("{}\nx", "byte 4 (line 2)"), ("", "byte 0")]
        {
            let fault = read(text).expect_err(text).to_string();
            assert!(fault.contains(place) && fault.contains("problems.json"), "{text}: {fault}");
        }
        assert!(read("{}").expect("empty").is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_entries_or_a_named_fault_of_the_file(
            bytes in proptest::collection::vec(any::<u8>(), 0..30), at in 0usize..300, to in any::<u8>(), cut in 0usize..600,
        ) {
            let problems = json!({ "1": with("image", json!("image.png")), "ü\"2": problem() });
            let mut mutated = problems.to_string().into_bytes();
            let at = at % mutated.len();
            mutated[at] = to;
            mutated.truncate(cut);
            for content in [bytes, mutated] {
                let root = tempfile::tempdir().expect("temp folder");
                fs::write(root.path().join(PROBLEMS_FILE), content).expect("file");
                match open(root.path(), SourceOptions::default(), None) {
                    Ok(file) => check_named(&read_all(&file).expect("what was scanned can be read")),
                    Err(fault) => prop_assert!(matches!(fault, PrepareError::BrokenFile { .. }), "{fault}"),
                }
            }
        }
    }
}
