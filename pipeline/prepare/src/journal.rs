//! Append-only JSON lines that survive `kill -9`: the first line names the file's kind, every later line is one write, and
//! a last line that was torn in the writing is cut off when the file is opened again.

use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::PrepareError;

/// A line's place in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinePlace {
    /// Byte offset of its first byte.
    pub(crate) offset: u64,
    /// Bytes without the line end.
    pub(crate) len: u32,
}

/// An open journal, locked against a second process.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    end: u64,
    /// Lines that could not be read when it was opened; they stay in the file and count for nothing.
    pub(crate) damaged: u64,
}

impl Journal {
    /// Opens the journal of `kind` at `path`, or starts one, and shows each whole line to `visit`, which returns false for a
    /// line that it cannot read.
    ///
    /// # Errors
    /// If the file is in use by another process or is no journal of this kind: it is then left as it is.
    pub(crate) fn open(
        path: &Path,
        kind: &'static str,
        visit: &mut dyn FnMut(LinePlace, &[u8]) -> bool,
    ) -> Result<Self, PrepareError> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(PrepareError::io("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PrepareError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(fault)) => return Err(PrepareError::io("lock", path)(fault)),
        }
        let mut this = Self { path: path.to_owned(), file, end: 0, damaged: 0 };
        let header = format!("{{\"journal\":\"{kind}\",\"version\":1}}\n");
        if !this.has_header(header.as_bytes()).map_err(PrepareError::io("read", path))? {
            return Err(PrepareError::ForeignJournal { path: path.to_owned(), expected: kind });
        }
        this.read_lines(header.len() as u64, visit).map_err(PrepareError::io("read", path))?;
        this.cut().map_err(PrepareError::io("write", path))?;
        if this.end == 0 {
            this.write(header.as_bytes())?;
        }
        Ok(this)
    }

    /// True for an empty file, one with the header, and one torn within it.
    fn has_header(&mut self, header: &[u8]) -> io::Result<bool> {
        let mut start = Vec::new();
        Read::by_ref(&mut self.file).take(header.len() as u64).read_to_end(&mut start)?;
        Ok(header.starts_with(&start))
    }

