//! WebDataset: tar files whose members `KEY.jpg`, `KEY.json`, `KEY.txt` of one key are one sample, `webdataset/<file>/<key>`.
//!
//! As in the webdataset library, the key of a member is its path up to the first dot of its base name, and the members of a sample
//! follow one another: a key that comes again later is another sample (`~2`). Members named `.x` and `__x__` are none.
//! - Images are members that end like one (`KEY.jpg`, `KEY.0.png`, `KEY.img1.webp`, ...), in the order of the numbers before that
//!   ending if each has its own, else in the order of the tar. Where the text names images by their base names, that order counts.
//! - The text is `KEY.json`: `conversations` (LLaVA), `messages` (with or without content parts), a bare list of those, or
//!   a text `caption` or `text`; without one of these, and without a JSON member, it is the caption `KEY.txt` (or `.caption`).
//! - Other members beside a text are not read. A text or image that is compressed by itself is `compressed_member`.
//!
//! Names only serve as keys; nothing is unpacked. Offsets of samples stay in memory, 8 bytes each. A key with more than 512
//! members or 256 MiB (`frame.000001.jpg`, `frame.000002.jpg`, ... are all of key `frame`) is `too_large` and not read.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tar::Archive;
use vela_types::{Fingerprint, ImageRef, Turn};

use super::fields::{IMAGE_ENDINGS, Place, clean, escaped, image_names};
use super::repeats::{Repeat, RepeatFinder};
use super::{Emit, Entry, Fault, RawCaption, RawContent, RawFile, SourceContext, llava, openai};
use crate::PrepareError;

const SOURCE: &str = "webdataset";
/// Members are padded to whole blocks.
const BLOCK_BYTES: u64 = 512;
/// A member longer than this costs its sample.
const MAX_MEMBER_BYTES: u64 = 256 << 20;
/// Members of a sample that would be read may have no more bytes in all.
const MAX_SAMPLE_BYTES: u64 = 256 << 20;
/// A sample with more members is taken for files that are numbered behind the first dot of their names.
const MAX_MEMBERS: u64 = 512;
const COMPRESSED_ENDINGS: [&str; 5] = ["gz", "bz2", "xz", "zst", "lz4"];
/// What compressed files begin with.
const COMPRESSED_MAGIC: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ", "compressed by xz"),
];

/// One tar file.
pub(super) struct TarFile {
    path: PathBuf,
    context: SourceContext,
    /// Where the first header of each sample stands, and after the last one where the members end.
    starts: Vec<u64>,
    num_recognized: u64,
    repeats: HashMap<u64, Repeat>,
    /// Key and size of samples that are too large to be read.
    too_large: HashMap<u64, (String, SampleSize)>,
}

/// What the headers say of a sample.
#[derive(Clone, Copy, Debug, Default)]
struct SampleSize {
    num_members: u64,
    /// Of those that would be read.
    num_bytes: u64,
}

impl SampleSize {
    fn add(&mut self, name: &MemberName, num_bytes: u64) {
        self.num_members += 1;
        self.num_bytes += if is_read(name, num_bytes) { num_bytes } else { 0 };
    }

    fn is_too_large(self) -> bool {
        self.num_members > MAX_MEMBERS || self.num_bytes > MAX_SAMPLE_BYTES
    }

    fn fault(self, key: &str) -> Fault {
        let Self { num_members, num_bytes } = self;
        let expected = format!("expected at most {MAX_MEMBERS} members and {MAX_SAMPLE_BYTES} bytes of key `{key}`");
        let reason = "a key ends at the first dot of a file's name";
        Fault::new("too_large", format!("{expected}, found {num_members} members and {num_bytes} bytes; {reason}"))
    }
}

/// True of a member whose content is asked for.
fn is_read(name: &MemberName, num_bytes: u64) -> bool {
    num_bytes <= MAX_MEMBER_BYTES && matches!(name.kind(), Kind::Image { .. } | Kind::Json | Kind::Text)
}

/// What the scan keeps of a member.
struct Scanned {
    /// Where its headers begin.
    start: u64,
    /// `None` for what belongs to no sample: folders, links, hidden files.
    name: Option<MemberName>,
    num_bytes: u64,
}

