//! COCO: one JSON object with `images` (`id`, `file_name`, `width`, `height`) and `annotations`. Of captions (`id`,
//! `image_id`, `caption`) each is one sample, `coco/<file stem>/<image id>/<annotation id>`. Of instances (`image_id`, `category_id`,
//! `bbox` as x, y, width, height in pixels) those of an image are one sample, `coco/<file stem>/<image id>/boxes`: a list of `category: [x1,
//! y1, x2, y2]`, corners as shares of width and height with three decimals; crowds are left out.
//!
//! Annotations are read as they are needed. The table of images stays in memory, and so do instances, 48 bytes each.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vela_types::{Fingerprint, IMAGE_MARK, SeedStream, Turn};

use super::fields::{Place, clean};
use super::images::ImageListing;
use super::json_file::cut_fault;
use super::records::{Cutter, RawRecord, find_lists};
use super::repeats::{Repeat, RepeatFinder};
use super::{Emit, Entry, Fault, RawCaption, RawContent, RawFile, SourceContext};
use crate::PrepareError;

/// One seek mark every this many annotations.
const MARK_EVERY: u64 = 256;
const SOURCE: &str = "coco";
const LISTS: &str = "a JSON object with the lists `images` and `annotations`";
/// Questions that a list of boxes answers; ours, as none are published with COCO.
const BOX_PROMPTS: [&str; 3] = [
    "List the objects in the image with their bounding boxes.",
    "Which objects are in this image, and where? Give the box of each as [x1, y1, x2, y2].",
    "Detect the objects in the picture and give their boxes as shares of width and height.",
];

#[derive(Clone, PartialEq, Deserialize)]
struct Image {
    id: u64,
    file_name: String,
    width: Option<f64>,
    height: Option<f64>,
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    name: String,
}

/// Fields are checked record by record, so that one wrong annotation does not cost the file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotation {
    id: Value,
    image_id: Value,
    caption: Option<Value>,
    bbox: Option<Value>,
    category_id: Value,
    iscrowd: Value,
}

impl Annotation {
    fn read(index: u64, record: &RawRecord) -> Result<Self, Fault> {
        let place = format!("line {}, annotation {index}", record.line);
        if !record.bytes.starts_with(b"{") {
            return Err(Fault::new("wrong_type", format!("{place}: expected an object")));
        }
        serde_json::from_slice(&record.bytes).map_err(|fault| Fault::new("broken_json", format!("{place}: {fault}")))
    }
}

fn not_a_number(name: &str, found: &Value) -> Fault {
    let cause = if found.is_null() { "missing_field" } else { "wrong_type" };
    let mut found = found.to_string();
    found.truncate(found.floor_char_boundary(80));
    Fault::new(cause, format!("annotation field `{name}`: expected a number, found `{found}`"))
}

/// The box of an object, as the file has it.
struct Instance {
    /// `None` if the file's is no number.
    category: Option<u64>,
    /// x, y, width, height; `None` if the file's are not four numbers.
    bbox: Option<[f32; 4]>,
}

/// What the annotations are.
enum Annotations {
    /// Where captions 0, 256, 512, ... stand (offset and line), and which repeat an id.
    Captions { num: u64, marks: Vec<(u64, u64)>, repeats: HashMap<u64, Repeat> },
    /// The instances of each image that has some, images in the order in which they first appear; and what is wrong with the
    /// annotations that belong to no image, records behind those of the images.
    Instances {
        images: Vec<u64>,
        of_image: HashMap<u64, Vec<Instance>>,
        categories: HashMap<u64, String>,
        lost: Vec<Fault>,
    },
}

/// One annotation file.
pub(super) struct CocoFile {
    path: PathBuf,
    context: SourceContext,
    images: HashMap<u64, Image>,
    /// Ids that stand for several files.
    ambiguous: HashSet<u64>,
    annotations: Annotations,
    num_recognized: u64,
    listing: Fingerprint,
}

