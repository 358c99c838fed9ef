//! Finding the local file of an image that a record names by URL or relative path.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use vela_types::{Fingerprint, ImageRef};

use super::Fault;
use super::image_names::may_be_image;
use super::walk::walk;
use crate::PrepareError;

/// Names, sizes and modification times of image files, hashed in the order in which they are added.
#[derive(Default)]
pub(super) struct ImageListing(blake3::Hasher);

impl ImageListing {
    fn add(&mut self, name: &str, found: Option<Stamp>) {
        let Stamp { bytes, modified } = found.unwrap_or_default();
        self.0.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        self.0.update(&[u8::from(found.is_some())]).update(&bytes.to_le_bytes()).update(&modified.to_le_bytes());
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint(*self.0.finalize().as_bytes())
    }
}

/// What tells a file from the one that was there before, without reading it.
#[derive(Clone, Copy, Default)]
struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u128,
}

impl From<&fs::Metadata> for Stamp {
    fn from(data: &fs::Metadata) -> Self {
        let since_1970 = data.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self { bytes: data.len(), modified: since_1970.map_or(0, |time| time.as_nanos()) }
    }
}

/// The folder given by `--images`, listed once; without it, names are relative to the data file.
///
/// A name maps to the file at that very path below the folder; failing that, to the file of which one path is the whole end
/// of the other, component by component, the longest such end; two equally good files are a fault, and a file that shares
/// no more than its base name is another image, never a guess. What a name has before a shorter path must be the end of the
/// folder's own path; see `Rest` for names of other machines. A name that leaves the folder is a fault too. Without the
/// folder there is nothing to leave: `..` and absolute names are followed.
pub struct ImageFolder {
    root: Option<PathBuf>,
    /// The components of `root`, as given and with links resolved.
    root_parts: Vec<Vec<String>>,
    by_base_name: HashMap<String, Vec<String>>,
    listing: Fingerprint,
}

impl ImageFolder {
    /// Lists what may be an image in `root` and every folder below it but `output`, which a build is about to fill.
    pub fn open(root: Option<&Path>, output: Option<&Path>) -> Result<Self, PrepareError> {
        let (mut files, mut root_parts) = (Vec::new(), Vec::new());
        if let Some(root) = root {
            walk(root, output, &mut |path, data| {
                let name = name_below(root, &path);
                files.extend(may_be_image(&name, &path).then(|| (name, Stamp::from(data))));
            })?;
            files.sort_unstable_by(|left, right| left.0.cmp(&right.0));
            let paths = [std::path::absolute(root), root.canonicalize()].into_iter().flatten();
            root_parts.extend(paths.filter_map(|path| {
                components(&path.to_string_lossy()).map(|parts| parts.into_iter().map(str::to_owned).collect())
            }));
        }
        let mut listing = ImageListing::default();
        let mut by_base_name: HashMap<String, Vec<String>> = HashMap::new();
        for (name, stamp) in files {
            listing.add(&name, Some(stamp));
            let base = name.rsplit('/').next().unwrap_or(&name).to_owned();
            by_base_name.entry(base).or_default().push(name);
        }
        Ok(Self { root: root.map(Path::to_owned), root_parts, by_base_name, listing: listing.fingerprint() })
    }

    /// A hash of all names, sizes and times: a folder that gains the missing photos is another input.
    pub fn fingerprint(&self) -> Fingerprint {
        self.listing
    }

    /// True without `--images`: the images of a file are then those that its records name beside it.
    pub(super) fn is_beside_data(&self) -> bool {
        self.root.is_none()
    }

    /// The folder given by `--images`.
    pub(super) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Adds the image that a record of a file in `data_folder` calls `name`, there or not. Of no effect with `--images`,
    /// whose folder is listed as a whole.
    pub(super) fn note(&self, listing: &mut ImageListing, name: &str, data_folder: &Path) {
        if self.is_beside_data()
            && let Ok(ImageRef::Path(path)) = self.resolve(name, data_folder)
        {
            listing.add(name, fs::metadata(path).ok().as_ref().map(Stamp::from));
        }
    }

