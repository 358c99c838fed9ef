//! Walking folders that may hold links.

use std::collections::HashSet;
use std::fs::{self, DirEntry, Metadata};
use std::path::{Path, PathBuf};

use vela_shard::{LENGTHS_FILE, MANIFEST_FILE};

use crate::PrepareError;

/// Shows every regular file below `root` but those below `skipped`, and those of finished shard sets, to `visit`. Links to folders are followed, as data sets
/// are often laid out by them, but no folder is entered twice, whether two links lead to it or a circle: its files are shown
/// under the name without a link where there is one. A dangling link is no file.
pub(crate) fn walk(
    root: &Path,
    skipped: Option<&Path>,
    visit: &mut dyn FnMut(PathBuf, &Metadata),
) -> Result<(), PrepareError> {
    let entered = skipped.and_then(|path| path.canonicalize().ok()).into_iter().collect();
    let mut known = Known { entered, links: vec![root.to_owned()], shard_sets: Vec::new() };
    while let Some(link) = known.links.pop() {
        enter(&link, &mut known, visit)?;
    }
    if let Some(first) = known.shard_sets.first() {
        tracing::warn!(
            "`{}`: finished shard sets are passed over: {}, the first is `{}`",
            root.display(),
            known.shard_sets.len(),
            first.display()
        );
    }
    Ok(())
}

/// What a walk has met.
struct Known {
    entered: HashSet<PathBuf>,
    /// Links to folders, for later.
    links: Vec<PathBuf>,
    shard_sets: Vec<PathBuf>,
}

/// Shows the files below `folder`, if it was not entered before and is no shard set.
fn enter(folder: &Path, known: &mut Known, visit: &mut dyn FnMut(PathBuf, &Metadata)) -> Result<(), PrepareError> {
    let fault = |fault| PrepareError::io("list", folder)(fault);
    if !known.entered.insert(folder.canonicalize().map_err(fault)?) {
        return Ok(());
    }
    let entries = fs::read_dir(folder).map_err(fault)?;
    let mut entries: Vec<DirEntry> = entries.collect::<Result<_, _>>().map_err(fault)?;
    let is_there = |name: &str| entries.iter().any(|entry| entry.file_name() == name);
    if is_there(MANIFEST_FILE) && is_there(LENGTHS_FILE) {
        known.shard_sets.push(folder.to_owned());
        return Ok(());
    }
    entries.sort_by_key(DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        match fs::metadata(&path) {
            Ok(data) if data.is_dir() && entry.file_type().is_ok_and(|kind| kind.is_symlink()) => {
                known.links.push(path)
            }
            Ok(data) if data.is_dir() => enter(&path, known, visit)?,
            Ok(data) if data.is_file() => visit(path, &data),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_shard_set_below_the_input_is_passed_over() {
        let root = tempfile::tempdir().expect("temp folder");
        for name in [
            "a.jsonl",
            "set/manifest.json",
            "set/lengths.bin",
            "set/rejects.jsonl",
            "set/processor/x.json",
            "b/manifest.json",
        ] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, "[]").expect("written");
        }
        let mut paths = Vec::new();
        walk(root.path(), None, &mut |path, _| paths.push(path)).expect("listed");
        assert_eq!(paths, ["a.jsonl", "b/manifest.json"].map(|name| root.path().join(name)));
    }

    #[test]
    fn every_folder_is_entered_once_however_many_links_lead_to_it() {
        let root = tempfile::tempdir().expect("temp folder");
        fs::write(root.path().join("a.json"), "[]").expect("written");
        let link = |from: &str, to: &str| {
            std::os::unix::fs::symlink(root.path().join(to), root.path().join(from)).expect("link");
        };
        let folders: Vec<String> = (0..9).map(|index| format!("f{index}")).collect();
        folders.iter().for_each(|folder| fs::create_dir(root.path().join(folder)).expect("made"));
        fs::write(root.path().join("f3/b.json"), "[]").expect("written");
        for (from, to) in folders.iter().flat_map(|from| folders.iter().map(move |to| (from, to))) {
            link(&format!("{from}/to-{to}"), to);
        }
        link("again", "");
        link("also-f3", "f3");
        let shown = |skipped: Option<&Path>| {
            let mut paths = Vec::new();
            walk(root.path(), skipped, &mut |path, _| paths.push(path)).expect("listed");
            paths
        };
        assert_eq!(shown(None), [root.path().join("a.json"), root.path().join("f3/b.json")]);
        assert_eq!(shown(Some(&root.path().join("f3"))), [root.path().join("a.json")]);
    }
}
