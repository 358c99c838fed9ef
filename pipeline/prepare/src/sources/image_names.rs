//! Which files of an image folder count as images, by their names alone: their bytes are looked at when a record asks for them.

use crate::fetch::STATE_FOLDER;

/// Endings of lists, tables, texts and archives, which often lie beside images and come and go without them.
const OTHER_ENDINGS: [&str; 22] = [
    "arrow", "csv", "gz", "htm", "html", "json", "jsonl", "lock", "log", "md", "ndjson", "parquet", "partial", "sh",
    "tar", "tgz", "toml", "tsv", "txt", "yaml", "yml", "zip",
];

/// False for what is no image: the state of `pipeline fetch`, and files with the ending of something else. A name with any other
/// ending, or none, may be that of an image.
pub(super) fn may_be_image(name: &str) -> bool {
    let (folders, base) = name.rsplit_once('/').unwrap_or(("", name));
    let is_state = folders.split('/').any(|folder| folder == STATE_FOLDER);
    let ending = base.rsplit_once('.').map_or("", |(_, ending)| ending);
    !is_state && !OTHER_ENDINGS.iter().any(|other| other.eq_ignore_ascii_case(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_from_lists_by_their_names() {
        for name in ["a.jpg", "x/y.PNG", "photo", "x/.a", "image.0", "a.json.jpg", "fetch/a.webp"] {
            assert!(may_be_image(name), "{name}");
        }
        for name in ["failed.jsonl", "x/a.TXT", ".fetch/ledger.jsonl", ".fetch/partial/a.jpg", "x/.fetch/a", ".json"] {
            assert!(!may_be_image(name), "{name}");
        }
    }
}
