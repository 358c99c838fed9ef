//! CogVLM-SFT-311K: folders `labels`, `labels_zh` or `labels_en` of one JSON file per image, beside a folder `images`; label and
//! image share the name up to its ending. A label is `{"conversations": [{role, content}]}`, a dialogue, or
//! `{"captions": [{"role": "caption", "content"}]}`, whose first caption is that of the whole image and whose others, if there
//! are any, are local captions. No text holds `<image>`: the mark is put in front of the first user turn.
//!
//! A folder of labels counts as one raw file, its labels in the order of their names; a sample is `cogvlm/<folder>/<name>`. Names
//! stay in memory, some 40 bytes a label, contents do not. A label without an image is `missing_image`; an image without
//! a label is no record.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde_json::Value;
use vela_types::{Fingerprint, IMAGE_MARK, ImageRef, Role, Turn};

use super::fields::{IMAGE_ENDINGS, Place, TurnFields, escaped};
use super::images::ImageListing;
use super::walk::walk;
use super::{Emit, Entry, Fault, RawCaption, RawContent, RawFile, SourceContext};
use crate::PrepareError;

const SOURCE: &str = "cogvlm";
const LABEL_FOLDERS: [&str; 3] = ["labels", "labels_en", "labels_zh"];
const IMAGE_FOLDER: &str = "images";
const LABEL_ENDING: &str = ".json";
/// A label longer than this is taken for a broken one.
const MAX_LABEL_BYTES: u64 = 64 << 20;

const TURNS: TurnFields<'_> = TurnFields {
    role: "role",
    text: "content",
    roles: &[("user", Role::User), ("assistant", Role::Assistant), ("system", Role::System)],
};
const CAPTIONS: TurnFields<'_> = TurnFields { role: "role", text: "content", roles: &[("caption", Role::Assistant)] };

/// The folders of labels at or below `root`, in the order of their names.
pub(super) fn label_folders(root: &Path, output: Option<&Path>) -> Result<Vec<PathBuf>, PrepareError> {
    let mut folders = BTreeSet::new();
    walk(root, output, &mut |path, _| {
        let Some(folder) = path.parent() else { return };
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let is_label = path.to_string_lossy().ends_with(LABEL_ENDING);
        if is_label && LABEL_FOLDERS.contains(&name.as_ref()) && !folders.contains(folder) {
            folders.insert(folder.to_owned());
        }
    })?;
    Ok(folders.into_iter().collect())
}

/// Bytes and blake3 of the labels in a folder, names included.
pub(super) fn hash_labels(folder: &Path) -> Result<(u64, Fingerprint), PrepareError> {
    let (mut hasher, mut num_bytes) = (blake3::Hasher::new(), 0);
    for stem in file_names(folder)?.iter().filter_map(|name| name.strip_suffix(LABEL_ENDING)) {
        let path = label_path(folder, stem);
        let file = File::open(&path).map_err(PrepareError::io("read", &path))?;
        let mut of_label = blake3::Hasher::new();
        of_label.update_reader(file).map_err(PrepareError::io("read", &path))?;
        num_bytes += of_label.count();
        hasher.update(&(stem.len() as u64).to_le_bytes()).update(stem.as_bytes());
        hasher.update(of_label.finalize().as_bytes());
    }
    Ok((num_bytes, Fingerprint(*hasher.finalize().as_bytes())))
}

/// One folder of labels.
pub(super) struct LabelFolder {
    path: PathBuf,
    context: SourceContext,
    /// Names of the labels without their ending, sorted.
    stems: Vec<String>,
    /// Names of the files in `images` beside the labels, sorted; empty with `--images`.
    images: Vec<String>,
    num_recognized: u64,
    listing: Fingerprint,
}

impl LabelFolder {
    pub(super) fn open(path: &Path, context: SourceContext) -> Result<Self, PrepareError> {
        let names = file_names(path)?;
        let stems = names.iter().filter_map(|name| Some(name.strip_suffix(LABEL_ENDING)?.to_owned())).collect();
        let beside = path.join("..").join(IMAGE_FOLDER);
        let images = match context.images.is_beside_data() && beside.is_dir() {
            true => file_names(&beside)?,
            false => Vec::new(),
        };
        let (path, listing) = (path.to_owned(), Fingerprint::default());
        let mut this = Self { path, context, stems, images, num_recognized: 0, listing };
        this.num_recognized = this.count_recognized()?;
        this.listing = this.list_images();
        Ok(this)
    }

