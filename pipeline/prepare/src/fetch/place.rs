//! Under which name the image of a URL is kept, so that `--images` finds it again by that URL.

use super::Failure;
use crate::sources::url_path;

/// Folder of the ledger and of unfinished files, in the output folder.
pub(crate) const STATE_FOLDER: &str = ".fetch";
/// The failed list, in the output folder.
pub(super) const FAILED_FILE: &str = "failed.jsonl";
/// Longest name that common file systems take, in bytes.
const MAX_NAME_BYTES: usize = 255;
/// Longest path; the system's own limit holds for the output folder and this together.
const MAX_PATH_BYTES: usize = 2048;

/// The path, below the output folder, of the image at `url`: the URL's path below the host with its percent signs decoded,
/// which is where `build-shards --images` looks first. Query and fragment are no part of it.
pub(super) fn of_url(url: &str) -> Result<String, Failure> {
    of_name(&url_path(url))
}

/// The path, below the output folder, of an image that its record calls `name`.
pub(super) fn of_name(name: &str) -> Result<String, Failure> {
    let unsafe_name = |detail: &str| Failure::lasting("unsafe_name", format!("the name `{}` {detail}", shown(name)));
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." => _ = parts.pop().ok_or_else(|| unsafe_name("leaves the output folder"))?,
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    match parts.first() {
        None => Err(Failure::lasting("no_name", "expected a path below the host to name the file, found none")),
        Some(&STATE_FOLDER) => Err(unsafe_name("is that of the folder for unfinished files")),
        Some(&FAILED_FILE) if parts.len() == 1 => Err(unsafe_name("is that of the failed list")),
        _ if path.contains('\0') => Err(unsafe_name("holds a zero byte")),
        _ if path.len() > MAX_PATH_BYTES || parts.iter().any(|part| part.len() > MAX_NAME_BYTES) => {
            Err(unsafe_name("is longer than file systems take"))
        }
        _ => Ok(path),
    }
}

/// The first characters of a name that may be anything.
fn shown(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::sources::ImageFolder;

    #[test]
    fn components_below_the_host_are_kept() {
        for (url, path) in [
            ("http://h/1.jpg", "1.jpg"),
            ("https://h:8080/a/b%20c/1.jpg?sig=x/y.jpg#z", "a/b c/1.jpg"),
            ("http://u:p@h/a//./b/../1", "a/1"),
            ("http://h/a%2Fb%5C1.jpg", "a/b/1.jpg"),
            ("http://h/%E7%8C%AB.jpg", "猫.jpg"),
            ("http://h/100%.jpg", "100%.jpg"),
            ("http://h/%+f%-1.jpg", "%+f%-1.jpg"),
            ("http://h/a/", "a"),
        ] {
            assert_eq!(of_url(url).expect(url), path);
        }
    }

    #[test]
    fn no_url_leaves_the_folder_or_takes_a_name_of_ours() {
        let long = format!("http://h/{}", "x".repeat(256));
        for (url, cause) in [
            ("http://h", "no_name"),
            ("http://h/", "no_name"),
            ("http://h/?a=1.jpg", "no_name"),
            ("http://h/../1.jpg", "unsafe_name"),
            ("http://h/%2e%2e/%2e%2e/etc/passwd", "unsafe_name"),
            ("http://h/..%5c..%5c1.jpg", "unsafe_name"),
            ("http://h/a%00.jpg", "unsafe_name"),
            ("http://h/.fetch/ledger", "unsafe_name"),
            ("http://h/failed.jsonl", "unsafe_name"),
            (long.as_str(), "unsafe_name"),
        ] {
            assert_eq!(of_url(url).expect_err(url).cause, cause, "{url}");
        }
    }

    proptest! {
        #[test]
        fn an_image_folder_finds_every_kept_url(path in "(/|\\\\|\\.|%2e|%2F|%5c|%41|%|[a-c]|猫|\\?|#|&){1,12}") {
            let url = format!("https://host.example/{path}");
            let Ok(place) = of_url(&url) else { return Ok(()) };
            prop_assert!(Path::new(&place).components().all(|part| matches!(part, std::path::Component::Normal(_))));
            let root = tempfile::tempdir().expect("temp folder");
            let file = root.path().join(&place);
            fs::create_dir_all(file.parent().expect("below root")).expect("folder");
            fs::write(&file, b"x").expect("file");
            let images = ImageFolder::open(Some(root.path()), None).expect("listing");
            let found = images.resolve(&url, Path::new("/nowhere")).expect("found");
            prop_assert_eq!(Path::new(found.name()), file.as_path());
        }
    }
}
