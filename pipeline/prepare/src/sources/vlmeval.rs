//! VLMEvalKit's benchmarks: tab-separated text with a header. Each row is one sample, `vlmeval-tsv/<file>/<index>`.
//!
//! | column | meaning |
//! |---|---|
//! | `index` | the row's id; without the column `#<row>` |
//! | `image` | a file in base64, a list literal of such files, or, up to 64 characters long, the `index` of the row that has the file |
//! | `image_path` | without `image`: a name or a list literal of names; also `image_1`, `image_2`, ... |
//! | `question` | without the column: the question that VLMEvalKit asks for a caption |
//! | `hint`, `A`, `B`, ... | with `A` and `B`, or `options` (a list), the file is multiple choice |
//! | `answer` | a letter if the row has options, else a text; of a list of texts the most frequent, of equally frequent ones the first |
//!
//! Other columns are not read. The text of a user turn is what VLMEvalKit asks, character by character (its `ImageMCQDataset` for
//! multiple choice, the question alone otherwise), with all images before it; where the text says `<image 1>`, `<image 2>`, ...
//! (MMMU), those images stand there instead. A table without a column of images holds text alone; in one with such a column a row
//! without an image is a fault (`missing_image`), as VLMEvalKit decides by the columns too. An empty cell and `nan` are no value; other words that pandas takes for none
//! (`None`, `NA`) are text, as they are answers too.
//!
//! Offsets of rows stay in memory, 8 bytes each, and 16 bytes for each row with a file if any row refers to another.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use vela_types::{Fingerprint, IMAGE_MARK, ImageRef, Turn};

use super::fields::{Place, clean, escaped};
use super::images::ImageListing;
use super::repeats::{Repeat, RepeatFinder};
use super::tsv::{TsvCutter, TsvError, TsvRow};
use super::{Emit, Entry, Fault, RawContent, RawFile, SourceContext};
use crate::PrepareError;
use crate::python_literal::{Literal, parse};

const SOURCE: &str = "vlmeval-tsv";
/// An `image` cell of at most so many characters is the index of another row.
const MAX_REFERENCE_CHARS: usize = 64;
/// What VLMEvalKit asks in COCO_VAL, whose file has no questions.
const CAPTION_QUESTION: &str = "Please describe this image in general. Directly provide the description, do not include \
                                prefix like \"This image depicts\". ";
/// Begins a mark that names an image by its number.
const NUMBERED_MARK: &str = "<image ";
const CHOICE_REQUEST: &str = "Please select the correct answer from the options above. \n";

/// Which cell of a row holds what.
#[derive(Default)]
struct Columns {
    num: usize,
    index: Option<usize>,
    image: Option<usize>,
    image_path: Option<usize>,
    /// `image_1`, `image_2`, ... in the order of their numbers.
    numbered_paths: Vec<usize>,
    question: Option<usize>,
    hint: Option<usize>,
    answer: Option<usize>,
    /// `A`, `B`, ...
    letters: Vec<(char, usize)>,
    options: Option<usize>,
}

impl Columns {
    fn read(header: &TsvRow) -> Self {
        let names: Vec<Cow<'_, str>> = header.cells.iter().map(|cell| String::from_utf8_lossy(cell)).collect();
        let find = |wanted: &str| names.iter().position(|name| name == wanted);
        let letter = |letter: char| Some((letter, find(letter.encode_utf8(&mut [0; 4]))?));
        Self {
            num: names.len(),
            index: find("index"),
            image: find("image"),
            image_path: find("image_path"),
            numbered_paths: (1..).map_while(|number| find(&format!("image_{number}"))).collect(),
            question: find("question"),
            hint: find("hint"),
            answer: find("answer"),
            letters: ('A'..='Z').filter_map(letter).collect(),
            options: find("options"),
        }
    }

    fn has_images(&self) -> bool {
        self.image.is_some() || self.image_path.is_some() || !self.numbered_paths.is_empty()
    }

    fn is_recognized(&self) -> bool {
        self.question.is_some() || (self.answer.is_some() && self.has_images())
    }

    fn is_multiple_choice(&self) -> bool {
        let has = |wanted: char| self.letters.iter().any(|(letter, _)| *letter == wanted);
        self.options.is_some() || (has('A') && has('B'))
    }