    /// One if any label is of the format, found at the first of them; each label is a file, so counting all would read them all.
    fn count_recognized(&self) -> Result<u64, PrepareError> {
        for stem in &self.stems {
            let is_known = |label: Value| label.get("conversations").or_else(|| label.get("captions")).is_some();
            if self.read_label(stem)?.is_ok_and(is_known) {
                return Ok(1);
            }
        }
        Ok(0)
    }

    fn list_images(&self) -> Fingerprint {
        let mut listing = ImageListing::default();
        for name in self.stems.iter().filter_map(|stem| self.beside(stem).ok()) {
            self.context.images.note(&mut listing, &format!("../{IMAGE_FOLDER}/{name}"), &self.path);
        }
        listing.fingerprint()
    }

    fn read_label(&self, stem: &str) -> Result<Result<Value, Fault>, PrepareError> {
        let path = label_path(&self.path, stem);
        let num_bytes = fs::metadata(&path).map_err(PrepareError::io("read", &path))?.len();
        if num_bytes > MAX_LABEL_BYTES {
            let detail = format!("expected a label of at most {MAX_LABEL_BYTES} bytes, found {num_bytes}");
            return Ok(Err(Fault::new("broken_json", detail)));
        }
        let bytes = fs::read(&path).map_err(PrepareError::io("read", &path))?;
        Ok(parse_label(&bytes))
    }

    fn content(&self, stem: &str, label: Result<Value, Fault>, id: &str) -> Result<RawContent, Fault> {
        let (label, image) = (label?, self.image(stem)?);
        match (label.get("conversations"), label.get("captions")) {
            (Some(turns), None) => {
                let mut turns = TURNS.read_all(turns, "conversations")?;
                put_mark(&mut turns);
                let place = Place { id, images: &self.context.images, folder: &self.path };
                place.dialogue(SOURCE, vec![image], turns)
            }
            (None, Some(captions)) => {
                let texts = CAPTIONS.read_all(captions, "captions")?.into_iter().map(|caption| caption.text);
                let mut texts = texts.filter(|text| !text.is_empty());
                let global = texts.next().ok_or_else(|| Fault::new("empty_caption", "`captions` holds no text"))?;
                let (id, locals) = (id.to_owned(), texts.collect());
                Ok(RawContent::Caption(RawCaption { id, source: SOURCE, image, global, locals, prompts: &[] }))
            }
            (None, None) => {
                Err(Fault::new("missing_field", "expected a field `conversations` or `captions`, found neither"))
            }
            (Some(_), Some(_)) => Err(Fault::new("wrong_type", "expected `conversations` or `captions`, found both")),
        }
    }

    fn image(&self, stem: &str) -> Result<ImageRef, Fault> {
        if self.context.images.is_beside_data() {
            let name = format!("../{IMAGE_FOLDER}/{}", self.beside(stem)?);
            return self.context.images.resolve(&name, &self.path);
        }
        let kind = self.kind().map_or(String::new(), |kind| format!("{kind}/"));
        let mut refused = None;
        for ending in IMAGE_ENDINGS {
            let name = format!("{kind}{IMAGE_FOLDER}/{stem}.{ending}");
            match self.context.images.resolve(&name, &self.path) {
                Ok(found) if Path::new(found.name()).is_file() => return Ok(found),
                Ok(_) => {}
                Err(fault) if fault.cause == "missing_image" => refused = refused.or(Some(fault)),
                Err(fault) => return Err(fault),
            }
        }
        Err(refused.unwrap_or_else(|| missing(stem)))
    }

    /// What tells the images of these labels from those of another kind: the folders above the labels as far as they are below the
    /// input, at least the nearest.
    fn kind(&self) -> Option<String> {
        let below = self.context.below.rsplit_once('/').map(|(kind, _)| kind.to_owned());
        below.or_else(|| Some(self.path.canonicalize().ok()?.parent()?.file_name()?.to_string_lossy().into_owned()))
    }