impl CocoFile {
    pub(super) fn open(path: &Path, context: SourceContext) -> Result<Self, PrepareError> {
        let lists = ListFile::open(path)?;
        let (mut images, mut ambiguous) = (HashMap::<u64, Image>::new(), HashSet::new());
        lists.for_each("images", |_, record| {
            let image: Image = parse_row(path, "images", "`id` and `file_name`", &record)?;
            let first = images.entry(image.id).or_insert_with(|| image.clone());
            if *first != image {
                ambiguous.insert(image.id);
            }
            Ok(())
        })?;
        let annotations = Annotations::Captions { num: 0, marks: Vec::new(), repeats: HashMap::new() };
        let (path, listing) = (path.to_owned(), Fingerprint::default());
        let mut this = Self { path, context, images, ambiguous, annotations, num_recognized: 0, listing };
        this.scan(&lists)?;
        Ok(this)
    }

    /// Reads all annotations once.
    fn scan(&mut self, lists: &ListFile) -> Result<(), PrepareError> {
        let (mut marks, mut finder, mut num) = (Vec::new(), RepeatFinder::default(), 0);
        // Of an image that captions alone name: nothing.
        let (mut images, mut of_image) = (Vec::new(), HashMap::<u64, Option<Vec<Instance>>>::new());
        let mut captions = Vec::new();
        let (mut listing, mut num_boxes, mut num_captions, mut lost) = (ImageListing::default(), 0, 0, Vec::new());
        let path = self.path.clone();
        lists.for_each("annotations", |index, record| {
            if index % MARK_EVERY == 0 {
                marks.push((record.offset, record.line));
            }
            num = index + 1;
            let annotation = match Annotation::read(index, &record) {
                Ok(annotation) => annotation,
                Err(fault) => {
                    lost.push(fault.of(&format!("{SOURCE}/{}/#{index}", self.context.stem)));
                    return Ok(());
                }
            };
            let image = annotation.image_id.as_u64();
            if image.is_none() {
                let fault = not_a_number("image_id", &annotation.image_id);
                let detail = format!("line {}, {}", record.line, fault.detail);
                let fault = Fault { detail, ..fault };
                lost.push(fault.of(&format!("{SOURCE}/{}/#{index}", self.context.stem)));
            }
            if let Some(id) = annotation.id.as_u64().filter(|_| annotation.caption.is_some()) {
                finder.add(&id.to_string(), &[], index).map_err(PrepareError::io("sort the ids of", &path))?;
            }
            num_captions += u64::from(annotation.caption.is_some());
            num_boxes += u64::from(annotation.bbox.is_some());
            let is_caption = annotation.caption.is_some() && annotation.bbox.is_none();
            if let Some(image) = image.filter(|_| is_caption) {
                captions.push((index, image));
            }
            let is_new = image.is_some_and(|image| images.last() != Some(&image) && !of_image.contains_key(&image));
            if let Some(image) = image {
                let instances = of_image.entry(image).or_default();
                if !is_caption {
                    instances.get_or_insert_default().extend(Instance::read(&annotation));
                }
                if is_new {
                    images.push(image);
                    if let Some(Image { file_name, .. }) = self.images.get(&image) {
                        self.context.images.note(&mut listing, file_name, folder_of(&path));
                    }
                }
            }
            Ok(())
        })?;
        self.num_recognized = num_captions.max(num_boxes);
        self.listing = listing.fingerprint();
        self.annotations = if num_boxes > num_captions {
            lost.extend(captions.into_iter().map(|(index, image)| self.caption_among_boxes(index, image)));
            let of_image: HashMap<u64, Vec<Instance>> =
                of_image.into_iter().filter_map(|(image, instances)| Some((image, instances?))).collect();
            images.retain(|image| of_image.contains_key(image));
            Annotations::Instances { images, of_image, categories: lists.categories()?, lost }
        } else {
            let repeats = finder.finish().map_err(PrepareError::io("sort the ids of", &self.path))?;
            Annotations::Captions { num, marks, repeats }
        };
        Ok(())
    }