    /// The options of a row by their letters.
    fn options(&self, row: &TsvRow) -> Result<Vec<(char, String)>, Fault> {
        if !self.is_multiple_choice() {
            return Ok(vec![]);
        }
        if let Some(list) = cell(row, self.options)? {
            let wrong = || Fault::new("wrong_type", "column `options`: expected a list of texts");
            return Ok(('A'..='Z').zip(texts(list).ok_or_else(wrong)?).collect());
        }
        let option = |(letter, at): &(char, usize)| Ok(cell(row, Some(*at))?.map(|text| (*letter, text.to_owned())));
        self.letters.iter().filter_map(|column| option(column).transpose()).collect()
    }

    /// What is asked, without images.
    fn question(&self, row: &TsvRow, options: &[(char, String)]) -> Result<String, Fault> {
        let question = match (self.question, cell(row, self.question)?) {
            (None, _) => CAPTION_QUESTION,
            (Some(_), Some(text)) if !text.trim().is_empty() => text,
            (Some(_), _) => return Err(Fault::new("missing_field", "column `question`: expected a text, found none")),
        };
        if !self.is_multiple_choice() {
            return Ok(question.replace("\r\n", "\n"));
        }
        let hint = cell(row, self.hint)?.map_or(String::new(), |hint| format!("Hint: {hint}\n"));
        let mut text = format!("{hint}Question: {question}\n");
        if !options.is_empty() {
            let lines: String = options.iter().map(|(letter, option)| format!("{letter}. {option}\n")).collect();
            text.push_str(&format!("Options:\n{lines}{CHOICE_REQUEST}"));
        }
        Ok(text.replace("\r\n", "\n"))
    }

    fn answer(&self, row: &TsvRow, options: &[(char, String)]) -> Result<String, Fault> {
        let missing = || Fault::new("missing_field", "column `answer`: expected a text, found none");
        let written = cell(row, self.answer)?.ok_or_else(missing)?;
        let answer = match texts(written) {
            Some(texts) => clean(&most_frequent(texts).ok_or_else(missing)?),
            None => clean(written),
        };
        let is_letter = |(letter, _): &(char, String)| answer == letter.to_string();
        if !options.is_empty() && !options.iter().any(is_letter) {
            let letters: String = options.iter().map(|(letter, _)| *letter).collect();
            let detail = format!("column `answer`: expected a letter of `{letters}`, found `{answer}`");
            return Err(Fault::new("unknown_answer", detail));
        }
        Ok(answer)
    }

    /// Names of the images that a row has outside the file.
    fn image_names(&self, row: &TsvRow) -> Result<Vec<String>, Fault> {
        if let Some(names) = cell(row, self.image_path)? {
            return Ok(texts(names).unwrap_or_else(|| vec![names.trim().to_owned()]));
        }
        let name = |at: &usize| Ok(cell(row, Some(*at))?.map(|name| name.trim().to_owned()));
        self.numbered_paths.iter().filter_map(|at| name(at).transpose()).collect()
    }
}

/// One benchmark file.
pub(super) struct BenchmarkFile {
    path: PathBuf,
    context: SourceContext,
    columns: Columns,
    /// Offsets of the rows after the header.
    rows: Vec<u64>,
    /// Hash of the index and offset of rows with a file in `image`, sorted; empty if no row refers to another.
    holders: Vec<(u64, u64)>,
    repeats: HashMap<u64, Repeat>,
    listing: Fingerprint,
}

impl BenchmarkFile {
    pub(super) fn open(path: &Path, context: SourceContext) -> Result<Self, PrepareError> {
        let file = File::open(path).map_err(PrepareError::io("read", path))?;
        let mut cutter = TsvCutter::start(BufReader::new(file)).map_err(|fault| cut_fault(path, fault))?;
        let header = cutter.next_row().map_err(|fault| cut_fault(path, fault))?.unwrap_or_default();
        let mut this = Self {
            path: path.to_owned(),
            context,
            columns: Columns::read(&header),
            rows: Vec::new(),
            holders: Vec::new(),
            repeats: HashMap::new(),
            listing: Fingerprint::default(),
        };
        let (mut finder, mut listing, mut has_references) = (RepeatFinder::default(), ImageListing::default(), false);
        while let Some(row) = cutter.next_row().map_err(|fault| cut_fault(path, fault))? {
            has_references |= this.scan(&row, &mut finder, &mut listing)?;
        }
        this.repeats = finder.finish().map_err(PrepareError::io("sort the ids of", path))?;
        this.listing = listing.fingerprint();
        this.holders.sort_unstable();
        if !has_references {
            this.holders = Vec::new();
        }
        Ok(this)
    }