    /// The image that a record of a file in `data_folder` calls `name`: a path, a `file://` URL, an http(s) URL, or a data URL
    /// that holds the file itself.
    pub(crate) fn resolve(&self, name: &str, data_folder: &Path) -> Result<ImageRef, Fault> {
        let name = name.trim();
        if name.is_empty() {
            return Err(Fault::new("missing_field", "expected the name of an image, found an empty text"));
        }
        if let Some(data) = name.strip_prefix("data:") {
            return embedded(data);
        }
        let is_url = name.starts_with("http://") || name.starts_with("https://");
        let path = match is_url {
            true => url_path(name),
            false => file_url_path(name).unwrap_or_else(|| name.to_owned()),
        };
        match &self.root {
            None if is_url => Err(self.not_local(name)),
            None => Ok(path_ref(&data_folder.join(path))),
            Some(root) if is_url => {
                let wanted = components(&path).ok_or_else(|| self.not_local(name))?;
                let found = self.lookup(&wanted, Rest::Host)?;
                found.map(|found| path_ref(&root.join(found))).ok_or_else(|| self.not_local(name))
            }
            Some(root) => {
                let (wanted, rest) = self.below_root(&path).ok_or_else(|| outside(name))?;
                let found = self.lookup(&wanted, rest)?;
                let found = found.map_or_else(|| root.join(wanted.join("/")), |found| root.join(found));
                Ok(path_ref(&found))
            }
        }
    }

    /// The components of `path` below the folder, or `None` if it leaves the folder. Decided by the words of the path:
    /// links inside the folder are followed. An absolute path that is no file here is one of another machine.
    fn below_root<'a>(&self, path: &'a str) -> Option<(Vec<&'a str>, Rest)> {
        let mut parts = components(path)?;
        if !is_absolute(path) {
            return Some((parts, Rest::DataSet));
        }
        let is_above = |root: &&Vec<String>| parts.len() > root.len() && root.iter().eq(&parts[..root.len()]);
        match self.root_parts.iter().find(is_above) {
            Some(root) => _ = parts.drain(..root.len()),
            None if Path::new(path).is_file() => return None,
            None => return Some((parts, Rest::Machine)),
        }
        Some((parts, Rest::DataSet))
    }

    /// True if a file whose path is the last `num_shared` components of `wanted` is the one that is meant.
    fn is_meant(&self, wanted: &[&str], num_shared: usize, rest: Rest) -> bool {
        let before = &wanted[..wanted.len() - num_shared];
        let ends_root = |parts: &[&str]| self.root_parts.iter().any(|root| ends_with(root, parts));
        match rest {
            Rest::DataSet => ends_root(before),
            Rest::Machine => num_shared > 1 || ends_root(&before[before.len().saturating_sub(1)..]),
            Rest::Host => true,
        }
    }

    /// The fault of a file that has the end of a name, and may be another image of that end.
    fn another(&self, wanted: &[&str], other: &str) -> Fault {
        let before = wanted[..wanted.len() - other.split('/').count()].join("/");
        let root = self.root.as_deref().unwrap_or(Path::new("")).display();
        let detail = format!(
            "`{}` is not below `--images {root}`, and `{other}` there may be another image: pass the folder that holds \
             `{before}`, or one whose path ends in it",
            wanted.join("/")
        );
        Fault::new("missing_image", detail)
    }

    fn not_local(&self, url: &str) -> Fault {
        let remedy = match &self.root {
            Some(root) => format!("below `--images {}`; bring it there with `pipeline fetch`", root.display()),
            None => "without `--images`; download the images with `pipeline fetch` and pass their folder with `--images DIR`".to_owned(),
        };
        Fault::new("missing_image", format!("no local file for `{url}` {remedy}"))
    }

    fn lookup(&self, wanted: &[&str], rest: Rest) -> Result<Option<&str>, Fault> {
        let base = wanted.last().copied().unwrap_or_default();
        let Some(candidates) = self.by_base_name.get(base) else { return Ok(None) };
        let exact = wanted.join("/");
        if let Some(found) = candidates.iter().find(|candidate| **candidate == exact) {
            return Ok(Some(found));
        }
        // A folder is listed under one name; a link may be another.
        if self.root.as_ref().is_some_and(|root| root.join(&exact).is_file()) {
            return Ok(None);
        }
        // Components of the shorter path if it is the whole end of the other.
        let shared = |candidate: &str| {
            let pairs = candidate.rsplit('/').zip(wanted.iter().rev());
            pairs.map(|(left, right)| left == *right).try_fold(0, |num, is_equal| is_equal.then_some(num + 1))
        };
        let is_meant = |num: &usize| self.is_meant(wanted, *num, rest);
        let best = candidates.iter().filter_map(|candidate| shared(candidate).filter(is_meant)).max();
        let mut found = candidates.iter().filter(|candidate| best.is_some() && shared(candidate) == best);
        match (found.next(), found.next()) {
            (None, _) => match candidates.iter().find(|candidate| shared(candidate).is_some()) {
                Some(other) => Err(self.another(wanted, other)),
                None => Ok(None),
            },
            (Some(first), Some(second)) => Err(Fault::new(
                "ambiguous_image",
                format!("`{exact}` may be `{first}` or `{second}` in the image folder; expected one"),
            )),
            (first, _) => Ok(first.map(String::as_str)),
        }
    }
}

