//! What is known of an image: captions and boxes, from a list of records or from COCO's two files.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vela_runtime::clap;
use vela_types::Language;

use crate::PrepareError;
use crate::input_path::check_content;
use crate::json_records::{broken_json, read_records};
use crate::sources::Fault;

/// Corners beyond the image by no more than this are rounding.
const CORNER_SLACK: f64 = 0.002;

/// An object and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledBox {
    /// What it is.
    pub category: String,
    /// Left, top, right, bottom, as shares of the image's width and height, 0 to 1.
    pub corners: [f64; 4],
}

/// One image as its annotators describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFacts {
    /// The record's id.
    pub id: String,
    /// The image's file name.
    pub image: String,
    /// Sentences about the whole image, on one line each, none empty.
    pub captions: Vec<String>,
    /// Objects, in the data set's order.
    pub boxes: Vec<LabelledBox>,
}

impl ImageFacts {
    /// The language of the captions.
    pub fn language(&self) -> Language {
        Language::guess(&self.captions.join("\n"))
    }

    fn check(self) -> Result<Self, Fault> {
        let fault = |cause, detail: &str| Err(Fault::new(cause, detail).of(&self.id));
        match () {
            () if self.captions.is_empty() => fault("no_captions", "expected at least one caption, found none"),
            () if self.image.is_empty() => fault("missing_field", "field `image`: expected a file name"),
            () => Ok(self),
        }
    }
}

/// In which form captions and boxes are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FactSource {
    /// A JSON list or JSON lines of `{id, image, captions, instances: [{category, bbox: [x1, y1, x2, y2]}]}`, corners 0 to 1.
    CapsBoxes,
    /// COCO's captions file; `--instances` names the file with the boxes.
    Coco,
}

/// Takes each image's facts, or the fault of its record.
pub(super) type TakeFacts<'a> = dyn FnMut(Result<ImageFacts, Fault>) -> ControlFlow<()> + 'a;

/// Where the facts stand.
#[derive(Clone, Debug, PartialEq)]
pub struct FactInput {
    /// Form of the input.
    pub source: FactSource,
    /// The file.
    pub input: PathBuf,
    /// COCO's boxes.
    pub instances: Option<PathBuf>,
}

impl FactInput {
    /// Refuses an input without a record, before anything is written.
    pub(super) fn check_content(&self) -> Result<(), PrepareError> {
        check_content(&self.input, std::slice::from_ref(&self.input))?;
        let mut is_empty = true;
        let first = Self { instances: None, ..self.clone() };
        first.read(&mut |_| {
            is_empty = false;
            ControlFlow::Break(())
        })?;
        match is_empty {
            true => Err(PrepareError::NoRecords { path: self.input.clone() }),
            false => Ok(()),
        }
    }

    /// Shows the facts of each image in the file's order.
    pub(super) fn read(&self, take: &mut TakeFacts<'_>) -> Result<(), PrepareError> {
        match self.source {
            FactSource::CapsBoxes => {
                read_records(&self.input, None, &mut |record| take(record.and_then(|record| of_record(&record))))
            }
            FactSource::Coco => read_coco(&self.input, self.instances.as_deref(), take),
        }
    }
}

fn of_record(record: &Value) -> Result<ImageFacts, Fault> {
    let id = match &record["id"] {
        Value::String(id) if !id.is_empty() => id.clone(),
        Value::Number(id) => id.to_string(),
        _ => return Err(Fault::new("missing_field", "field `id`: expected a text or a number")),
    };
    let wrong = |cause, detail: &str| Fault::new(cause, detail).of(&id);
    let captions = match &record["captions"] {
        Value::Array(captions) => captions.iter().map(|caption| {
            caption
                .as_str()
                .map(one_line)
                .ok_or_else(|| wrong("wrong_type", "field `captions`: expected a list of texts"))
        }),
        Value::Null => return Err(wrong("missing_field", "field `captions`: expected a list of texts")),
        _ => return Err(wrong("wrong_type", "field `captions`: expected a list of texts")),
    };
    let captions = captions.filter(|caption| caption.as_ref().map_or(true, |text| !text.is_empty()));
    let captions = captions.collect::<Result<_, _>>()?;
    let boxes = match &record["instances"] {
        Value::Array(instances) => instances.iter().map(of_instance).collect::<Option<_>>(),
        Value::Null => Some(vec![]),
        _ => None,
    };
    let expected =
        "field `instances`: expected a list of `{category, bbox: [x1, y1, x2, y2]}` with corners from 0 to 1";
    let boxes = boxes.ok_or_else(|| wrong("broken_box", expected))?;
    let image = record["image"].as_str().unwrap_or_default().trim().to_owned();
    ImageFacts { id: id.clone(), image, captions, boxes }.check()
}