impl TarFile {
    pub(super) fn open(path: &Path, context: SourceContext) -> Result<Self, PrepareError> {
        check_not_compressed(path)?;
        let (mut starts, mut num_recognized, mut is_known) = (Vec::new(), 0, false);
        let (mut finder, mut key, mut size) = (RepeatFinder::default(), None, SampleSize::default());
        let mut too_large = HashMap::new();
        let end = scan(path, &mut |member| {
            let Some(name) = member.name else { return Ok(()) };
            if key.as_ref() != Some(&name.key) {
                let record = starts.len() as u64;
                // The number as content: no sample is a copy, as contents are not compared.
                finder
                    .add(&name.key, &record.to_le_bytes(), record)
                    .map_err(PrepareError::io("sort the keys of", path))?;
                starts.push(member.start);
                is_known = false;
                key = Some(name.key.clone());
                size = SampleSize::default();
            }
            size.add(&name, member.num_bytes);
            if size.is_too_large() {
                too_large.insert(starts.len() as u64 - 1, (name.key.clone(), size));
            }
            if !is_known && !matches!(name.kind(), Kind::Other) {
                is_known = true;
                num_recognized += 1;
            }
            Ok(())
        })?;
        starts.push(end);
        let repeats = finder.finish().map_err(PrepareError::io("sort the keys of", path))?;
        Ok(Self { path: path.to_owned(), context, starts, num_recognized, repeats, too_large })
    }

    /// The members of a sample.
    fn members(&self, file: &File, record: u64) -> std::io::Result<Members> {
        let (start, end) = (self.starts[record as usize], self.starts[record as usize + 1]);
        let mut file = file;
        file.seek(SeekFrom::Start(start))?;
        let mut archive = Archive::new(BufReader::new(file.take(end - start)));
        let mut members = Members::default();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let Some(name) = member_name(&entry) else { continue };
            let num_bytes = entry.size();
            members.key.clone_from(&name.key);
            let mut bytes = Vec::new();
            if is_read(&name, num_bytes) {
                entry.read_to_end(&mut bytes)?;
            }
            members.all.push(Member { name, num_bytes, bytes });
        }
        Ok(members)
    }

    fn content(&self, members: Members, id: &str) -> Result<RawContent, Fault> {
        members.check()?;
        let place = Place { id, images: &self.context.images, folder: self.path.parent().unwrap_or(Path::new("")) };
        let images = members.images(id);
        let record = members.find(|kind| matches!(kind, Kind::Json)).map(parse_json).transpose()?;
        let text = members.find(|kind| matches!(kind, Kind::Text)).map(|member| Ok(utf8(member)?.to_owned()));
        if let Some(record) = &record {
            if let Some((names, turns)) = dialogue(record)? {
                return place.dialogue(SOURCE, arranged(images, &names), turns);
            }
            if let Some(caption) = ["caption", "text"].iter().find_map(|field| record[*field].as_str()) {
                return caption_of(id, caption, images);
            }
        }
        match text {
            Some(text) => caption_of(id, &text?, images),
            None => Err(members.without_text()),
        }
    }
}

impl RawFile for TarFile {
    fn num_records(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    fn num_recognized(&self) -> u64 {
        self.num_recognized
    }

    fn images(&self) -> Fingerprint {
        Fingerprint::default()
    }

    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        let file = File::open(&self.path).map_err(PrepareError::io("read", &self.path))?;
        for record in records {
            let (key, members) = match self.too_large.get(&record) {
                Some((key, size)) => (key.clone(), Err(size.fault(key))),
                None => {
                    let members = self.members(&file, record).map_err(PrepareError::io("read", &self.path))?;
                    (members.key.clone(), Ok(members))
                }
            };
            let nth = match self.repeats.get(&record) {
                Some(Repeat::Nth(nth)) => format!("~{nth}"),
                _ => String::new(),
            };
            let id = format!("{SOURCE}/{}/{}{nth}", self.context.stem, escaped(&key));
            let content = members.and_then(|members| self.content(members, &id)).map_err(|fault| fault.of(&id));
            if emit(Entry { record, content }) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

/// What a member is by its ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The number before the image ending, if there is one.
    Image {
        number: Option<u64>,
    },
    Json,
    Text,
    Compressed,
    Other,
}

/// A member's path, divided.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MemberName {
    /// The path up to the first dot of its base name.
    key: String,
    /// What follows that dot, in lower case; empty without a dot.
    ending: String,
}

impl MemberName {
    /// `None` for hidden and reserved names.
    fn new(path: &str) -> Option<Self> {
        let path = path.trim_start_matches("./");
        let (folder, base) =
            path.rsplit_once('/').map_or(("", path), |(_, base)| (&path[..path.len() - base.len()], base));
        let (name, ending) = base.split_once('.').unwrap_or((base, ""));
        let first = path.split('/').next().unwrap_or_default();
        let is_reserved = first.len() > 3 && first.starts_with("__") && first.ends_with("__");
        let is_named = !name.is_empty() && !is_reserved;
        is_named.then(|| Self { key: format!("{folder}{name}"), ending: ending.to_lowercase() })
    }

