//! What is known of each URL: finished with its checksum, or failed for good. It is read when a fetch starts and written to
//! as images are finished.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::place::STATE_FOLDER;
use crate::PrepareError;
use crate::journal::Journal;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    path: String,
    url: String,
    #[serde(flatten)]
    state: LineState,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum LineState {
    Finished { bytes: u64, blake3: String },
    Failed { cause: String },
}

/// What is known of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Never heard of.
    New,
    /// Its image has been verified and has this size.
    Finished(u64),
    /// It failed for good, for the cause of this number.
    Failed(u16),
}

/// A path's entry: 64-bit hashes, so that ten million URLs take some 400 MB.
#[derive(Clone, Copy)]
struct Entry {
    url: u64,
    known: Known,
    /// The URL came up in this run.
    is_listed: bool,
}

/// What the list of this run may do with a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It has the path to itself.
    Own(Known),
    /// The same URL came before.
    Repeated,
    /// Another URL has this path.
    Taken,
}

/// The paths of this run and of those before it.
#[derive(Default)]
pub(super) struct Paths {
    entries: HashMap<u64, Entry>,
    causes: Vec<String>,
    ignore_query: bool,
}

/// Opens the ledger below `output`, and tells what it knows.
pub(super) fn open(output: &Path, ignore_query: bool) -> Result<(Ledger, Paths), PrepareError> {
    let mut paths = Paths { ignore_query, ..Paths::default() };
    let path = output.join(STATE_FOLDER).join("ledger.jsonl");
    let journal = Journal::open(&path, "fetch", &mut |_, line| match serde_json::from_slice(line) {
        Ok(line) => {
            paths.note(line);
            true
        }
        Err(_) => false,
    })?;
    Ok((Ledger { journal: Mutex::new(journal) }, paths))
}

impl Paths {
    fn note(&mut self, line: Line) {
        let known = match line.state {
            LineState::Finished { bytes, .. } => Known::Finished(bytes),
            LineState::Failed { cause } => Known::Failed(self.cause_number(cause)),
        };
        let entry = Entry { url: self.url_hash(&line.url), known, is_listed: false };
        self.entries.insert(hash(&line.path), entry);
    }

    fn cause_number(&mut self, cause: String) -> u16 {
        let at = self.causes.iter().position(|known| *known == cause).unwrap_or_else(|| {
            self.causes.push(cause);
            self.causes.len() - 1
        });
        at as u16
    }

    /// The cause of a number that [`Known::Failed`] holds.
    pub(super) fn cause(&self, number: u16) -> &str {
        &self.causes[usize::from(number)]
    }

    fn url_hash(&self, url: &str) -> u64 {
        let end = if self.ignore_query { url.find(['?', '#']).unwrap_or(url.len()) } else { url.len() };
        hash(&url[..end])
    }

    /// The first URL of a list to name a path has it: two images must not become one file.
    pub(super) fn admit(&mut self, path: &str, url: &str) -> Admission {
        let url = self.url_hash(url);
        let new = Entry { url, known: Known::New, is_listed: false };
        let entry = self.entries.entry(hash(path)).or_insert(new);
        match entry {
            Entry { url: found, is_listed: true, .. } if *found == url => Admission::Repeated,
            Entry { url: found, is_listed: false, .. } if *found == url => {
                entry.is_listed = true;
                Admission::Own(entry.known)
            }
            // What failed for another URL of an earlier list left no file.
            Entry { is_listed: false, known: Known::New | Known::Failed(_), .. } => {
                *entry = Entry { is_listed: true, ..new };
                Admission::Own(Known::New)
            }
            _ => Admission::Taken,
        }
    }

    /// Names of unfinished files that a finished line claims: a kill came between the line and the renaming.
    pub(super) fn claims(&self, partial: &str) -> bool {
        let path = u64::from_str_radix(partial, 16).ok();
        path.and_then(|path| self.entries.get(&path)).is_some_and(|entry| matches!(entry.known, Known::Finished(_)))
    }
}

/// The ledger, open for writing.
pub(super) struct Ledger {
    journal: Mutex<Journal>,
}

impl Ledger {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().expect("no writer panics")
    }

    /// Lines that could not be read.
    pub(super) fn damaged(&self) -> u64 {
        self.journal().damaged
    }

    pub(super) fn finished(&self, path: &str, url: &str, bytes: u64, hash: blake3::Hash) -> Result<(), PrepareError> {
        let state = LineState::Finished { bytes, blake3: hash.to_hex().to_string() };
        self.journal().append(&Line { path: path.to_owned(), url: url.to_owned(), state }).map(drop)
    }

    pub(super) fn failed(&self, path: &str, url: &str, cause: &str) -> Result<(), PrepareError> {
        let state = LineState::Failed { cause: cause.to_owned() };
        self.journal().append(&Line { path: path.to_owned(), url: url.to_owned(), state }).map(drop)
    }

    pub(super) fn sync(&self) -> Result<(), PrepareError> {
        self.journal().sync()
    }
}

/// Where the bytes of `path` are gathered until they are an image.
pub(super) fn partial_path(output: &Path, path: &str) -> PathBuf {
    output.join(STATE_FOLDER).join("partial").join(format!("{:016x}", hash(path)))
}

fn hash(text: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(text.as_bytes()).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_url_of_a_path_has_it_and_later_runs_know_it() {
        let root = tempfile::tempdir().expect("temp folder");
        std::fs::create_dir(root.path().join(STATE_FOLDER)).expect("folder");
        let (ledger, mut paths) = open(root.path(), false).expect("starts");
        assert_eq!(paths.admit("1.jpg", "http://a/1.jpg"), Admission::Own(Known::New));
        assert_eq!(paths.admit("1.jpg", "http://a/1.jpg"), Admission::Repeated);
        assert_eq!(paths.admit("1.jpg", "http://b/1.jpg"), Admission::Taken);
        ledger.finished("1.jpg", "http://a/1.jpg", 7, blake3::hash(b"x")).expect("written");
        ledger.failed("2.jpg", "http://a/2.jpg", "http_404").expect("written");
        drop(ledger);
        let (_ledger, mut paths) = open(root.path(), false).expect("opens");
        assert!(paths.claims(partial_path(root.path(), "1.jpg").file_name().expect("name").to_str().expect("text")));
        assert_eq!(paths.admit("1.jpg", "http://b/1.jpg"), Admission::Taken, "the file there is another URL's");
        assert_eq!(paths.admit("1.jpg", "http://a/1.jpg"), Admission::Own(Known::Finished(7)));
        let Admission::Own(Known::Failed(cause)) = paths.admit("2.jpg", "http://a/2.jpg") else { panic!("known") };
        assert_eq!(paths.cause(cause), "http_404");
    }

    #[test]
    fn a_path_whose_url_failed_is_free_for_the_url_of_another_list() {
        let mut paths = Paths::default();
        let state = LineState::Failed { cause: "dns".into() };
        paths.note(Line { path: "1.jpg".into(), url: "http://gone/1.jpg".into(), state });
        assert_eq!(paths.admit("1.jpg", "http://new/1.jpg"), Admission::Own(Known::New));
    }

    #[test]
    fn signed_urls_are_one_image_where_the_query_is_ignored() {
        for (ignore_query, expected) in [(false, Admission::Taken), (true, Admission::Repeated)] {
            let mut paths = Paths { ignore_query, ..Paths::default() };
            paths.admit("1.jpg", "http://a/1.jpg?sig=1");
            assert_eq!(paths.admit("1.jpg", "http://a/1.jpg?sig=2"), expected);
        }
    }
}