fn of_instance(instance: &Value) -> Option<LabelledBox> {
    let numbers: Vec<f64> = instance["bbox"].as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
    let corners: [f64; 4] = numbers.try_into().ok()?;
    let [left, top, right, bottom] = corners;
    let is_inside = corners.iter().all(|corner| (-CORNER_SLACK..=1.0 + CORNER_SLACK).contains(corner));
    let category = one_line(instance["category"].as_str()?);
    let is_sound = is_inside && left <= right && top <= bottom && !category.is_empty();
    is_sound.then_some(LabelledBox { category, corners: corners.map(|corner| corner.clamp(0.0, 1.0)) })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[derive(Deserialize)]
struct Captions {
    images: Vec<CocoImage>,
    annotations: Vec<CocoCaption>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
    width: f64,
    height: f64,
}

#[derive(Deserialize)]
struct CocoCaption {
    image_id: u64,
    caption: String,
}

#[derive(Deserialize)]
struct Instances {
    annotations: Vec<CocoInstance>,
    categories: Vec<CocoCategory>,
}

#[derive(Deserialize)]
struct CocoInstance {
    image_id: u64,
    category_id: u64,
    /// Left, top, width, height in pixels.
    bbox: [f64; 4],
    /// Not 0 for a crowd, whose box is that of no object.
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
struct CocoCategory {
    id: u64,
    name: String,
}

/// What the files say of one image.
#[derive(Default)]
struct Annotations {
    captions: Vec<String>,
    boxes: Vec<LabelledBox>,
    /// A category of a box that the file does not name.
    unknown_category: Option<u64>,
}

/// Joins the files by image, in the order of the captions file's images; an image that only boxes name is a fault behind them. The tables are held, some 100 bytes per annotation.
fn read_coco(captions: &Path, instances: Option<&Path>, take: &mut TakeFacts<'_>) -> Result<(), PrepareError> {
    let Captions { images, annotations } =
        parse(captions, "`images[].{id, file_name, width, height}` and `annotations[].{image_id, caption}`")?;
    let mut by_image: BTreeMap<u64, Annotations> = BTreeMap::new();
    for CocoCaption { image_id, caption } in annotations {
        let caption = one_line(&caption);
        if !caption.is_empty() {
            by_image.entry(image_id).or_default().captions.push(caption);
        }
    }
    if let Some(path) = instances {
        let sizes = images.iter().map(|image| (image.id, (image.width, image.height))).collect();
        add_boxes(path, &sizes, &mut by_image)?;
    }
    for CocoImage { id, file_name, .. } in images {
        let Annotations { captions, boxes, unknown_category } = by_image.remove(&id).unwrap_or_default();
        let stem = file_name.rsplit_once('.').map_or(file_name.as_str(), |(stem, _)| stem).to_owned();
        let facts = match unknown_category {
            None => ImageFacts { id: stem, image: file_name, captions, boxes }.check(),
            Some(category) => {
                let detail = format!("`category_id` {category}: expected an entry of `categories`, found none");
                Err(Fault::new("unknown_category", detail).of(&stem))
            }
        };
        if take(facts).is_break() {
            return Ok(());
        }
    }
    for image in by_image.into_keys() {
        let detail = format!("`image_id` {image}: expected an entry of the captions file's `images`, found none");
        if take(Err(Fault::new("unknown_image", detail))).is_break() {
            break;
        }
    }
    Ok(())
}

fn add_boxes(
    path: &Path,
    sizes: &HashMap<u64, (f64, f64)>,
    by_image: &mut BTreeMap<u64, Annotations>,
) -> Result<(), PrepareError> {
    let Instances { annotations, categories } =
        parse(path, "`annotations[].{image_id, category_id, bbox}` and `categories[].{id, name}`")?;
    let names: HashMap<u64, String> = categories.into_iter().map(|category| (category.id, category.name)).collect();
    for CocoInstance { image_id, category_id, bbox: [left, top, width, height], .. } in
        annotations.into_iter().filter(|instance| instance.iscrowd == 0)
    {
        let of_image = by_image.entry(image_id).or_default();
        // An image that is not known is told by its being left over.
        let Some((image_width, image_height)) = sizes.get(&image_id) else { continue };
        let Some(name) = names.get(&category_id) else {
            of_image.unknown_category = Some(category_id);
            continue;
        };
        let corners =
            [left / image_width, top / image_height, (left + width) / image_width, (top + height) / image_height];
        let corners = corners.map(|corner| corner.clamp(0.0, 1.0));
        of_image.boxes.push(LabelledBox { category: name.clone(), corners });
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(path: &Path, expected: &'static str) -> Result<T, PrepareError> {
    let file = File::open(path).map_err(PrepareError::io("read", path))?;
    serde_json::from_reader(BufReader::with_capacity(1 << 16, file))
        .map_err(|fault| broken_json(path, &fault, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &FactInput) -> Result<Vec<Result<ImageFacts, Fault>>, PrepareError> {
        let mut all = Vec::new();
        input.read(&mut |facts| {
            all.push(facts);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    #[test]
    fn records_are_read_and_each_fault_costs_one() {
        let root = tempfile::tempdir().expect("temp folder");
        let input = root.path().join("a.jsonl");
        let lines = [
            r#"{"id":7,"image":"7.jpg","captions":[" A cat.\n","","Two\ncats."],"instances":[{"category":"cat","bbox":[0,0.5,1.001,1]}]}"#,
            r#"{"id":"a","image":"a.jpg","captions":["A dog."]}"#,
            r#"{"id":"b","image":"b.jpg","captions":[" "]}"#,
            r#"{"id":"c","image":"c.jpg","captions":["A cat."],"instances":[{"category":"cat","bbox":[10,20,300,400]}]}"#,
            r#"{"id":"d","image":"d.jpg","captions":["A cat."],"instances":[{"category":"cat","bbox":[0.5,0,0.4,1]}]}"#,
            r#"{"id":"e","captions":["A cat."]}"#,
            r#"{"image":"f.jpg","captions":["A cat."]}"#,
            r#"{"id":"g","image":"g.jpg"}"#,
            r#"{"id":"h","image":"h.jpg","captions":[1]}"#,
            "{broken",
        ];
        std::fs::write(&input, lines.join("\n")).expect("file");
        let all = read(&FactInput { source: FactSource::CapsBoxes, input, instances: None }).expect("reads");
        let first = all[0].as_ref().expect("sound");
        assert_eq!(first.captions, ["A cat.", "Two cats."]);
        assert_eq!(first.boxes, [LabelledBox { category: "cat".into(), corners: [0.0, 0.5, 1.0, 1.0] }]);
        assert!(all[1].as_ref().expect("sound").boxes.is_empty());
        let causes: Vec<_> = all[2..].iter().map(|facts| facts.as_ref().expect_err("a fault").cause).collect();
        let expected = ["no_captions", "broken_box", "broken_box", "missing_field", "missing_field", "missing_field"];
        assert_eq!(causes, [&expected[..], &["wrong_type", "broken_json"]].concat());
    }

    #[test]
    fn coco_files_are_joined_by_image_and_boxes_become_corners() {
        let root = tempfile::tempdir().expect("temp folder");
        let (input, instances) = (root.path().join("captions.json"), root.path().join("instances.json"));
        let images = r#""images":[{"id":2,"file_name":"000002.jpg","width":200,"height":100},{"id":1,"file_name":"1.jpg","width":10,"height":10}]"#;
        let captions =
            r#""annotations":[{"id":5,"image_id":2,"caption":"A cat.\n"},{"id":6,"image_id":2,"caption":"One cat."}]"#;
        std::fs::write(&input, format!("{{{images},{captions}}}")).expect("file");
        let boxes = r#""annotations":[{"id":9,"image_id":2,"category_id":17,"bbox":[20,10,100,45],"segmentation":[[1,2]],"iscrowd":0}]"#;
        std::fs::write(&instances, format!("{{{images},{boxes},\"categories\":[{{\"id\":17,\"name\":\"cat\"}}]}}"))
            .expect("file");
        let all = read(&FactInput { source: FactSource::Coco, input, instances: Some(instances) }).expect("reads");
        let corners = [0.1, 0.1, 0.6, 0.55];
        let expected = ImageFacts {
            id: "000002".into(),
            image: "000002.jpg".into(),
            captions: vec!["A cat.".into(), "One cat.".into()],
            boxes: vec![LabelledBox { category: "cat".into(), corners }],
        };
        assert_eq!(all[0], Ok(expected));
        assert_eq!(all[1].as_ref().expect_err("no captions").cause, "no_captions");
    }

    #[test]
    fn crowds_are_no_objects_and_boxes_of_nothing_known_are_rejects() {
        let root = tempfile::tempdir().expect("temp folder");
        let (input, instances) = (root.path().join("captions.json"), root.path().join("instances.json"));
        let images = r#""images":[{"id":1,"file_name":"1.jpg","width":10,"height":10},{"id":2,"file_name":"2.jpg","width":10,"height":10}]"#;
        let captions = r#""annotations":[{"image_id":1,"caption":"A cat."},{"image_id":2,"caption":"A dog."}]"#;
        std::fs::write(&input, format!("{{{images},{captions}}}")).expect("file");
        let boxes = r#""annotations":[{"image_id":1,"category_id":17,"bbox":[0,0,5,5]},{"image_id":1,"category_id":17,"bbox":[0,0,9,9],"iscrowd":1},
            {"image_id":2,"category_id":99,"bbox":[0,0,5,5]},{"image_id":7,"category_id":17,"bbox":[0,0,5,5]},
            {"image_id":7,"category_id":17,"bbox":[1,1,5,5]},{"image_id":8,"category_id":17,"bbox":[0,0,9,9],"iscrowd":1}]"#;
        std::fs::write(&instances, format!("{{{boxes},\"categories\":[{{\"id\":17,\"name\":\"cat\"}}]}}"))
            .expect("file");
        let all = read(&FactInput { source: FactSource::Coco, input, instances: Some(instances) }).expect("reads");
        assert_eq!(all[0].as_ref().expect("sound").boxes.len(), 1);
        let faults: Vec<_> = all[1..].iter().map(|facts| facts.as_ref().expect_err("a fault")).collect();
        assert_eq!(faults.iter().map(|fault| fault.cause).collect::<Vec<_>>(), ["unknown_category", "unknown_image"]);
        assert!(faults[0].detail.contains("99") && faults[1].detail.contains('7'), "{faults:?}");
        assert_eq!(faults[0].id.as_deref(), Some("2"));
    }
}
