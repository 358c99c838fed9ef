//! Finding the local file of an image that a record names by URL or relative path.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use vela_types::{Fingerprint, ImageRef};

use super::Fault;
use crate::PrepareError;

/// The folder given by `--images`, listed once; without it, names are relative to the data file.
///
/// A name maps to the file at that very path below the folder; failing that, to the file with the same base name whose
/// path shares the longest run of trailing components; two equally good files are a fault, never a guess.
pub struct ImageFolder {
    root: Option<PathBuf>,
    by_base_name: HashMap<String, Vec<String>>,
    listing: Fingerprint,
}

impl ImageFolder {
    /// Lists `root` and every folder below it.
    pub fn open(root: Option<&Path>) -> Result<Self, PrepareError> {
        let mut files = Vec::new();
        if let Some(root) = root {
            list(root, "", &mut files)?;
            files.sort_unstable();
        }
        let mut hasher = blake3::Hasher::new();
        let mut by_base_name: HashMap<String, Vec<String>> = HashMap::new();
        for (name, bytes) in files {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&bytes.to_le_bytes());
            let base = name.rsplit('/').next().unwrap_or(&name).to_owned();
            by_base_name.entry(base).or_default().push(name);
        }
        let listing = Fingerprint(*hasher.finalize().as_bytes());
        Ok(Self { root: root.map(Path::to_owned), by_base_name, listing })
    }

    /// A hash of all names and sizes: a folder that gains the missing photos is another input.
    pub fn fingerprint(&self) -> Fingerprint {
        self.listing
    }

    /// The image that a record of a file in `data_folder` calls `name`: a path, a `file://` URL or an http(s) URL.
    pub(crate) fn resolve(&self, name: &str, data_folder: &Path) -> Result<ImageRef, Fault> {
        let name = name.trim();
        if name.is_empty() {
            return Err(Fault::new("missing_field", "expected the name of an image, found an empty text"));
        }
        let is_url = name.starts_with("http://") || name.starts_with("https://");
        let path = if is_url { url_path(name) } else { name.strip_prefix("file://").unwrap_or(name).to_owned() };
        let Some(root) = &self.root else {
            return match is_url {
                true => Err(not_local(name)),
                false => Ok(path_ref(&data_folder.join(path))),
            };
        };
        if !is_url && Path::new(&path).is_absolute() && Path::new(&path).is_file() {
            return Ok(ImageRef::Path(path));
        }
        match self.lookup(&path)? {
            Some(found) => Ok(path_ref(&root.join(found))),
            None if is_url => Err(not_local(name)),
            None => Ok(path_ref(&root.join(path.trim_start_matches('/')))),
        }
    }

    fn lookup(&self, path: &str) -> Result<Option<&str>, Fault> {
        let wanted: Vec<&str> = path.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".").collect();
        let base = wanted.last().copied().unwrap_or_default();
        let Some(candidates) = self.by_base_name.get(base) else { return Ok(None) };
        let exact = wanted.join("/");
        if let Some(found) = candidates.iter().find(|candidate| **candidate == exact) {
            return Ok(Some(found));
        }
        let shared = |candidate: &str| {
            candidate.rsplit('/').zip(wanted.iter().rev()).take_while(|(left, right)| left == *right).count()
        };
        let best = candidates.iter().map(|candidate| shared(candidate)).max().unwrap_or(0);
        let mut found = candidates.iter().filter(|candidate| shared(candidate) == best);
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => Err(Fault::new(
                "ambiguous_image",
                format!("`{path}` may be `{first}` or `{second}` in the image folder; expected one"),
            )),
            (first, _) => Ok(first.map(String::as_str)),
        }
    }
}

fn path_ref(path: &Path) -> ImageRef {
    ImageRef::Path(path.to_string_lossy().into_owned())
}

fn not_local(url: &str) -> Fault {
    let detail = format!("no local file for `{url}`; download the images and pass their folder with `--images DIR`");
    Fault::new("missing_image", detail)
}

/// The path of an http URL without host, query and fragment, percent signs decoded.
fn url_path(url: &str) -> String {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = after_scheme.find(['?', '#']).unwrap_or(after_scheme.len());
    let path = after_scheme[..end].split_once('/').map_or("", |(_, path)| path);
    percent_decoded(path)
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// Adds the files below `root/prefix` with their sizes; names use `/` on every system.
fn list(root: &Path, prefix: &str, files: &mut Vec<(String, u64)>) -> Result<(), PrepareError> {
    let folder = root.join(prefix);
    for entry in fs::read_dir(&folder).map_err(PrepareError::io("list", &folder))? {
        let entry = entry.map_err(PrepareError::io("list", &folder))?;
        let base = entry.file_name().to_string_lossy().into_owned();
        let name = if prefix.is_empty() { base } else { format!("{prefix}/{base}") };
        // Follows links, as datasets are often laid out by them; a dangling one is no file.
        match fs::metadata(entry.path()) {
            Ok(data) if data.is_dir() => list(root, &name, files)?,
            Ok(data) if data.is_file() => files.push((name, data.len())),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> (tempfile::TempDir, ImageFolder) {
        let root = tempfile::tempdir().expect("temp folder");
        for name in names {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("below root")).expect("folder");
            fs::write(path, b"x").expect("file");
        }
        let images = ImageFolder::open(Some(root.path())).expect("listing");
        (root, images)
    }

    fn found(images: &ImageFolder, root: &Path, name: &str) -> String {
        let image = images.resolve(name, Path::new("/nowhere")).expect("resolves");
        image.name().strip_prefix(&format!("{}/", root.display())).expect("below root").to_owned()
    }

    #[test]
    fn urls_and_names_map_by_path_then_suffix_then_base_name() {
        let (root, images) = folder(&["a/1.jpg", "b/1.jpg", "only.jpg", "x y.jpg"]);
        assert_eq!(found(&images, root.path(), "a/1.jpg"), "a/1.jpg");
        assert_eq!(found(&images, root.path(), "https://host/set/b/1.jpg?sig=a/9.jpg#top"), "b/1.jpg");
        assert_eq!(found(&images, root.path(), "https://host/deep/only.jpg"), "only.jpg");
        assert_eq!(found(&images, root.path(), "http://host/x%20y.jpg"), "x y.jpg");
        assert_eq!(images.resolve("http://h/c/1.jpg", Path::new(".")).expect_err("two files").cause, "ambiguous_image");
    }

    #[test]
    fn an_url_without_a_local_file_names_the_remedy() {
        let (_root, images) = folder(&["a.jpg"]);
        for images in [&images, &ImageFolder::open(None).expect("no folder")] {
            let fault = images.resolve("https://host/b.jpg", Path::new(".")).expect_err("absent");
            assert_eq!(fault.cause, "missing_image");
            assert!(fault.detail.contains("--images"), "{}", fault.detail);
        }
    }

    #[test]
    fn without_a_folder_names_are_relative_to_the_data_file() {
        let images = ImageFolder::open(None).expect("no folder");
        let image = images.resolve("00453/1.jpg", Path::new("/data/llava")).expect("a path");
        assert_eq!(image, ImageRef::Path("/data/llava/00453/1.jpg".into()));
    }

    #[test]
    fn the_listing_hash_sees_added_files() {
        let (root, images) = folder(&["a.jpg"]);
        fs::write(root.path().join("b.jpg"), b"y").expect("file");
        assert_ne!(ImageFolder::open(Some(root.path())).expect("listing").fingerprint(), images.fingerprint());
    }
}