    /// The name of the one image beside the labels that has this name up to its ending.
    fn beside(&self, stem: &str) -> Result<&str, Fault> {
        let prefix = format!("{stem}.");
        let first = self.images.partition_point(|name| *name < prefix);
        let same_start = self.images[first..].iter().take_while(|name| name.starts_with(&prefix));
        let mut found = same_start.filter(|name| is_image_ending(&name[prefix.len()..]));
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => {
                let detail = format!("`{stem}` may be `{first}` or `{second}` in `{IMAGE_FOLDER}`; expected one");
                Err(Fault::new("ambiguous_image", detail))
            }
            (first, _) => first.map(String::as_str).ok_or_else(|| missing(stem)),
        }
    }
}

impl RawFile for LabelFolder {
    fn num_records(&self) -> u64 {
        self.stems.len() as u64
    }

    fn num_recognized(&self) -> u64 {
        self.num_recognized
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        for record in records {
            let stem = &self.stems[record as usize];
            let id = format!("{SOURCE}/{}/{}", self.context.stem, escaped(stem));
            let label = self.read_label(stem)?;
            let content = self.content(stem, label, &id).map_err(|fault| fault.of(&id));
            if emit(Entry { record, content }) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

fn parse_label(bytes: &[u8]) -> Result<Value, Fault> {
    let bytes = bytes.strip_prefix(&[0xEF, 0xBB, 0xBF]).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|fault| {
        Fault::new("not_utf8", format!("byte {} of the label: expected UTF-8", fault.valid_up_to()))
    })?;
    serde_json::from_str(text).map_err(|fault| Fault::new("broken_json", fault.to_string()))
}

/// Puts the image in front of the first user turn, if no user turn has it yet.
fn put_mark(turns: &mut [Turn]) {
    let is_marked = turns.iter().any(|turn| turn.role == Role::User && turn.text.contains(IMAGE_MARK));
    let first = turns.iter_mut().find(|turn| turn.role == Role::User && !turn.text.is_empty());
    if let (false, Some(turn)) = (is_marked, first) {
        turn.text = format!("{IMAGE_MARK}\n{}", turn.text);
    }
}

fn missing(stem: &str) -> Fault {
    Fault::new("missing_image", format!("no image `{IMAGE_FOLDER}/{stem}.jpg`, or with another ending, for the label"))
}

fn is_image_ending(ending: &str) -> bool {
    IMAGE_ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
}

fn label_path(folder: &Path, stem: &str) -> PathBuf {
    folder.join(format!("{stem}{LABEL_ENDING}"))
}

/// Names of the files directly in `folder`, sorted.
fn file_names(folder: &Path) -> Result<Vec<String>, PrepareError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(PrepareError::io("list", folder))? {
        let entry = entry.map_err(PrepareError::io("list", folder))?;
        // Links are followed; a dangling one is no file.
        if fs::metadata(entry.path()).is_ok_and(|data| data.is_file()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;
    use vela_types::Language;

    use super::*;
    use crate::sources::ImageFolder;
    use crate::sources::testing::{causes, check_named, read_all, samples};

    fn write(root: &Path, name: &str, content: impl AsRef<[u8]>) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("folder");
        fs::write(path, content).expect("file");
    }

    fn dialogue(turns: &[(&str, &str)]) -> String {
        let turns: Vec<Value> = turns.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
        json!({ "conversations": turns }).to_string()
    }

    fn open(root: &Path, name: &str, images: Option<&Path>) -> LabelFolder {
        let images = Arc::new(ImageFolder::open(images, None).expect("listing"));
        let context = SourceContext { images, ..SourceContext::for_test(name) };
        LabelFolder::open(&root.join(name), context).expect("opens")
    }

    #[test]
    fn labels_of_both_kinds_meet_their_images_by_name() {
        let root = tempfile::tempdir().expect("temp folder");
        let caption = json!({"captions": [{"role": "caption", "content": " 一只猫。\r\n"}, {"role": "caption", "content": "猫是黑色的。"}]});
        write(root.path(), "details/labels_zh/00000001.json", caption.to_string());
        write(root.path(), "details/images/00000001.png", b"x");
        let talk = dialogue(&[("user", "What?"), ("assistant", "A cat."), ("user", "Where?"), ("assistant", "Here.")]);
        write(root.path(), "multi/labels_en/000000033.json", format!("\u{feff}{talk}"));
        write(root.path(), "multi/images/000000033.JPG", b"x");
        write(root.path(), "multi/images/000000034.jpg", b"an image without a label");

        let folders = label_folders(root.path(), None).expect("found");
        let expected = ["details/labels_zh", "multi/labels_en"].map(|name| root.path().join(name));
        assert_eq!(folders, expected);
        let entries = read_all(&open(root.path(), "details/labels_zh", None)).expect("reads");
        let Ok(RawContent::Caption(caption)) = &entries[0].content else { panic!("{entries:?}") };
        assert_eq!((caption.id.as_str(), caption.global.as_str()), ("cogvlm/details/labels_zh/00000001", "一只猫。"));
        assert_eq!(caption.locals, ["猫是黑色的。"]);
        assert!(caption.image.name().ends_with("00000001.png") && Path::new(caption.image.name()).is_file());
        let samples = samples(read_all(&open(root.path(), "multi/labels_en", None)).expect("reads"));
        assert_eq!(samples[0].turns[0].text, "<image>\nWhat?");
        assert_eq!((samples[0].turns.len(), samples[0].language), (4, Language::En));
        assert!(Path::new(samples[0].images[0].name()).is_file());
    }

    #[test]
    fn every_fault_of_a_label_is_named() {
        let root = tempfile::tempdir().expect("temp folder");
        let good = dialogue(&[("user", "What?"), ("assistant", "A cat.")]);
        let marked = dialogue(&[("user", "<image> What?"), ("assistant", "A cat.")]);
        let both = r#"{"captions": [], "conversations": []}"#;
        let labels: [(&str, &[u8], &str); 11] = [
            ("a", good.as_bytes(), ""),
            ("b", marked.as_bytes(), ""),
            ("c", br#"{"captions": [{"role": "caption", "content": " "}]}"#, "empty_caption"),
            ("d", b"{\"captions\": [", "broken_json"),
            ("e", b"\xff", "not_utf8"),
            ("f", br#"{"caption": "no"}"#, "missing_field"),
            ("g", both.as_bytes(), "wrong_type"),
            ("h", br#"{"conversations": [{"role": "cat", "content": "Hi"}]}"#, "unknown_role"),
            ("i", br#"{"conversations": [{"role": "user", "content": "Hi"}]}"#, "odd_turns"),
            ("j", good.as_bytes(), "missing_image"),
            ("k", good.as_bytes(), "ambiguous_image"),
        ];
        for (name, content, _) in labels {
            write(root.path(), &format!("labels/{name}.json"), content);
            if name != "j" {
                write(root.path(), &format!("images/{name}.jpg"), b"x");
            }
        }
        write(root.path(), "images/k.png", b"x");
        write(root.path(), "images/j.b.jpg", b"another name");
        let entries = read_all(&open(root.path(), "labels", None)).expect("reads");
        assert_eq!(causes(&entries), labels.map(|(_, _, cause)| cause));
        let fault = entries[9].content.as_ref().expect_err("a fault");
        assert_eq!(fault.id.as_deref(), Some("cogvlm/labels/j"));
    }

    #[test]
    fn an_image_folder_elsewhere_is_searched_by_the_folder_of_the_labels() {
        let root = tempfile::tempdir().expect("temp folder");
        let talk = dialogue(&[("user", "What?"), ("assistant", "A cat.")]);
        for kind in ["multi", "single"] {
            write(root.path(), &format!("raw/{kind}/labels_zh/7.json"), &talk);
            write(root.path(), &format!("photos/{kind}/images/7.webp"), kind);
        }
        write(root.path(), "raw/single/labels_zh/8.json", &talk);
        write(root.path(), "photos/multi/images/8.webp", "that of another label");
        let photos = root.path().join("photos");
        // The input may be the folder above, or that of the kind alone.
        for stem in ["single/labels_zh", "labels_zh"] {
            let folder = LabelFolder::open(
                &root.path().join("raw/single/labels_zh"),
                SourceContext {
                    images: Arc::new(ImageFolder::open(Some(&photos), None).expect("listing")),
                    ..SourceContext::for_test(stem)
                },
            );
            let entries = read_all(&folder.expect("opens")).expect("reads");
            assert_eq!(causes(&entries), ["", "missing_image"], "{stem}");
            let samples = samples(entries.into_iter().take(1).collect());
            assert_eq!(fs::read(samples[0].images[0].name()).expect("there"), b"single");
        }
    }

    #[test]
    fn an_image_folder_of_one_kind_has_no_image_for_the_labels_of_another() {
        let root = tempfile::tempdir().expect("temp folder");
        let talk = dialogue(&[("user", "What?"), ("assistant", "A cat.")]);
        for kind in ["multi", "single"] {
            write(root.path(), &format!("{kind}/labels_zh/8.json"), &talk);
        }
        write(root.path(), "single/images/8.jpg", "x");
        let photos = root.path().join("single");
        for (kind, expected) in [("single", ""), ("multi", "missing_image")] {
            let images = Arc::new(ImageFolder::open(Some(&photos), None).expect("listing"));
            let context = SourceContext { images, ..SourceContext::for_test(&format!("{kind}/labels_zh")) };
            let folder = LabelFolder::open(&root.path().join(kind).join("labels_zh"), context).expect("opens");
            assert_eq!(causes(&read_all(&folder).expect("reads")), [expected], "{kind}");
        }
    }

    #[test]
    fn the_hash_covers_every_label_and_the_listing_every_image() {
        let root = tempfile::tempdir().expect("temp folder");
        let talk = dialogue(&[("user", "What?"), ("assistant", "A cat.")]);
        ["1", "2"].iter().for_each(|name| write(root.path(), &format!("labels/{name}.json"), &talk));
        let labels = root.path().join("labels");
        let look = || (hash_labels(&labels).expect("hashed"), open(root.path(), "labels", None).images());
        let first = look();
        assert_eq!(first.0.0, 2 * talk.len() as u64);
        write(root.path(), "images/2.jpg", b"x");
        let second = look();
        assert!(first.0 == second.0 && first.1 != second.1, "an image came");
        write(root.path(), "labels/2.json", talk.replace("cat", "dog"));
        let third = look();
        assert!(second.0.1 != third.0.1 && second.1 == third.1, "a label changed");
        fs::rename(labels.join("1.json"), labels.join("3.json")).expect("renamed");
        assert_ne!(third.0.1, look().0.1);
    }

    #[test]
    fn labels_of_another_format_are_not_recognized() {
        let root = tempfile::tempdir().expect("temp folder");
        write(root.path(), "labels/1.json", r#"{"shapes": [], "imagePath": "1.jpg"}"#);
        assert_eq!(open(root.path(), "labels", None).num_recognized(), 0);
        write(root.path(), "labels/2.json", r#"{"captions": []}"#);
        assert_eq!(open(root.path(), "labels", None).num_recognized(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_of_a_label_are_content_or_a_named_fault(
            bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0usize..200, flip in 0usize..200, to in any::<u8>(),
        ) {
            let root = tempfile::tempdir().expect("temp folder");
            let mut mutated = dialogue(&[("user", "Was?"), ("assistant", "Ein Kätzchen.")]).into_bytes();
            let at = flip % mutated.len();
            mutated[at] = to;
            mutated.truncate(cut);
            for (name, label) in [("1", &bytes), ("2", &mutated)] {
                write(root.path(), &format!("labels/{name}.json"), label);
                write(root.path(), &format!("images/{name}.jpg"), b"x");
            }
            let entries = read_all(&open(root.path(), "labels", None)).expect("no fault of the folder");
            prop_assert_eq!(entries.len(), 2);
            check_named(&entries);
        }
    }
}