/// What the folders are that a name has before the path of a listed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Those of the data set: all of them must be the end of the image folder's path.
    DataSet,
    /// Of an absolute path on another machine, whose upper folders say nothing here: the nearest must be the listed file's
    /// or the image folder's.
    Machine,
    /// Of a URL: they are the host's, and a folder of downloads has the base names alone.
    Host,
}

/// True of an absolute path of any system.
fn is_absolute(path: &str) -> bool {
    let has_drive = matches!(path.as_bytes(), [letter, b':', b'/' | b'\\', ..] if letter.is_ascii_alphabetic());
    has_drive || path.starts_with(['/', '\\'])
}

fn ends_with(path: &[String], end: &[&str]) -> bool {
    path.len() >= end.len() && path[path.len() - end.len()..].iter().eq(end)
}

/// The file inside a data URL (RFC 2397), which must be in base64.
fn embedded(data: &str) -> Result<ImageRef, Fault> {
    let broken = |detail: String| Fault::new("broken_data_url", detail);
    let (kind, text) = data.split_once(";base64,").ok_or_else(|| broken("expected `;base64,` in a data URL".into()))?;
    let bytes = BASE64.decode(text.trim()).map_err(|fault| broken(format!("expected base64: {fault}")))?;
    Ok(ImageRef::Bytes { name: format!("data:{kind}"), data: bytes.into() })
}

fn path_ref(path: &Path) -> ImageRef {
    ImageRef::Path(path.to_string_lossy().into_owned())
}

/// The components of a path, `.` and `..` resolved; `None` if `..` goes above its start.
fn components(path: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    for part in path.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(parts)
}

fn outside(name: &str) -> Fault {
    Fault::new("outside_images", format!("`{name}`: expected a name below the folder of `--images`, found one outside"))
}

/// The path of an http URL below its host, without query and fragment, percent signs decoded.
pub(crate) fn url_path(url: &str) -> String {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = after_scheme.find(['?', '#']).unwrap_or(after_scheme.len());
    let path = after_scheme[..end].split_once('/').map_or("", |(_, path)| path);
    percent_decoded(path)
}

/// The path of a `file://` URL, of this machine or of one that it names, percent signs decoded; `None` for anything else.
fn file_url_path(name: &str) -> Option<String> {
    let rest = name.strip_prefix("file://")?;
    Some(percent_decoded(rest.find('/').map_or(rest, |start| &rest[start..])))
}