    /// The fault of a caption in a file whose samples are boxes.
    fn caption_among_boxes(&self, index: u64, image: u64) -> Fault {
        let detail = format!(
            "annotation {index} of image {image}: expected a `bbox`, as most of the file have, found a caption alone; \
             captions want a file of their own"
        );
        Fault::new("missing_field", detail).of(&format!("{SOURCE}/{}/#{index}", self.context.stem))
    }

    fn caption(&self, index: u64, record: &RawRecord, is_repeated: bool) -> Result<RawContent, Fault> {
        let annotation = Annotation::read(index, record)?;
        let number = |name: &str, value: &Value| value.as_u64().ok_or_else(|| not_a_number(name, value));
        let (image, own) = (number("image_id", &annotation.image_id)?, number("id", &annotation.id)?);
        let id = format!("{SOURCE}/{}/{image}/{own}", self.context.stem);
        let content = || {
            if is_repeated {
                return Err(Fault::new("duplicate_id", "an earlier annotation has the same id"));
            }
            let Some(Value::String(caption)) = &annotation.caption else {
                return Err(Fault::new("missing_field", "annotation field `caption`: expected a text"));
            };
            let global = clean(caption);
            if global.is_empty() {
                return Err(Fault::new("empty_caption", "annotation field `caption` holds no text"));
            }
            let image = self.place(&id).images.resolve(&self.image(image)?.file_name, folder_of(&self.path))?;
            let (id, source) = (id.clone(), SOURCE);
            Ok(RawContent::Caption(RawCaption { id, source, image, global, locals: vec![], prompts: &[] }))
        };
        content().map_err(|fault: Fault| fault.of(&id))
    }

    fn boxes(
        &self,
        image: u64,
        instances: &[Instance],
        categories: &HashMap<u64, String>,
    ) -> Result<RawContent, Fault> {
        let id = format!("{SOURCE}/{}/{image}/boxes", self.context.stem);
        let content = || {
            let known = self.image(image)?;
            let lines: Vec<String> =
                instances.iter().map(|instance| instance.line(known, categories)).collect::<Result<_, _>>()?;
            if lines.is_empty() {
                return Err(Fault::new("empty_caption", "the image has crowds alone"));
            }
            let prompt = *SeedStream::named(self.context.seed, "box prompt", &id).choose(&BOX_PROMPTS);
            let turns = vec![Turn::user(format!("{IMAGE_MARK}\n{prompt}")), Turn::assistant(lines.join("\n"))];
            let place = self.place(&id);
            place.dialogue(SOURCE, place.resolve(std::slice::from_ref(&known.file_name))?, turns)
        };
        content().map_err(|fault: Fault| fault.of(&id))
    }

    fn image(&self, id: u64) -> Result<&Image, Fault> {
        let unknown =
            || Fault::new("unknown_image", format!("`image_id` {id}: expected an entry of `images`, found none"));
        if self.ambiguous.contains(&id) {
            let detail = format!("`image_id` {id}: expected one entry of `images`, found several that differ");
            return Err(Fault::new("ambiguous_image", detail));
        }
        self.images.get(&id).ok_or_else(unknown)
    }

    fn place<'a>(&'a self, id: &'a str) -> Place<'a> {
        Place { id, images: &self.context.images, folder: folder_of(&self.path) }
    }

