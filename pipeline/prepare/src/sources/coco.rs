//! COCO captions: one JSON object with `images` (`id`, `file_name`) and `annotations` (`id`, `image_id`, `caption`).
//! Each caption annotation is one sample, `coco/<image id>/<annotation id>`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use vela_types::Fingerprint;

use super::images::ImageListing;
use super::{Emit, Entry, Fault, ImageFolder, RawCaption, RawContent, RawFile};
use crate::PrepareError;

#[derive(Deserialize)]
struct Root {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: String,
}

/// Fields are checked record by record, so that one wrong annotation does not cost the file.
#[derive(Deserialize)]
struct Annotation {
    id: Option<serde_json::Value>,
    image_id: Option<serde_json::Value>,
    caption: Option<serde_json::Value>,
}

/// One annotation file, held as a whole: COCO's join of annotations and images needs the image table.
pub(super) struct CocoFile {
    path: PathBuf,
    images: Arc<ImageFolder>,
    file_names: HashMap<u64, String>,
    annotations: Vec<Annotation>,
    repeated: HashSet<usize>,
    listing: Fingerprint,
}

impl CocoFile {
    pub(super) fn open(path: &Path, images: Arc<ImageFolder>) -> Result<Self, PrepareError> {
        let bytes = fs::read(path).map_err(PrepareError::io("read", path))?;
        let text = bytes.strip_prefix(&[0xEF, 0xBB, 0xBF]).unwrap_or(&bytes);
        let root: Root = serde_json::from_slice(text).map_err(|fault| PrepareError::BrokenFile {
            path: path.to_owned(),
            position: format!("line {} column {}", fault.line(), fault.column()),
            expected: "a JSON object with `images[].{id, file_name}` and `annotations[].{id, image_id, caption}`",
            found: format!("`{fault}`"),
        })?;
        let mut seen = HashSet::new();
        let ids = root.annotations.iter().map(|annotation| annotation.id.as_ref().and_then(serde_json::Value::as_u64));
        let repeated =
            ids.enumerate().filter(|(_, id)| id.is_some_and(|id| !seen.insert(id))).map(|(at, _)| at).collect();
        let file_names = root.images.into_iter().map(|image| (image.id, image.file_name)).collect();
        let listing = Fingerprint::default();
        let mut this =
            Self { path: path.to_owned(), images, file_names, annotations: root.annotations, repeated, listing };
        this.listing = this.list_images();
        Ok(this)
    }

    fn list_images(&self) -> Fingerprint {
        let (mut listing, mut seen) = (ImageListing::default(), HashSet::new());
        let ids = self.annotations.iter().filter_map(|annotation| annotation.image_id.as_ref()?.as_u64());
        for name in ids.filter(|id| seen.insert(*id)).filter_map(|id| self.file_names.get(&id)) {
            self.images.note(&mut listing, name, self.folder());
        }
        listing.fingerprint()
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn annotation(&self, index: usize) -> Result<RawContent, Fault> {
        let annotation = &self.annotations[index];
        let number = |name: &str, value: &Option<serde_json::Value>| {
            let found = value.as_ref().and_then(serde_json::Value::as_u64);
            found.ok_or_else(|| Fault::new("missing_field", format!("annotation field `{name}`: expected a number")))
        };
        let (image_id, id) = (number("image_id", &annotation.image_id)?, number("id", &annotation.id)?);
        let id = format!("coco/{image_id}/{id}");
        self.caption(index, image_id, &id).map_err(|fault| fault.of(&id))
    }

    fn caption(&self, index: usize, image_id: u64, id: &str) -> Result<RawContent, Fault> {
        if self.repeated.contains(&index) {
            return Err(Fault::new("duplicate_id", "an earlier annotation has the same id"));
        }
        let Some(serde_json::Value::String(caption)) = &self.annotations[index].caption else {
            return Err(Fault::new("missing_field", "annotation field `caption`: expected a text"));
        };
        let global = caption.trim().to_owned();
        if global.is_empty() {
            return Err(Fault::new("empty_caption", "annotation field `caption` holds no text"));
        }
        let file_name = self.file_names.get(&image_id).ok_or_else(|| {
            Fault::new("unknown_image", format!("`image_id` {image_id}: expected an entry of `images`, found none"))
        })?;
        let image = self.images.resolve(file_name, self.folder())?;
        let caption = RawCaption { id: id.to_owned(), source: "coco", image, global, locals: vec![] };
        Ok(RawContent::Caption(caption))
    }
}

impl RawFile for CocoFile {
    fn num_records(&self) -> u64 {
        self.annotations.len() as u64
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        for record in records {
            if emit(Entry { record, content: self.annotation(record as usize) }) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}