/// A percent sign without two hexadecimal digits stands for itself, as does a text that is not UTF-8 once decoded.
fn percent_decoded(text: &str) -> String {
    let digit = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = (first == b'%').then(|| after.first_chunk::<2>()).flatten();
        match digits.and_then(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)) {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// The path of a file below `root`; names use `/` on every system.
fn name_below(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
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
        let images = ImageFolder::open(Some(root.path()), None).expect("listing");
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
        assert_eq!(images.resolve("http://h/1.jpg", Path::new(".")).expect_err("two files").cause, "ambiguous_image");
    }

    #[test]
    fn no_other_file_of_the_same_base_name_is_taken_for_a_missing_one() {
        let (root, images) = folder(&["a/1.jpg", "x/y/2.jpg", "y/2.jpg", "3.jpg"]);
        for url in ["http://h/c/1.jpg", "http://h/c/a/b/1.jpg", "http://h/z/2.jpg"] {
            assert_eq!(images.resolve(url, Path::new(".")).expect_err(url).cause, "missing_image", "{url}");
        }
        assert_eq!(found(&images, root.path(), "c/1.jpg"), "c/1.jpg", "absent, and named so that the reject says it");
        assert_eq!(found(&images, root.path(), "1.jpg"), "a/1.jpg");
        assert_eq!(found(&images, root.path(), "y/2.jpg"), "y/2.jpg");
        assert_eq!(found(&images, root.path(), "http://h/data/x/y/2.jpg"), "x/y/2.jpg", "the longer end of two");
        assert_eq!(found(&images, root.path(), "http://h/anywhere/3.jpg"), "3.jpg");
    }

    #[test]
    fn folders_of_a_name_are_those_of_the_image_folder_or_there_is_no_image() {
        let (root, _) = folder(&["val2017/1.jpg", "coco/train2017/1.jpg", "single/images/8.jpg", "multi/images/7.jpg"]);
        let below = |name: &str| {
            let path = root.path().join(name);
            (ImageFolder::open(Some(&path), None).expect("listing"), path)
        };
        let refused = |folder: &str, name: &str| {
            let fault = below(folder).0.resolve(name, Path::new("/nowhere")).expect_err(name);
            assert_eq!(fault.cause, "missing_image", "{name}: {}", fault.detail);
            assert!(fault.detail.contains("--images") && fault.detail.contains("pass the folder"), "{}", fault.detail);
        };
        refused("val2017", "train2017/1.jpg");
        refused("single", "multi/images/8.jpg");
        refused("single/images", "multi/images/8.jpg");
        refused("coco/train2017", "other/train2017/1.jpg");
        refused("val2017", "/home/else/coco/train2017/1.jpg");
        refused("val2017", "D:\\coco\\train2017\\1.jpg");
        for (folder, name) in [
            ("coco/train2017", "1.jpg"),
            ("coco/train2017", "train2017/1.jpg"),
            ("coco/train2017", "coco/train2017/1.jpg"),
            ("coco/train2017", "/home/else/data/train2017/1.jpg"),
            ("coco/train2017", "C:\\data\\train2017\\1.jpg"),
            ("coco", "coco/train2017/1.jpg"),
            ("coco", "/home/else/train2017/1.jpg"),
            ("coco", "1.jpg"),
            ("single", "single/images/8.jpg"),
            ("single", "images/8.jpg"),
        ] {
            let (images, path) = below(folder);
            let found = images.resolve(name, Path::new("/nowhere")).expect(name);
            assert!(
                Path::new(found.name()).starts_with(&path) && Path::new(found.name()).is_file(),
                "{folder}: {name}"
            );
        }
    }

    #[test]
    fn file_urls_are_decoded() {
        let (root, images) = folder(&["x y.jpg", "100%.jpg"]);
        let url = |host: &str, name: &str| format!("file://{host}{}/{name}", root.path().display());
        for (name, file) in [(url("", "x%20y.jpg"), "x y.jpg"), (url("localhost", "100%.jpg"), "100%.jpg")] {
            assert_eq!(found(&images, root.path(), &name), file);
            let beside = ImageFolder::open(None, None).expect("no folder").resolve(&name, Path::new("/nowhere"));
            assert_eq!(beside.expect("a path").name(), root.path().join(file).to_string_lossy());
        }
    }

    #[test]
    fn an_image_under_the_name_of_a_list_is_found_and_a_list_is_not_listed() {
        let (root, before) = folder(&["a.jpg", "list.txt", "notes.html"]);
        let png = crate::sources::testing::png(2, 2, [1, 2, 3]);
        fs::create_dir_all(root.path().join("set")).expect("folder");
        for name in ["set/photo.html", "set/2.gz"] {
            fs::write(root.path().join(name), &png).expect("file");
            let images = ImageFolder::open(Some(root.path()), None).expect("listing");
            assert_eq!(found(&images, root.path(), &format!("http://host/{name}?size=1")), name);
        }
        assert_eq!(before.by_base_name.keys().collect::<Vec<_>>(), ["a.jpg"]);
        let with_images = ImageFolder::open(Some(root.path()), None).expect("listing");
        assert_ne!(with_images.fingerprint(), before.fingerprint(), "they are inputs");
        fs::write(root.path().join("list.txt"), "another").expect("file");
        let again = ImageFolder::open(Some(root.path()), None).expect("listing");
        assert_eq!(again.fingerprint(), with_images.fingerprint());
    }

    #[test]
    fn an_url_without_a_local_file_names_the_remedy() {
        let (_root, images) = folder(&["a.jpg"]);
        for images in [&images, &ImageFolder::open(None, None).expect("no folder")] {
            let fault = images.resolve("https://host/b.jpg", Path::new(".")).expect_err("absent");
            assert_eq!(fault.cause, "missing_image");
            assert!(fault.detail.contains("--images") && fault.detail.contains("pipeline fetch"), "{}", fault.detail);
            assert_eq!(fault.detail.contains("pass their folder"), images.is_beside_data(), "{}", fault.detail);
        }
    }

    #[test]
    fn without_a_folder_names_are_relative_to_the_data_file() {
        let images = ImageFolder::open(None, None).expect("no folder");
        let image = images.resolve("00453/1.jpg", Path::new("/data/llava")).expect("a path");
        assert_eq!(image, ImageRef::Path("/data/llava/00453/1.jpg".into()));
    }

    #[cfg(unix)]
    #[test]
    fn links_in_circles_and_the_output_are_not_listed() {
        let (root, images) = folder(&["a/1.jpg", "shards/2.jpg"]);
        for link in ["a/up", "a/again"] {
            std::os::unix::fs::symlink(root.path(), root.path().join(link)).expect("link");
        }
        let without = ImageFolder::open(Some(root.path()), Some(&root.path().join("shards"))).expect("listing");
        assert_eq!(without.by_base_name.keys().collect::<Vec<_>>(), ["1.jpg"]);
        let all = ImageFolder::open(Some(root.path()), None).expect("listing");
        assert_eq!((all.by_base_name["1.jpg"].len(), all.fingerprint()), (1, images.fingerprint()));
    }

    #[test]
    fn names_that_leave_the_folder_are_faults_and_those_of_another_machine_are_mapped() {
        let (root, images) = folder(&["in/a/1.jpg"]);
        let inside = ImageFolder::open(Some(&root.path().join("in")), None).expect("listing");
        fs::write(root.path().join("1.jpg"), b"x").expect("file");
        let absolute = |name: &str| root.path().join(name).to_string_lossy().into_owned();
        let cause = |name: &str| inside.resolve(name, Path::new(".")).expect_err(name).cause;
        for name in ["../1.jpg", "a/../../1.jpg", "..\\1.jpg", &absolute("1.jpg"), &absolute("in/../1.jpg")] {
            assert_eq!(cause(name), "outside_images", "{name}");
        }
        assert_eq!(cause(&format!("file://{}", absolute("1.jpg"))), "outside_images");
        assert_eq!(cause("https://host/../../x.jpg"), "missing_image", "a URL only ever finds what is listed");
        for name in ["a/../a/1.jpg", "/home/else/a/1.jpg", &absolute("in/a/1.jpg"), &absolute("in/b/../a/1.jpg")] {
            assert_eq!(found(&inside, root.path(), name), "in/a/1.jpg", "{name}");
        }
        assert_eq!(found(&images, root.path(), "/in/a/2.jpg"), "in/a/2.jpg", "absent, and still below the folder");
    }

    #[test]
    fn the_listing_hash_sees_added_files() {
        let (root, images) = folder(&["a.jpg"]);
        fs::write(root.path().join("b.jpg"), b"y").expect("file");
        assert_ne!(ImageFolder::open(Some(root.path()), None).expect("listing").fingerprint(), images.fingerprint());
    }
}