    /// Notes a row; tells whether its image is that of another.
    fn scan(
        &mut self,
        row: &TsvRow,
        finder: &mut RepeatFinder,
        listing: &mut ImageListing,
    ) -> Result<bool, PrepareError> {
        let record = self.rows.len() as u64;
        self.rows.push(row.offset);
        let index = cell(row, self.columns.index).ok().flatten().map(str::trim);
        if let Some(index) = index {
            let added = finder.add(index, &content_hash(row).0, record);
            added.map_err(PrepareError::io("sort the ids of", &self.path))?;
        }
        match cell(row, self.columns.image) {
            Ok(Some(image)) if is_reference(image) => return Ok(true),
            Ok(Some(_)) => self.holders.extend(index.map(|index| (short_hash(index), row.offset))),
            _ => {
                for name in self.columns.image_names(row).unwrap_or_default() {
                    self.context.images.note(listing, &name, self.folder());
                }
            }
        }
        Ok(false)
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn rows_at(&self, offset: u64) -> Result<TsvCutter<BufReader<File>>, PrepareError> {
        let mut file = File::open(&self.path).map_err(PrepareError::io("read", &self.path))?;
        file.seek(SeekFrom::Start(offset)).map_err(PrepareError::io("read", &self.path))?;
        Ok(TsvCutter::resume(BufReader::new(file), offset))
    }

    fn next_row(&self, cutter: &mut TsvCutter<BufReader<File>>) -> Result<TsvRow, PrepareError> {
        let row = cutter.next_row().map_err(|fault| cut_fault(&self.path, fault))?;
        row.ok_or_else(|| PrepareError::BrokenFile {
            path: self.path.clone(),
            position: "a row of the scan".to_owned(),
            expected: "a row",
            found: "the end of the file, which changed since".to_owned(),
        })
    }

    /// The `image` cell of the row that `index` names.
    fn referenced(&self, index: &str) -> Result<Option<String>, PrepareError> {
        let hash = short_hash(index);
        let first = self.holders.partition_point(|(holder, _)| *holder < hash);
        for (_, offset) in self.holders[first..].iter().take_while(|(holder, _)| *holder == hash) {
            let row = self.next_row(&mut self.rows_at(*offset)?)?;
            let is_wanted = cell(&row, self.columns.index).is_ok_and(|own| own.map(str::trim) == Some(index));
            if let (true, Ok(Some(image))) = (is_wanted, cell(&row, self.columns.image)) {
                return Ok(Some(image.to_owned()));
            }
        }
        Ok(None)
    }

    fn entry(&self, record: u64, row: &TsvRow) -> Result<Entry, PrepareError> {
        let index = cell(row, self.columns.index).ok().flatten().map(str::trim);
        let id = match (index.map(escaped), self.repeats.get(&record)) {
            (None, _) => format!("{SOURCE}/{}/#{record}", self.context.stem),
            (Some(index), Some(Repeat::Nth(nth))) => format!("{SOURCE}/{}/{index}~{nth}", self.context.stem),
            (Some(index), _) => format!("{SOURCE}/{}/{index}", self.context.stem),
        };
        let image = match cell(row, self.columns.image) {
            Ok(Some(image)) if is_reference(image) => {
                let index = image.trim();
                let unknown = || {
                    Fault::new("unknown_image", format!("`image` {index}: expected the `index` of a row with a file"))
                };
                self.referenced(index)?.map(Cow::Owned).map(Some).ok_or_else(unknown)
            }
            image => image.map(|image| image.map(Cow::Borrowed)),
        };
        let content = self.content(record, row, image, &id).map_err(|fault| fault.of(&id));
        Ok(Entry { record, content })
    }

    fn content(
        &self,
        record: u64,
        row: &TsvRow,
        image: Result<Option<Cow<'_, str>>, Fault>,
        id: &str,
    ) -> Result<RawContent, Fault> {
        if let Some(Repeat::Copy(first)) = self.repeats.get(&record) {
            return Err(Fault::new("duplicate_record", format!("same index and content as row {first}")));
        }
        let (num, expected) = (row.cells.len(), self.columns.num);
        if num > expected {
            return Err(Fault::new(
                "extra_cells",
                format!("expected at most {expected} cells, as in the header, found {num}"),
            ));
        }
        let options = self.columns.options(row)?;
        let question = self.columns.question(row, &options)?;
        let answer = self.columns.answer(row, &options)?;
        let place = Place { id, images: &self.context.images, folder: self.folder() };
        let images = match image? {
            Some(cell) => embedded(&cell, id)?,
            None => place.resolve(&self.columns.image_names(row)?)?,
        };
        if images.is_empty() && self.columns.has_images() {
            let detail = "expected an image, as the table has a column for it, found an empty cell";
            return Err(Fault::new("missing_image", detail));
        }
        let (question, images) = put_images(&question, &images)?;
        place.dialogue(SOURCE, images, vec![Turn::user(question), Turn::assistant(answer)])
    }
}

impl RawFile for BenchmarkFile {
    fn num_records(&self) -> u64 {
        self.rows.len() as u64
    }