    fn read_lines(&mut self, start: u64, visit: &mut dyn FnMut(LinePlace, &[u8]) -> bool) -> io::Result<()> {
        if self.file.metadata()?.len() < start {
            return Ok(());
        }
        self.end = start;
        self.file.seek(SeekFrom::Start(start))?;
        let mut reader = BufReader::with_capacity(1 << 16, &self.file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 && line.pop() == Some(b'\n') {
            let place = LinePlace { offset: self.end, len: line.len() as u32 };
            self.damaged += u64::from(!visit(place, &line));
            self.end += line.len() as u64 + 1;
            line.clear();
        }
        Ok(())
    }

    /// Cuts whatever stands behind the last whole line.
    fn cut(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() > self.end {
            self.file.set_len(self.end)?;
        }
        self.file.seek(SeekFrom::Start(self.end)).map(drop)
    }

    /// Adds a line with one write; it outlives the process from then on, and the machine from the next [`Journal::sync`] on.
    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<LinePlace, PrepareError> {
        let mut bytes = serde_json::to_vec(line).expect("texts and numbers are JSON");
        let place = LinePlace { offset: self.end, len: bytes.len() as u32 };
        bytes.push(b'\n');
        self.write(&bytes)?;
        Ok(place)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PrepareError> {
        if let Err(fault) = self.file.write_all(bytes) {
            // A full disk may have taken half of it; what follows must start on a line of its own.
            let _ = self.cut();
            return Err(PrepareError::io("write", &self.path)(fault));
        }
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Waits until all lines are on the device.
    pub(crate) fn sync(&self) -> Result<(), PrepareError> {
        self.file.sync_data().map_err(PrepareError::io("write", &self.path))
    }

    /// The bytes of a line.
    pub(crate) fn read(&mut self, place: LinePlace) -> Result<Vec<u8>, PrepareError> {
        let mut bytes = vec![0; place.len as usize];
        let read = self.file.seek(SeekFrom::Start(place.offset)).and_then(|_| self.file.read_exact(&mut bytes));
        let back = self.file.seek(SeekFrom::Start(self.end));
        read.and(back).map_err(PrepareError::io("read", &self.path))?;
        Ok(bytes)
    }
}

/// Writes `content` to `path` through a file beside it, so that a reader sees the old or the new; nothing if it is the same.
pub(crate) fn replace_file(path: &Path, partial: &Path) -> Result<(), PrepareError> {
    let hash = |path: &Path| {
        let mut hasher = blake3::Hasher::new();
        File::open(path).and_then(|file| hasher.update_reader(file).map(|hasher| hasher.finalize())).ok()
    };
    match hash(path).is_some_and(|old| hash(partial) == Some(old)) {
        true => std::fs::remove_file(partial).map_err(PrepareError::io("remove", partial)),
        false => std::fs::rename(partial, path).map_err(PrepareError::io("write", path)),
    }
}

/// Makes the folder that `path` names its file in.
pub(crate) fn make_parent(path: &Path) -> Result<(), PrepareError> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => std::fs::create_dir_all(folder).map_err(PrepareError::io("create the folder", folder)),
        None => Ok(()),
    }
}

/// Removes a file that may not be there.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), PrepareError> {
    match std::fs::remove_file(path) {
        Err(fault) if fault.kind() != ErrorKind::NotFound => Err(PrepareError::io("remove", path)(fault)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn open(path: &Path) -> Result<(Journal, Vec<Value>), PrepareError> {
        let mut lines = Vec::new();
        let journal = Journal::open(path, "test", &mut |_, line| match serde_json::from_slice(line) {
            Ok(value) => {
                lines.push(value);
                true
            }
            Err(_) => false,
        })?;
        Ok((journal, lines))
    }

    #[test]
    fn lines_are_read_back_by_their_places_while_more_are_added() {
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join("j");
        let (mut journal, lines) = open(&path).expect("starts");
        assert_eq!(lines, Vec::<Value>::new());
        let places: Vec<_> = (0..3).map(|n| journal.append(&json!({ "n": n, "t": "\n" })).expect("written")).collect();
        assert_eq!(journal.read(places[1]).expect("read"), br#"{"n":1,"t":"\n"}"#);
        journal.append(&json!(4)).expect("written");
        drop(journal);
        let (mut journal, lines) = open(&path).expect("opens");
        assert_eq!(lines.len(), 4);
        assert_eq!(journal.read(places[2]).expect("read"), br#"{"n":2,"t":"\n"}"#);
    }

    #[test]
    fn a_file_of_another_kind_or_in_use_is_left_as_it_is() {
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join("photo.jpg");
        for content in [&b"no journal"[..], b"{\"journal\":\"other\",\"version\":1}\n", b"{\"id\": 1}"] {
            fs::write(&path, content).expect("file");
            let fault = open(&path).err().expect("refused").to_string();
            assert!(fault.contains("photo.jpg") && fault.contains("test"), "{fault}");
            assert_eq!(fs::read(&path).expect("file"), content);
        }
        let path = root.path().join("j");
        let _held = open(&path).expect("starts");
        assert!(matches!(open(&path), Err(PrepareError::InUse { .. })));
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_counted_and_left_out() {
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join("j");
        drop(open(&path).expect("starts"));
        let mut content = fs::read(&path).expect("header");
        content.extend_from_slice(b"1\n\0\0\0\n2\n");
        fs::write(&path, content).expect("file");
        let (journal, lines) = open(&path).expect("opens");
        assert_eq!((journal.damaged, lines), (1, vec![json!(1), json!(2)]));
    }

    proptest! {
        #[test]
        fn torn_at_any_byte_the_whole_lines_are_there_and_the_next_follows(texts in proptest::collection::vec(any::<String>(), 0..5), at in any::<prop::sample::Index>()) {
            let root = tempfile::tempdir().expect("temp folder");
            let path = root.path().join("j");
            let (mut journal, _) = open(&path).expect("starts");
            for text in &texts {
                journal.append(text).expect("written");
            }
            drop(journal);
            let whole = fs::read(&path).expect("file");
            let torn = &whole[..at.index(whole.len() + 1)];
            fs::write(&path, torn).expect("file");
            let kept = torn.iter().filter(|byte| **byte == b'\n').count().saturating_sub(1);
            let (mut journal, lines) = open(&path).expect("opens");
            prop_assert_eq!(&lines, &texts[..kept].iter().map(|text| json!(text)).collect::<Vec<_>>());
            journal.append(&"next").expect("written");
            drop(journal);
            let (_, lines) = open(&path).expect("opens");
            prop_assert_eq!((lines.len(), lines.last()), (kept + 1, Some(&json!("next"))));
        }
    }
}
