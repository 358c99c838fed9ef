//! Which files of an image folder count as images, by their names, and by their first bytes where the name is that of
//! something else: all other bytes are looked at when a record asks for them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::fetch::STATE_FOLDER;

/// Endings of lists, tables, texts and archives, which often lie beside images and come and go without them.
const OTHER_ENDINGS: [&str; 21] = [
    "arrow", "csv", "gz", "htm", "html", "json", "jsonl", "lock", "log", "md", "ndjson", "parquet", "sh", "tar", "tgz",
    "toml", "tsv", "txt", "yaml", "yml", "zip",
];

/// What files of the formats begin with that are read: JPEG, PNG, GIF, BMP, TIFF in both orders. WebP is `RIFF....WEBP`.
const IMAGE_STARTS: [&[u8]; 6] = [b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*"];
/// The ending of files that somebody is writing.
const UNFINISHED_ENDING: &str = "partial";

/// False for what is no image: the state of `pipeline fetch`, and files with the ending of something else, unless the file at
/// `path` begins like an image, as a URL may end in anything. A name with any other ending, or none, may be that of an image.
pub(super) fn may_be_image(name: &str, path: &Path) -> bool {
    let (folders, base) = name.rsplit_once('/').unwrap_or(("", name));
    let is_state = folders.split('/').any(|folder| folder == STATE_FOLDER);
    let ending = base.rsplit_once('.').map_or("", |(_, ending)| ending);
    let is_other = OTHER_ENDINGS.iter().any(|other| other.eq_ignore_ascii_case(ending));
    let is_unfinished = ending.eq_ignore_ascii_case(UNFINISHED_ENDING);
    !is_state && !is_unfinished && (!is_other || begins_like_image(path))
}

/// False for a file that cannot be read.
fn begins_like_image(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(12).read_to_end(&mut start));
    let is_webp = start.starts_with(b"RIFF") && start.ends_with(b"WEBP");
    read.is_ok() && (is_webp || IMAGE_STARTS.iter().any(|image| start.starts_with(image)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_from_lists_by_their_names() {
        for name in ["a.jpg", "x/y.PNG", "photo", "x/.a", "image.0", "a.json.jpg", "fetch/a.webp"] {
            assert!(may_be_image(name, Path::new(name)), "{name}");
        }
        for name in ["failed.jsonl", "x/a.TXT", ".fetch/ledger.jsonl", ".fetch/partial/a.jpg", "x/.fetch/a", ".json"] {
            assert!(!may_be_image(name, Path::new(name)), "{name}");
        }
    }
}