    fn num_recognized(&self) -> u64 {
        if self.columns.is_recognized() { self.num_records() } else { 0 }
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        let Some(&offset) = self.rows.get(records.start as usize).filter(|_| !records.is_empty()) else {
            return Ok(());
        };
        let mut cutter = self.rows_at(offset)?;
        for record in records {
            let row = self.next_row(&mut cutter)?;
            if emit(self.entry(record, &row)?) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

/// The text of a cell; `None` for a column or cell that is not there, an empty one and `nan`.
fn cell(row: &TsvRow, column: Option<usize>) -> Result<Option<&str>, Fault> {
    let Some(bytes) = column.and_then(|column| row.cells.get(column)) else { return Ok(None) };
    match std::str::from_utf8(bytes) {
        Ok("" | "nan") => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Fault::new("not_utf8", format!("row at byte {}: expected UTF-8", row.offset))),
    }
}

fn is_reference(image: &str) -> bool {
    image.chars().nth(MAX_REFERENCE_CHARS).is_none()
}

/// The texts of a list literal (Python's or JSON's); `None` for anything else, lists of numbers included.
fn texts(cell: &str) -> Option<Vec<String>> {
    let cell = cell.trim();
    if !(cell.starts_with('[') && cell.ends_with(']')) {
        return None;
    }
    let Ok(Literal::List(items)) = parse(cell) else { return None };
    items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// The text that comes most often; of several such the first.
fn most_frequent(texts: Vec<String>) -> Option<String> {
    let count = |wanted: &String| texts.iter().filter(|text| *text == wanted).count();
    let most = texts.iter().map(count).max()?;
    texts.iter().find(|text| count(text) == most && !text.trim().is_empty()).cloned()
}

/// The files of an `image` cell.
fn embedded(cell: &str, id: &str) -> Result<Vec<ImageRef>, Fault> {
    let files = texts(cell).unwrap_or_else(|| vec![cell.to_owned()]);
    let decode = |(at, file): (usize, &String)| {
        let file = file.split_once(";base64,").map_or(file.as_str(), |(_, data)| data);
        let file: String = file.split_ascii_whitespace().collect();
        let data = BASE64.decode(file).map_err(|fault| {
            Fault::new("broken_base64", format!("column `image`, file {at}: expected base64: {fault}"))
        })?;
        Ok(ImageRef::Bytes { name: format!("{id}, `image[{at}]`"), data: data.into() })
    };
    files.iter().enumerate().map(decode).collect()
}

/// Puts images at the marks `<image 1>`, `<image 2>`, ... of a text, and those without a mark in front of it.
fn put_images(text: &str, images: &[ImageRef]) -> Result<(String, Vec<ImageRef>), Fault> {
    let (mut rest, mut marked, mut at_marks) = (text, String::new(), Vec::new());
    while let Some((before, after)) = rest.split_once(NUMBERED_MARK) {
        marked.push_str(before);
        let number = after.split_once('>').and_then(|(number, rest)| Some((number.parse::<usize>().ok()?, rest)));
        match number {
            Some((number, _)) if !(1..=images.len()).contains(&number) => {
                let detail = format!("`{NUMBERED_MARK}{number}>` in a row with {} images", images.len());
                return Err(Fault::new("mark_count", detail));
            }
            Some((number, after)) => {
                marked.push_str(IMAGE_MARK);
                at_marks.push(number - 1);
                rest = after;
            }
            None => {
                marked.push_str(NUMBERED_MARK);
                rest = after;
            }
        }
    }
    marked.push_str(rest);
    let in_front: Vec<usize> = (0..images.len()).filter(|at| !at_marks.contains(at)).collect();
    let text = format!("{}{marked}", format!("{IMAGE_MARK}\n").repeat(in_front.len()));
    Ok((text, in_front.iter().chain(&at_marks).map(|at| images[*at].clone()).collect()))
}

fn content_hash(row: &TsvRow) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for cell in &row.cells {
        hasher.update(&(cell.len() as u64).to_le_bytes()).update(cell);
    }
    Fingerprint(*hasher.finalize().as_bytes())
}

fn short_hash(index: &str) -> u64 {
    Fingerprint(*blake3::hash(index.as_bytes()).as_bytes()).to_seed()
}

fn cut_fault(path: &Path, fault: TsvError) -> PrepareError {
    match fault {
        TsvError::Io(source) => PrepareError::io("read", path)(source),
        TsvError::Broken { offset, line, expected, found } => PrepareError::BrokenFile {
            path: path.to_owned(),
            position: format!("row at byte {offset} (line {line})"),
            expected,
            found: found.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vela_types::Sample;

    use super::*;
    use crate::sources::testing::{causes, check_named, png, read_all, samples};

    fn open(text: &[u8]) -> Result<(tempfile::TempDir, BenchmarkFile), PrepareError> {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("bench.tsv");
        std::fs::write(&path, text).expect("file");
        let file = BenchmarkFile::open(&path, SourceContext::for_test("bench"))?;
        Ok((folder, file))
    }

    fn read(rows: &[&[&str]]) -> Vec<Entry> {
        let mut writer = csv::WriterBuilder::new().delimiter(b'\t').flexible(true).from_writer(Vec::new());
        rows.iter().for_each(|row| writer.write_record(*row).expect("written"));
        let (_folder, file) = open(&writer.into_inner().expect("flushed")).expect("opens");
        read_all(&file).expect("reads")
    }

    fn photo(red: u8) -> (Vec<u8>, String) {
        let file = png(8, 8, [red, 0, 0]);
        let text = BASE64.encode(&file);
        assert!(text.len() > MAX_REFERENCE_CHARS);
        (file, text)
    }

    fn files(sample: &Sample) -> Vec<&[u8]> {
        fn bytes(image: &ImageRef) -> &[u8] {
            match image {
                ImageRef::Bytes { data, .. } => &data[..],
                other => panic!("{other:?}"),
            }
        }
        sample.images.iter().map(bytes).collect()
    }

    #[test]
    fn multiple_choice_is_asked_as_vlmevalkit_asks_it() {
        let (file, image) = photo(1);
        let entries = read(&[
            &["index", "image", "hint", "question", "A", "B", "C", "D", "answer", "category", "l2-category", "split"],
            &["0", &image, "", "How many?", "None", "two", "", "nan", "A", "counting", "x", "dev"],
            &["1", "0", "Look\r\ntwice.", "Which\tone? ", "a", "b", "c", "d", "D", "", "", "dev"],
            &["2", "", "", "No picture?", "yes", "no", "", "", "B"],
            &["3", "9", "", "Whose?", "yes", "no", "", "", "B"],
            &["4", "0", "", "Which?", "yes", "no", "", "", "C"],
            &["5", "0", "", "Test split?", "yes", "no", "", "", ""],
            &["6", "", "", "Open?", "", "", "", "", "some words"],
            &["7", "0", "", "Open?", "", "", "", "", "some words"],
        ]);
        let expected =
            ["", "", "missing_image", "unknown_image", "unknown_answer", "missing_field", "missing_image", ""];
        assert_eq!(causes(&entries), expected);
        let samples = samples(entries.into_iter().filter(|entry| entry.content.is_ok()).collect());
        let select = "Please select the correct answer from the options above. \n";
        let expected = [
            format!("<image>\nQuestion: How many?\nOptions:\nA. None\nB. two\n{select}"),
            format!("<image>\nHint: Look\ntwice.\nQuestion: Which\tone? \nOptions:\nA. a\nB. b\nC. c\nD. d\n{select}"),
            "<image>\nQuestion: Open?\n".to_owned(),
        ];
        assert_eq!(samples.iter().map(|sample| sample.turns[0].text.clone()).collect::<Vec<_>>(), expected);
        let answers: Vec<&str> = samples.iter().map(|sample| sample.turns[1].text.as_str()).collect();
        assert_eq!(answers, ["A", "D", "some words"]);
        assert_eq!((files(&samples[0]), files(&samples[1])), (vec![&file[..]], vec![&file[..]]));
        assert_eq!(samples[1].id, "vlmeval-tsv/bench/1");
    }

    #[test]
    fn a_question_alone_lists_of_answers_and_captions() {
        let (_, image) = photo(2);
        let entries = read(&[
            &["index", "question", "answer", "image"],
            &["1", "What brand?", "['Dell', 'dell', \"dell\", 'Dell']", &image],
            &["2", "Where?", "[0.1, 0.2]", &image],
            &["3", "What is it? ", "Yes.\r\n", &image],
            &["4", "None?", "[]", &image],
            &["5", "Cut?", "Yes", &image[..image.len() - 3]],
            &["1", "What brand?", "['Dell', 'dell', \"dell\", 'Dell']", &image],
            &["1", "What else?", "Nothing", &image],
            &["8", "Too long", "a", &image, "x"],
        ]);
        let expected = ["", "", "", "missing_field", "broken_base64", "duplicate_record", "", "extra_cells"];
        assert_eq!(causes(&entries), expected);
        let samples = samples(entries.into_iter().filter(|entry| entry.content.is_ok()).collect());
        let answers: Vec<&str> = samples.iter().map(|sample| sample.turns[1].text.as_str()).collect();
        assert_eq!(answers, ["Dell", "[0.1, 0.2]", "Yes.", "Nothing"]);
        assert_eq!(samples[2].turns[0].text, "<image>\nWhat is it? ");
        assert_eq!(samples[3].id, "vlmeval-tsv/bench/1~2");

        let captions = read(&[&["index", "image", "answer"], &["7", &image, "['A cat.', 'One cat.']"]]);
        let samples = crate::sources::testing::samples(captions);
        assert!(samples[0].turns[0].text.starts_with("<image>\nPlease describe this image in general."));
        assert_eq!(samples[0].turns[1].text, "A cat.");
    }

    #[test]
    fn several_images_stand_in_front_or_at_their_marks() {
        let ((first, one), (second, two)) = (photo(3), photo(4));
        let list = format!("['{one}', '{two}']");
        let entries = read(&[
            &["index", "image", "question", "answer"],
            &["1", &list, "Same?", "No."],
            &["2", &list, "Is <image 2> like <image 2>, not <image x>?", "Yes."],
            &["3", "1", "Same again?", "No."],
            &["4", "", "<image> without an image?", "No."],
            &["6", "1", "<image> besides?", "No."],
            &["5", &list, "<image 3>?", "No."],
        ]);
        assert_eq!(causes(&entries), ["", "", "", "missing_image", "mark_count", "mark_count"]);
        let samples = samples(entries.into_iter().take(3).collect());
        assert_eq!(samples[0].turns[0].text, "<image>\n<image>\nSame?");
        assert_eq!(samples[1].turns[0].text, "<image>\nIs <image> like <image>, not <image x>?");
        assert_eq!(files(&samples[0]), [&first[..], &second]);
        assert_eq!(files(&samples[1]), [&first[..], &second, &second]);
        assert_eq!(files(&samples[2]), files(&samples[0]));
    }

    #[test]
    fn names_of_images_lead_beside_the_file() {
        let text =
            b"question\timage_path\tanswer\nOne?\ta/b.jpg\tYes\nTwo?\t\"['a.jpg', 'b.jpg']\"\tNo\nNo image?\t\tNo\n";
        let (folder, file) = open(text).expect("opens");
        let entries = read_all(&file).expect("reads");
        assert_eq!(causes(&entries), ["", "", "missing_image"]);
        let samples = samples(entries.into_iter().take(2).collect());
        assert_eq!(samples.iter().map(|sample| sample.images.len()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(samples[0].images[0].name(), folder.path().join("a/b.jpg").to_string_lossy());
        assert_eq!(samples[1].id, "vlmeval-tsv/bench/#1");
        let before = file.images();
        std::fs::write(folder.path().join("b.jpg"), "x").expect("file");
        let again = BenchmarkFile::open(&file.path, SourceContext::for_test("bench")).expect("opens");
        assert_ne!(again.images(), before);
    }

    #[test]
    fn evalscopes_layout_is_read_with_its_bare_quotes_and_short_rows() {
        let text = "question\toptions\tanswer\timage_1\timage_2\nWhich is a dog?\t[\"<image 1>\", \"<image 2>\"]\tA\td.jpg\tc.jpg\n\
                    <image 1> Which city?\t[\"Rome\", \"Paris\"]\tB\tp.jpg\n";
        let (_folder, file) = open(text.as_bytes()).expect("opens");
        let samples = samples(read_all(&file).expect("reads"));
        let expected = [
            "Question: Which is a dog?\nOptions:\nA. <image>\nB. <image>\n",
            "Question: <image> Which city?\nOptions:\nA. Rome\nB. Paris\n",
        ];
        for (sample, expected) in samples.iter().zip(expected) {
            assert!(sample.turns[0].text.starts_with(expected), "{sample:?}");
        }
        assert!(samples[0].images[1].name().ends_with("c.jpg"));
    }

    #[test]
    fn files_of_another_kind_are_not_recognized_and_broken_ones_are_named() {
        for (text, num_records, is_known) in
            [("messages\tanswer\nx\ty\n", 1, false), ("", 0, false), ("question\tanswer\nx\ty", 1, true)]
        {
            let (_folder, file) = open(text.as_bytes()).expect("opens");
            assert_eq!((file.num_records(), file.num_recognized() > 0), (num_records, is_known), "{text}");
        }
        let told = open(b"question\tanswer\n\"x\ty\n").err().expect("an open quote").to_string();
        assert!(told.contains("bench.tsv") && told.contains("byte 16 (line 2)"), "{told}");
        let (_folder, file) = open(b"question\tanswer\n\xff\ty\n").expect("opens");
        assert_eq!(causes(&read_all(&file).expect("reads")), ["not_utf8"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_entries_or_a_named_fault_of_the_file(
            bytes in proptest::collection::vec(any::<u8>(), 0..40), at in 0usize..600, to in any::<u8>(), cut in 0usize..900,
        ) {
            let (_, image) = photo(5);
            let sound = format!(
                "index\timage\thint\tquestion\tA\tB\tanswer\n0\t{image}\t\tHow many?\t1\t2\tA\n1\t0\tSieh.\t\"Wel\"\"che?\"\ta\tb\tB\n\
                 2\t['{image}']\t\tWas?\t\t\t['Käse', 'x']\n"
            );
            let mut mutated = sound.into_bytes();
            let at = at % mutated.len();
            mutated[at] = to;
            mutated.truncate(cut);
            let headed = [&b"index\timage\tquestion\tanswer\n"[..], &bytes].concat();
            for content in [bytes, headed, mutated] {
                match open(&content) {
                    Ok((_folder, file)) => check_named(&read_all(&file).expect("what was scanned can be read")),
                    Err(fault) => prop_assert!(matches!(fault, PrepareError::BrokenFile { .. }), "{fault}"),
                }
            }
        }
    }
}