    fn kind(&self) -> Kind {
        match last_part(&self.ending) {
            "json" => Kind::Json,
            "txt" | "text" | "caption" => Kind::Text,
            last if IMAGE_ENDINGS.contains(&last) => {
                let before = &self.ending[..self.ending.len() - last.len()];
                let digits = before.trim_end_matches('.').rsplit(|letter: char| !letter.is_ascii_digit()).next();
                Kind::Image { number: digits.and_then(|digits| digits.parse().ok()) }
            }
            last if COMPRESSED_ENDINGS.contains(&last) => {
                let inner = self.ending[..self.ending.len() - last.len()].trim_end_matches('.');
                let is_wanted = matches!(last_part(inner), "json" | "txt" | "text" | "caption")
                    || IMAGE_ENDINGS.contains(&last_part(inner));
                if is_wanted { Kind::Compressed } else { Kind::Other }
            }
            _ => Kind::Other,
        }
    }
}

fn last_part(ending: &str) -> &str {
    ending.rsplit('.').next().unwrap_or_default()
}

/// One member of a sample; without its bytes if it is of no use or too long.
struct Member {
    name: MemberName,
    num_bytes: u64,
    bytes: Vec<u8>,
}

impl Member {
    fn base_name(&self) -> String {
        let base = self.name.key.rsplit('/').next().unwrap_or_default();
        format!("{base}.{}", self.name.ending)
    }
}

/// The members of one sample.
#[derive(Default)]
struct Members {
    key: String,
    all: Vec<Member>,
}

impl Members {
    fn check(&self) -> Result<(), Fault> {
        let mut endings = HashSet::new();
        for member in &self.all {
            let name = member.base_name();
            if !endings.insert(&member.name.ending) {
                return Err(Fault::new("duplicate_member", format!("`{name}` stands twice in the sample")));
            }
            if member.name.kind() == Kind::Compressed {
                let detail = format!("`{name}`: expected a member that is not compressed");
                return Err(Fault::new("compressed_member", detail));
            }
            if member.num_bytes > MAX_MEMBER_BYTES {
                let detail = format!("`{name}`: expected at most {MAX_MEMBER_BYTES} bytes, found {}", member.num_bytes);
                return Err(Fault::new("too_large", detail));
            }
        }
        Ok(())
    }

    fn find(&self, is_wanted: impl Fn(Kind) -> bool) -> Option<&Member> {
        self.all.iter().find(|member| is_wanted(member.name.kind()))
    }

    /// The images in order, with their base names.
    fn images(&self, id: &str) -> Vec<(String, ImageRef)> {
        let mut images: Vec<(Option<u64>, &Member)> = Vec::new();
        for member in &self.all {
            if let Kind::Image { number } = member.name.kind() {
                images.push((number, member));
            }
        }
        let mut numbers: Vec<u64> = images.iter().filter_map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() == images.len() {
            images.sort_by_key(|(number, _)| *number);
        }
        let image = |member: &Member| {
            let (name, data) = (format!("{id}, `{}`", member.base_name()), member.bytes.clone().into());
            (member.base_name(), ImageRef::Bytes { name, data })
        };
        images.into_iter().map(|(_, member)| image(member)).collect()
    }