    fn read_captions(
        &self,
        records: Range<u64>,
        marks: &[(u64, u64)],
        repeats: &HashMap<u64, Repeat>,
        emit: &mut Emit<'_>,
    ) -> Result<(), PrepareError> {
        let nearest = records.start / MARK_EVERY;
        let Some(&(offset, line)) = marks.get(nearest as usize).filter(|_| !records.is_empty()) else { return Ok(()) };
        let mut cutter = cutter_at(&self.path, offset, line)?;
        for index in nearest * MARK_EVERY..records.end {
            let Some(raw) = cutter.next_record().map_err(|fault| cut_fault(&self.path, fault))? else { break };
            if records.contains(&index) {
                let content = self.caption(index, &raw, repeats.contains_key(&index));
                if emit(Entry { record: index, content }) == ControlFlow::Break(()) {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl RawFile for CocoFile {
    fn num_records(&self) -> u64 {
        match &self.annotations {
            Annotations::Captions { num, .. } => *num,
            Annotations::Instances { images, lost, .. } => (images.len() + lost.len()) as u64,
        }
    }

    fn num_recognized(&self) -> u64 {
        self.num_recognized
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        match &self.annotations {
            Annotations::Captions { marks, repeats, .. } => self.read_captions(records, marks, repeats, emit),
            Annotations::Instances { images, of_image, categories, lost } => {
                for record in records {
                    let content = match images.get(record as usize) {
                        Some(image) => self.boxes(*image, &of_image[image], categories),
                        None => Err(lost[record as usize - images.len()].clone()),
                    };
                    if emit(Entry { record, content }) == ControlFlow::Break(()) {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

impl Instance {
    /// `None` for a crowd.
    fn read(annotation: &Annotation) -> Option<Self> {
        let sides: Option<Vec<f32>> = annotation
            .bbox
            .as_ref()
            .and_then(Value::as_array)
            .and_then(|sides| sides.iter().map(|side| side.as_f64().map(|side| side as f32)).collect());
        let is_crowd = annotation.iscrowd.as_u64().is_some_and(|flag| flag != 0);
        let bbox = sides.and_then(|sides| sides.try_into().ok());
        (!is_crowd).then(|| Self { category: annotation.category_id.as_u64(), bbox })
    }

    /// `category: [x1, y1, x2, y2]`, LLaVA's form of a box.
    fn line(&self, image: &Image, categories: &HashMap<u64, String>) -> Result<String, Fault> {
        let [x, y, width, height] = self
            .bbox
            .map(|bbox| bbox.map(f64::from))
            .ok_or_else(|| Fault::new("wrong_type", "annotation field `bbox`: expected four numbers"))?;
        let (Some(full_width), Some(full_height)) = (image.width, image.height) else {
            let detail = format!("`images` entry {}: expected `width` and `height`", image.id);
            return Err(Fault::new("missing_field", detail));
        };
        let category = self.category.ok_or_else(|| not_a_number("category_id", &Value::Null))?;
        let name = categories.get(&category).ok_or_else(|| {
            let detail = format!("`category_id` {category}: expected an entry of `categories`, found none");
            Fault::new("unknown_category", detail)
        })?;
        let share = |value: f64, full: f64| (value / full).clamp(0.0, 1.0);
        let (x1, y1) = (share(x, full_width), share(y, full_height));
        let (x2, y2) = (share(x + width, full_width), share(y + height, full_height));
        Ok(format!("{name}: [{x1:.3}, {y1:.3}, {x2:.3}, {y2:.3}]"))
    }
}

/// A JSON object of lists.
struct ListFile {
    path: PathBuf,
    lists: HashMap<String, (u64, u64)>,
}

impl ListFile {
    fn open(path: &Path) -> Result<Self, PrepareError> {
        let reader = BufReader::new(File::open(path).map_err(PrepareError::io("read", path))?);
        let lists = find_lists(reader, LISTS).map_err(|fault| cut_fault(path, fault))?;
        match ["images", "annotations"].into_iter().find(|name| !lists.contains_key(*name)) {
            None => Ok(Self { path: path.to_owned(), lists }),
            Some(_) => Err(PrepareError::BrokenFile {
                path: path.to_owned(),
                position: "the whole file".to_owned(),
                expected: LISTS,
                found: format!("the lists {:?}", lists.keys().collect::<Vec<_>>()),
            }),
        }
    }

    /// Shows the elements of the list `name`, in order.
    fn for_each(
        &self,
        name: &str,
        mut visit: impl FnMut(u64, RawRecord) -> Result<(), PrepareError>,
    ) -> Result<(), PrepareError> {
        let Some(&(offset, line)) = self.lists.get(name) else { return Ok(()) };
        let mut cutter = cutter_at(&self.path, offset, line)?;
        let mut index = 0;
        while let Some(record) = cutter.next_record().map_err(|fault| cut_fault(&self.path, fault))? {
            visit(index, record)?;
            index += 1;
        }
        Ok(())
    }

    fn categories(&self) -> Result<HashMap<u64, String>, PrepareError> {
        let mut categories = HashMap::new();
        self.for_each("categories", |_, record| {
            let Category { id, name } = parse_row(&self.path, "categories", "`id` and `name`", &record)?;
            categories.insert(id, name);
            Ok(())
        })?;
        Ok(categories)
    }
}

fn cutter_at(path: &Path, offset: u64, line: u64) -> Result<Cutter<BufReader<File>>, PrepareError> {
    let mut file = File::open(path).map_err(PrepareError::io("read", path))?;
    file.seek(SeekFrom::Start(offset)).map_err(PrepareError::io("read", path))?;
    Ok(Cutter::inside(BufReader::new(file), offset, line))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn parse_row<T: DeserializeOwned>(
    path: &Path,
    list: &str,
    expected: &'static str,
    record: &RawRecord,
) -> Result<T, PrepareError> {
    serde_json::from_slice(&record.bytes).map_err(|fault| PrepareError::BrokenFile {
        path: path.to_owned(),
        position: format!("`{list}` at byte {} (line {})", record.offset, record.line + fault.line() as u64 - 1),
        expected,
        found: format!("`{fault}`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::testing::{causes, read_all, samples};

    fn read(text: &str) -> Result<Vec<Entry>, PrepareError> {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("a.json");
        std::fs::write(&path, text).expect("file");
        read_all(&CocoFile::open(&path, SourceContext::for_test("a"))?)
    }

    const IMAGES: &str =
        r#""images": [{"id": 7, "file_name": "7.jpg", "width": 200, "height": 100}, {"id": 8, "file_name": "8.jpg"}]"#;

    #[test]
    fn every_caption_is_a_sample_and_faults_are_named() {
        let text = format!(
            r#"{{"info": {{"x": [1]}}, "annotations": [{{"image_id": 7, "id": 1, "caption": " A cat. "}},
            {{"image_id": 7, "id": 2, "caption": ""}}, {{"image_id": 9, "id": 3, "caption": "Lost."}},
            {{"image_id": 8, "id": 1, "caption": "Again."}}, {{"id": 5, "caption": "No image."}}, {{"image_id": 8, "id": 6}}],
            {IMAGES}}}"#
        );
        let entries = read(&text).expect("reads");
        let expected = ["", "empty_caption", "unknown_image", "duplicate_id", "missing_field", "missing_field"];
        assert_eq!(causes(&entries), expected);
        let Ok(RawContent::Caption(caption)) = &entries[0].content else { panic!("a caption") };
        assert_eq!((caption.id.as_str(), caption.global.as_str()), ("coco/a/7/1", "A cat."));
    }

    #[test]
    fn the_instances_of_an_image_are_one_dialogue_of_boxes() {
        let text = format!(
            r#"{{{IMAGES}, "categories": [{{"id": 1, "name": "person"}}, {{"id": 2, "name": "dog"}}], "annotations": [
            {{"image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 50], "iscrowd": 0, "segmentation": [[1, 2]]}},
            {{"image_id": 8, "category_id": 1, "bbox": [1, 1, 1, 1]}},
            {{"image_id": 7, "category_id": 2, "bbox": [0, 0, 200, 100], "iscrowd": 1}},
            {{"image_id": 7, "category_id": 2, "bbox": [199.5, 0, 10, 100]}}]}}"#
        );
        let mut entries = read(&text).expect("reads");
        assert_eq!(causes(&entries), ["", "missing_field"]);
        entries.truncate(1);
        let samples = samples(entries);
        let expected = "person: [0.100, 0.100, 0.600, 0.600]\ndog: [0.998, 0.000, 1.000, 1.000]";
        assert_eq!((samples[0].id.as_str(), samples[0].turns[1].text.as_str()), ("coco/a/7/boxes", expected));
    }

    #[test]
    fn annotations_that_belong_to_no_image_are_rejects_behind_the_images() {
        let text = format!(
            r#"{{{IMAGES}, "categories": [{{"id": 1, "name": "person"}}], "annotations": [
            {{"image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 50]}}, 5, [1, 7], {{"image_id": 7, "category_id": oops}},
            {{"category_id": 1, "bbox": [1, 1, 1, 1]}}, {{"image_id": "7", "category_id": 1, "bbox": [1, 1, 1, 1]}},
            {{"image_id": 9, "category_id": 1, "bbox": [1, 1, 1, 1]}}, {{"image_id": 8, "category_id": 1}}]}}"#
        );
        let entries = read(&text).expect("reads");
        let expected = [
            "",
            "unknown_image",
            "wrong_type",
            "wrong_type",
            "wrong_type",
            "broken_json",
            "missing_field",
            "wrong_type",
        ];
        assert_eq!(causes(&entries), expected);
        let fault = entries[6].content.as_ref().expect_err("no image");
        assert_eq!(fault.id.as_deref(), Some("coco/a/#4"));
        assert!(fault.detail.contains("line 3") && fault.detail.contains("image_id"), "{}", fault.detail);
        let entries = read(&text.replace("\"category_id\": 1,", "\"category_id\": null,")).expect("reads");
        let detail = &entries[0].content.as_ref().expect_err("no category").detail;
        assert!(detail.contains("`category_id`") && detail.contains("null"), "{detail}");
    }

    #[test]
    fn an_image_id_of_two_files_is_a_fault_of_its_records() {
        let images = r#""images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"},
            {"id": 7, "file_name": "other.jpg"}, {"id": 8, "file_name": "8.jpg"}]"#;
        let captions = r#"{"image_id": 7, "id": 1, "caption": "A."}, {"image_id": 8, "id": 2, "caption": "B."}"#;
        let entries = read(&format!(r#"{{{images}, "annotations": [{captions}]}}"#)).expect("reads");
        assert_eq!(causes(&entries), ["ambiguous_image", ""]);
        let boxes = r#"{"image_id": 7, "category_id": 1, "bbox": [1, 1, 1, 1]}"#;
        let categories = r#""categories": [{"id": 1, "name": "person"}]"#;
        let entries = read(&format!(r#"{{{images}, {categories}, "annotations": [{boxes}]}}"#)).expect("reads");
        assert_eq!(causes(&entries), ["ambiguous_image"]);
    }

    #[test]
    fn captions_among_boxes_are_rejects_with_their_own_cause() {
        let text = format!(
            r#"{{{IMAGES}, "categories": [{{"id": 1, "name": "person"}}], "annotations": [
            {{"image_id": 7, "id": 1, "caption": "A cat."}}, {{"image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 50]}},
            {{"image_id": 8, "id": 2, "caption": "A dog."}}, {{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}},
            {{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}}]}}"#
        );
        let entries = read(&text).expect("reads");
        assert_eq!(causes(&entries), ["", "missing_field", "missing_field"]);
        for (entry, place) in entries[1..].iter().zip(["annotation 0 of image 7", "annotation 2 of image 8"]) {
            let fault = entry.content.as_ref().expect_err("a caption");
            assert!(fault.detail.contains(place) && fault.detail.contains("`bbox`"), "{}", fault.detail);
        }
    }

    #[test]
    fn a_broken_file_is_named_with_its_place() {
        for (text, expected) in
            [("[]", "a JSON object"), ("{\"images\": []}", "`annotations`"), ("{\"images\": [{}]", "`}`")]
        {
            let fault = read(text).expect_err(text).to_string();
            assert!(fault.contains(expected), "{fault}");
        }
    }
}
