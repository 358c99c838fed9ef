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

/// What files of the formats begin with that are read: JPEG, PNG, GIF, TIFF in both orders. WebP is `RIFF....WEBP`, BMP `BM` with
/// four zeros behind its length.
const IMAGE_STARTS: [&[u8]; 5] = [b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*"];
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
    let is_bmp = start.starts_with(b"BM") && start.get(6..10) == Some(&[0; 4]);
    read.is_ok() && (is_webp || is_bmp || IMAGE_STARTS.iter().any(|image| start.starts_with(image)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_under_the_name_of_a_list_are_told_by_their_first_bytes() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("photo.txt");
        let is_image = |start: &[u8]| {
            std::fs::write(&path, start).expect("file");
            may_be_image("photo.txt", &path)
        };
        assert!(
            is_image(b"\xff\xd8\xff\xe0")
                && is_image(b"RIFF\x10\0\0\0WEBPVP8 ")
                && is_image(b"BM\x10\0\0\0\0\0\0\0\x36")
        );
        assert!(is_image(b"GIF89a") && is_image(b"\x89PNG\r\n") && is_image(b"II*\0"));
        for text in [&b""[..], b"BMW, Audi, Volkswagen", b"RIFF, a list of words", b"[]"] {
            assert!(!is_image(text), "{text:?}");
        }
    }

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