    fn without_text(&self) -> Fault {
        let endings: Vec<String> = self.all.iter().map(|member| format!("`{}`", member.name.ending)).collect();
        let found = format!("found {}", endings.join(", "));
        match self.find(|kind| kind != Kind::Other) {
            Some(_) => {
                let detail = "expected `.json` with `conversations`, `messages`, `caption` or `text`, or `.txt`";
                Fault::new("missing_field", format!("{detail}; {found}"))
            }
            None => Fault::new("unknown_member", format!("expected an image, `.json` or `.txt`; {found}")),
        }
    }
}

/// Names of images, and turns.
type Dialogue = (Vec<String>, Vec<Turn>);

/// The dialogue of a record, if it holds one.
fn dialogue(record: &Value) -> Result<Option<Dialogue>, Fault> {
    let bare = Some(record).filter(|record| record.is_array());
    let Some(turns) = bare.or_else(|| record.get("conversations")).or_else(|| record.get("messages")) else {
        return Ok(None);
    };
    let names = ["image", "images"].iter().find_map(|field| Some((record.get(*field)?, *field)));
    let mut names = names.map_or(Ok(vec![]), |(names, field)| image_names(names, field))?;
    let messages = turns.as_array().map_or(&[][..], Vec::as_slice);
    if !messages.iter().any(|turn| turn.get("role").is_some()) {
        return Ok(Some((names, llava::TURNS.read_all(turns, "conversations")?)));
    }
    let (of_parts, turns) = openai::read_messages(messages)?;
    if !of_parts.is_empty() {
        names = of_parts;
    }
    Ok(Some((names, turns)))
}

/// The images as `names` order them, if each names one; else all, in their own order.
fn arranged(images: Vec<(String, ImageRef)>, names: &[String]) -> Vec<ImageRef> {
    let base = |name: &str| name.rsplit(['/', '\\']).next().unwrap_or_default().to_lowercase();
    let find =
        |name: &String| images.iter().find(|(own, _)| own.to_lowercase() == base(name)).map(|(_, image)| image.clone());
    match names.iter().map(find).collect::<Option<Vec<ImageRef>>>() {
        Some(named) if !named.is_empty() => named,
        _ => images.into_iter().map(|(_, image)| image).collect(),
    }
}

fn caption_of(id: &str, caption: &str, mut images: Vec<(String, ImageRef)>) -> Result<RawContent, Fault> {
    let global = clean(caption);
    match (images.pop(), images.len()) {
        _ if global.is_empty() => Err(Fault::new("empty_caption", "the caption holds no text")),
        (Some((_, image)), 0) => {
            let (id, locals) = (id.to_owned(), vec![]);
            Ok(RawContent::Caption(RawCaption { id, source: SOURCE, image, global, locals, prompts: &[] }))
        }
        (None, _) => Err(Fault::new("missing_image", "expected an image beside the caption, found none")),
        (Some(_), others) => {
            Err(Fault::new("several_images", format!("a caption has one image, the sample {}", others + 1)))
        }
    }
}

fn parse_json(member: &Member) -> Result<Value, Fault> {
    let text = utf8(member)?;
    serde_json::from_str(text).map_err(|fault| Fault::new("broken_json", format!("`{}`: {fault}", member.base_name())))
}

fn utf8(member: &Member) -> Result<&str, Fault> {
    let text = std::str::from_utf8(&member.bytes).map_err(|fault| {
        let detail = format!("`{}`, byte {}: expected UTF-8", member.base_name(), fault.valid_up_to());
        Fault::new("not_utf8", detail)
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn member_name<R: Read>(entry: &tar::Entry<'_, R>) -> Option<MemberName> {
    let kind = entry.header().entry_type();
    let is_file = kind.is_file() || kind.is_contiguous();
    if is_file { MemberName::new(&String::from_utf8_lossy(&entry.path_bytes())) } else { None }
}

/// Shows every member, reading headers alone; tells where they end.
fn scan(path: &Path, visit: &mut dyn FnMut(Scanned) -> Result<(), PrepareError>) -> Result<u64, PrepareError> {
    let file = File::open(path).map_err(PrepareError::io("read", path))?;
    let num_bytes = file.metadata().map_err(PrepareError::io("read", path))?.len();
    let mut archive = Archive::new(BufReader::new(file));
    let mut start = 0;
    for entry in archive.entries_with_seek().map_err(PrepareError::io("read", path))? {
        let broken = |found: String| broken(path, start, found);
        // What the reader says of a first header that is none holds its bytes, whatever they are.
        let entry = entry.map_err(|fault| match start {
            0 => broken("no header of one: it is not a tar file".to_owned()),
            _ => broken(format!("`{}`", fault.to_string().escape_debug())),
        })?;
        if entry.header().entry_type().is_gnu_sparse() {
            return Err(broken("a sparse one".to_owned()));
        }
        let end = entry
            .raw_file_position()
            .checked_add(entry.size())
            .and_then(|end| end.checked_next_multiple_of(BLOCK_BYTES));
        let end = end.filter(|end| *end <= num_bytes).ok_or_else(|| {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            broken(format!("`{name}` of {} bytes, cut off at byte {num_bytes}, where the file ends", entry.size()))
        })?;
        visit(Scanned { start, name: member_name(&entry), num_bytes: entry.size() })?;
        start = end;
    }
    check_trailer(path, archive.into_inner().into_inner(), start)?;
    Ok(start)
}

/// Behind the last member only zeros may stand: a second archive there would be lost without a word.
fn check_trailer(path: &Path, mut file: File, end: u64) -> Result<(), PrepareError> {
    file.seek(SeekFrom::Start(end)).map_err(PrepareError::io("read", path))?;
    let mut reader = BufReader::new(file);
    let (mut at, mut block) = (end, [0; BLOCK_BYTES as usize]);
    loop {
        let num = reader.read(&mut block).map_err(PrepareError::io("read", path))?;
        if let Some(first) = block[..num].iter().position(|next| *next != 0) {
            return Err(broken(path, at + first as u64, "bytes behind the end of the archive".to_owned()));
        }
        if num == 0 {
            return Ok(());
        }
        at += num as u64;
    }
}

fn broken(path: &Path, at: u64, found: String) -> PrepareError {
    PrepareError::BrokenFile {
        path: path.to_owned(),
        position: format!("byte {at}"),
        expected: "a whole member of a tar file",
        found,
    }
}

fn check_not_compressed(path: &Path) -> Result<(), PrepareError> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(PrepareError::io("read", path))?;
    file.take(8).read_to_end(&mut head).map_err(PrepareError::io("read", path))?;
    match COMPRESSED_MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        None => Ok(()),
        Some(&(_, found)) => Err(PrepareError::WrongFormat {
            path: path.to_owned(),
            source_name: SOURCE,
            expected: "a tar file that is not compressed",
            found,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vela_types::Sample;

    use super::*;
    use crate::sources::testing::{causes, check_named, png, read_all, samples};

    fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).expect("appended");
        }
        builder.into_inner().expect("finished")
    }

    fn open(content: &[u8]) -> Result<(tempfile::TempDir, TarFile), PrepareError> {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("shard.tar");
        std::fs::write(&path, content).expect("file");
        let file = TarFile::open(&path, SourceContext::for_test("shard"))?;
        Ok((folder, file))
    }

    fn read(members: &[(&str, &[u8])]) -> Vec<Entry> {
        let (_folder, file) = open(&tar_of(members)).expect("opens");
        read_all(&file).expect("reads")
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

    const TALK: &[u8] =
        br#"{"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]}"#;

    #[test]
    fn captions_come_from_text_and_from_json() {
        let photo = png(2, 2, [1, 2, 3]);
        let entries = read(&[
            ("./00/0001.jpg", &photo),
            ("./00/0001.txt", " Ein Bär.\r\n".as_bytes()),
            ("00/0002.json", b"\xef\xbb\xbf{\"caption\": \"A dog.\", \"key\": \"0002\", \"status\": \"success\"}"),
            ("00/0002.PNG", &photo),
            ("00/0002.txt", b"not this"),
            ("00/0003.png", &photo),
            ("00/0003.json", b"{\"url\": \"http://x\"}"),
            ("00/0003.txt", b"A bird."),
            ("00/0003.cls", b"7"),
        ]);
        let captions: Vec<&RawCaption> = entries
            .iter()
            .map(|entry| match &entry.content {
                Ok(RawContent::Caption(caption)) => caption,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            captions.iter().map(|caption| caption.global.as_str()).collect::<Vec<_>>(),
            ["Ein Bär.", "A dog.", "A bird."]
        );
        assert_eq!(captions[0].id, "webdataset/shard/00%2F0001");
        assert_eq!(captions[1].image.name(), "webdataset/shard/00%2F0002, `0002.png`");
    }

    #[test]
    fn dialogues_of_every_layout_with_one_image_several_or_none() {
        let photos: Vec<Vec<u8>> = (0..12).map(|red| png(1, 1, [red, 0, 0])).collect();
        let many: String = "<image>".repeat(11);
        let many =
            format!(r#"[{{"role": "user", "content": "{many} Same?"}}, {{"role": "assistant", "content": "No."}}]"#);
        let named = br#"{"image": ["x/b.two.jpg", "b.one.jpg", "b.two.jpg"], "conversations": [
            {"from": "human", "value": "<image><image><image>?"}, {"from": "gpt", "value": "Yes."}]}"#;
        let parts =
            br#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "d.jpg"}},
            {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": "A cat."}]}"#;
        let text = br#"{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}"#;
        let numbered: Vec<(String, &[u8])> =
            [10, 1, 0, 2, 3, 4, 5, 6, 7, 8, 9].map(|at| (format!("c.img{at}.jpg"), photos[at].as_slice())).into();
        let mut members: Vec<(&str, &[u8])> = vec![("a.jpg", &photos[0]), ("a.json", TALK)];
        members.extend([("b.one.jpg", photos[1].as_slice()), ("b.two.jpg", &photos[2]), ("b.json", named)]);
        members.extend(numbered.iter().map(|(name, photo)| (name.as_str(), *photo)));
        members.extend([("c.json", many.as_bytes()), ("d.jpg", &photos[11]), ("d.json", parts), ("e.json", text)]);
        let samples = samples(read(&members));
        assert_eq!(samples.iter().map(|sample| sample.images.len()).collect::<Vec<_>>(), [1, 3, 11, 1, 0]);
        assert_eq!(files(&samples[1]), [&photos[2][..], &photos[1], &photos[2]]);
        assert_eq!(files(&samples[2]), photos[..11].iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(samples[3].turns[0].text, "<image>\nWhat?");
    }

    #[test]
    fn every_fault_of_a_sample_is_named_and_no_key_is_lost() {
        let photo = png(1, 1, [0; 3]);
        let entries = read(&[
            ("a.jpg", &photo),
            ("b.txt", b"A cat."),
            ("c.mp", b"x"),
            ("d.txt.gz", b"\x1f\x8b"),
            ("e.jpg", &photo),
            ("e.JPG", &photo),
            ("f.jpg", &photo),
            ("f.json", b"{"),
            ("g.jpg", &photo),
            ("g.txt", b"\xff"),
            ("h.jpg", &photo),
            ("h.txt", b" \n"),
            ("i.0.jpg", &photo),
            ("i.1.jpg", &photo),
            ("i.txt", b"Two images."),
            ("j.json", TALK),
            ("a.txt", b"Too late."),
            ("README", b"x"),
            ("k.json", b"{\"conversations\": 7}"),
            (".hidden.jpg", &photo),
            ("__meta__/a.jpg", &photo),
            ("l.depth.npy.gz", b"\x1f\x8b"),
            ("l.jpg", &photo),
            ("l.txt", b"A cat."),
        ]);
        let expected = [
            "missing_field",
            "missing_image",
            "unknown_member",
            "compressed_member",
            "duplicate_member",
            "broken_json",
            "not_utf8",
            "empty_caption",
            "several_images",
            "mark_count",
            "missing_image",
            "unknown_member",
            "missing_field",
            "",
        ];
        assert_eq!(causes(&entries), expected);
        assert_eq!(entries[10].content.as_ref().expect_err("late").id.as_deref(), Some("webdataset/shard/a~2"));
        assert_eq!(entries[11].content.as_ref().expect_err("no dot").id.as_deref(), Some("webdataset/shard/README"));
    }

    #[test]
    fn files_numbered_behind_the_first_dot_are_one_sample_that_is_not_read() {
        let photo = png(1, 1, [0; 3]);
        let names: Vec<String> = (0..600).map(|number| format!("frame.{number:06}.jpg")).collect();
        let mut members: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), photo.as_slice())).collect();
        members.extend([("b.jpg", photo.as_slice()), ("b.txt", b"A cat.")]);
        let entries = read(&members);
        assert_eq!(causes(&entries), ["too_large", ""]);
        let fault = entries[0].content.as_ref().expect_err("too many");
        assert!(fault.detail.contains("600 members") && fault.detail.contains("first dot"), "{}", fault.detail);
        assert_eq!(fault.id.as_deref(), Some("webdataset/shard/frame"));
    }

    #[test]
    fn a_sample_of_too_many_bytes_is_told_by_its_headers() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("shard.tar");
        let mut builder = tar::Builder::new(File::create(&path).expect("file"));
        let half = MAX_SAMPLE_BYTES / 2 + 1;
        for name in ["a.0.jpg", "a.1.jpg", "b.bin", "b.txt"] {
            let mut header = tar::Header::new_gnu();
            let num_bytes = if name.starts_with('b') { 3 } else { half };
            header.set_size(num_bytes);
            builder.append_data(&mut header, name, std::io::repeat(b'x').take(num_bytes)).expect("appended");
        }
        builder.into_inner().expect("finished");
        let file = TarFile::open(&path, SourceContext::for_test("shard")).expect("opens");
        assert_eq!(file.too_large.keys().collect::<Vec<_>>(), [&0]);
        assert_eq!(causes(&read_all(&file).expect("reads")), ["too_large", "missing_image"]);
    }

    #[test]
    fn long_names_folders_and_links_do_not_disturb() {
        let (photo, long) = (png(1, 1, [0; 3]), "x".repeat(150));
        let mut builder = tar::Builder::new(Vec::new());
        let mut append = |kind: tar::EntryType, name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).expect("appended");
        };
        append(tar::EntryType::Directory, "d/", b"");
        append(tar::EntryType::Regular, &format!("d/{long}.jpg"), &photo);
        append(tar::EntryType::Symlink, "d/link.jpg", b"");
        append(tar::EntryType::Regular, &format!("d/{long}.json"), TALK);
        append(tar::EntryType::Regular, &format!("d/{long}y.json"), TALK);
        append(tar::EntryType::Regular, &format!("d/{long}y.jpg"), &photo);
        let (_folder, file) = open(&builder.into_inner().expect("finished")).expect("opens");
        let samples = samples(read_all(&file).expect("reads"));
        assert_eq!(samples.iter().map(|sample| sample.id.len()).collect::<Vec<_>>(), [171, 172]);
    }

    #[test]
    fn a_broken_file_is_named_with_its_byte() {
        let photo = png(8, 8, [1; 3]);
        let whole = tar_of(&[("a.jpg", &photo), ("a.json", TALK)]);
        let second = 512 + photo.len().next_multiple_of(512);
        for cut in [second + 100, second + 512 + 10, second + 512 + TALK.len(), 300] {
            let told = open(&whole[..cut]).err().expect("cut").to_string();
            let start = if cut < second { 0 } else { second };
            assert!(told.contains("shard.tar") && told.contains(&format!("byte {start}:")), "{cut}: {told}");
        }
        let told = open(&[&whole[..], &whole[..]].concat()).err().expect("two archives").to_string();
        assert!(told.contains(&format!("byte {}:", whole.len())), "{told}");
        let told = open(b"\x1f\x8b\x08 gzip").err().expect("gzip").to_string();
        assert!(told.contains("not compressed") && told.contains("by gzip"), "{told}");
        let told = open(&[b'\xFE'; 2048]).err().expect("no tar").to_string();
        assert!(told.contains("byte 0:") && told.ends_with("it is not a tar file"), "{told}");
        assert_eq!(open(b"").expect("empty").1.num_records(), 0);
        let (_folder, file) = open(&tar_of(&[("a.mp", b"x"), ("b.mp", b"x")])).expect("opens");
        assert_eq!((file.num_records(), file.num_recognized()), (2, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_entries_or_a_named_fault_of_the_file(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), at in any::<usize>(), to in any::<u8>(), cut in 0usize..6000,
            text in proptest::collection::vec(any::<u8>(), 0..30), name in "[a-c./_]{1,6}",
        ) {
            let photo = png(1, 1, [0; 3]);
            let mut members: Vec<(&str, &[u8])> = vec![("a.jpg", &photo), ("a.json", TALK), ("b.0.jpg", &photo), ("b.json", &text)];
            members.extend([("c.txt", text.as_slice()), ("c.png", &photo)]);
            let mut mutated = tar_of(&members);
            let mut header = tar::Header::new_gnu();
            let mut odd = tar::Builder::new(Vec::new());
            header.set_size(text.len() as u64);
            // Names with `..` are refused by the builder, not by us.
            let odd = match odd.append_data(&mut header, &name, &text[..]) {
                Ok(()) => odd.into_inner().expect("finished"),
                Err(_) => Vec::new(),
            };
            let at = at % mutated.len();
            mutated[at] = to;
            mutated.truncate(cut);
            for content in [bytes, mutated, odd] {
                match open(&content) {
                    Ok((_folder, file)) => check_named(&read_all(&file).expect("what was scanned can be read")),
                    Err(PrepareError::BrokenFile { .. } | PrepareError::WrongFormat { .. }) => {}
                    Err(fault) => prop_assert!(false, "{fault}"),
                }
            }
        }
    }
}
