//! Records of a JSON list, of JSON lines, or of the list under one key of a JSON object, one at a time.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::PrepareError;
use crate::sources::{Fault, MAX_RECORD_BYTES, TOO_LONG};

/// Takes each record, or what is wrong with its line.
pub(crate) type TakeRecord<'a> = dyn FnMut(Result<Value, Fault>) -> ControlFlow<()> + 'a;

/// Shows every record of the file at `path` to `take`, in order. With `key` the file is one object and its list of that name is
/// read; without, a file whose first character is `[` is a list and any other is lines.
///
/// # Errors
/// If the file cannot be read, or its list is broken or holds a record above [`MAX_RECORD_BYTES`], as no record of it can then be
/// told from the next. A line that is broken or too long is its record's fault.
pub(crate) fn read_records(path: &Path, key: Option<&str>, take: &mut TakeRecord<'_>) -> Result<(), PrepareError> {
    let file = File::open(path).map_err(PrepareError::io("read", path))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let first = first_character(&mut reader).map_err(PrepareError::io("read", path))?;
    match (key, first) {
        (None, Some(b'[')) => read_whole(path, reader, take, None),
        (None, _) => read_lines(reader, take).map_err(PrepareError::io("read", path)),
        (Some(key), _) => read_whole(path, reader, take, Some(key)),
    }
}

/// Skips a byte order mark and white space; shows what follows.
fn first_character(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    if reader.fill_buf()?.starts_with(&[0xEF, 0xBB, 0xBF]) {
        reader.consume(3);
    }
    loop {
        match reader.fill_buf()?.first().copied() {
            Some(blank) if blank.is_ascii_whitespace() => reader.consume(1),
            first => return Ok(first),
        }
    }
}

fn read_lines(mut reader: impl BufRead, take: &mut TakeRecord<'_>) -> io::Result<()> {
    let mut line = Vec::new();
    while read_line(&mut reader, &mut line)? > 0 {
        let text = line.trim_ascii();
        let is_too_long = line.len() > MAX_RECORD_BYTES;
        let record = match is_too_long {
            true => Err(Fault::new("too_large", format!("expected {TOO_LONG}"))),
            false => serde_json::from_slice(text).map_err(|fault| Fault::new("broken_json", fault.to_string())),
        };
        if !text.is_empty() && take(record).is_break() {
            break;
        }
        while is_too_long && !line.ends_with(b"\n") && read_line(&mut reader, &mut line)? > 0 {}
    }
    Ok(())
}

/// The next line, or as much of it as is more than a record may be.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    reader.take(MAX_RECORD_BYTES as u64 + 1).read_until(b'\n', line)
}

/// A reader that ends with a fault once more bytes than are left have been taken from it.
struct Bounded<R> {
    reader: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("expected {TOO_LONG}")));
        }
        let most = out.len().min(self.left.get());
        let num_read = self.reader.read(&mut out[..most])?;
        self.left.set(self.left.get() - num_read);
        Ok(num_read)
    }
}

fn read_whole(
    path: &Path,
    reader: impl BufRead,
    take: &mut TakeRecord<'_>,
    key: Option<&str>,
) -> Result<(), PrepareError> {
    let left = Rc::new(Cell::new(usize::MAX));
    let mut records = Records { take, has_stopped: false, left: Rc::clone(&left) };
    let mut parser = serde_json::Deserializer::from_reader(Bounded { reader, left });
    let read = match key {
        None => (&mut records).deserialize(&mut parser),
        Some(key) => UnderKey { key, records: &mut records }.deserialize(&mut parser),
    };
    match read.and_then(|()| parser.end()) {
        Err(fault) if !records.has_stopped => {
            let expected =
                if key.is_some() { "one object that holds the list of records" } else { "a list of records" };
            Err(broken_json(path, &fault, expected))
        }
        _ => Ok(()),
    }
}

/// What serde says of a file whose structure is broken.
pub(crate) fn broken_json(path: &Path, fault: &serde_json::Error, expected: &'static str) -> PrepareError {
    PrepareError::BrokenFile {
        path: path.to_owned(),
        position: format!("line {} column {}", fault.line(), fault.column()),
        expected,
        found: format!("`{}`", json_words(fault)),
    }
}

/// What serde says without the place, which it counts from wherever the parsing began.
pub(crate) fn json_words(fault: &serde_json::Error) -> String {
    let text = fault.to_string();
    let place = format!(" at line {} column {}", fault.line(), fault.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// A list whose records go to `take` as they are parsed.
struct Records<'a, 'b> {
    take: &'a mut TakeRecord<'b>,
    has_stopped: bool,
    /// Bytes that may be read of the record under way.
    left: Rc<Cell<usize>>,
}

impl<'de> DeserializeSeed<'de> for &mut Records<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Records<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<(), S::Error> {
        loop {
            self.left.set(MAX_RECORD_BYTES);
            let Some(record) = list.next_element()? else { break };
            if (self.take)(Ok(record)).is_break() {
                // Serde has no other way to leave a list early.
                self.has_stopped = true;
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        self.left.set(usize::MAX);
        Ok(())
    }
}

/// An object of which one list is wanted.
struct UnderKey<'k, 'r, 'a, 'b> {
    key: &'k str,
    records: &'r mut Records<'a, 'b>,
}

impl<'de> DeserializeSeed<'de> for UnderKey<'_, '_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for UnderKey<'_, '_, '_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "an object with a list `{}`", self.key)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut object: M) -> Result<(), M::Error> {
        let mut is_there = false;
        while let Some(key) = object.next_key::<String>()? {
            match key == self.key {
                true => {
                    is_there = true;
                    object.next_value_seed(&mut *self.records)?;
                }
                false => _ = object.next_value::<IgnoredAny>()?,
            }
        }
        match is_there {
            true => Ok(()),
            false => Err(serde::de::Error::custom(format!("no list `{}`", self.key))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(content: &str, key: Option<&str>, limit: usize) -> Result<Vec<Value>, PrepareError> {
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join("a.json");
        std::fs::write(&path, content).expect("file");
        let mut records = Vec::new();
        read_records(&path, key, &mut |record| {
            records.push(record.unwrap_or(Value::Null));
            if records.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(records)
    }

    #[test]
    fn lists_lines_and_lists_under_a_key_are_read_alike() {
        let expected = vec![json!({"a": 1}), json!({"a": [2]})];
        assert_eq!(read("\u{feff} [{\"a\":1},\n{\"a\":[2]}]\n", None, 9).expect("list"), expected);
        assert_eq!(read("{\"a\":1}\r\n\r\n {\"a\":[2]}", None, 9).expect("lines"), expected);
        let object = r#"{"x": {"list": [7]}, "list": [{"a":1},{"a":[2]}], "y": null}"#;
        assert_eq!(read(object, Some("list"), 9).expect("object"), expected);
        assert_eq!(read(object, Some("list"), 1).expect("object"), expected[..1]);
        assert_eq!(read("[{\"a\":1}, broken", None, 1).expect("stopped before the fault"), expected[..1]);
        assert_eq!(read("", None, 9).expect("empty"), Vec::<Value>::new());
    }

    #[test]
    fn a_record_that_is_too_long_costs_a_line_or_the_list() {
        let long = format!("{{\"a\": \"{}\"}}", "long ".repeat(14 << 20));
        let lines = format!("{{\"a\":1}}\n{long}\n{{\"a\":2}}");
        assert_eq!(read(&lines, None, 9).expect("lines"), [json!({"a": 1}), Value::Null, json!({"a": 2})]);
        let short = r#"{"a":1}"#;
        for (content, key) in [(format!("[{short},{long}]"), None), (format!("{{\"l\":[{short},{long}]}}"), Some("l"))]
        {
            let fault = read(&content, key, 9).expect_err("a record above the bound").to_string();
            assert!(fault.contains("64 MiB"), "{fault}");
        }
        // What is passed over is not held, and many records may be longer together.
        let text = "x".repeat(1 << 20);
        let object = format!("{{\"other\":{long},\"l\":[{}]}}", vec![format!("\"{text}\""); 70].join(","));
        assert_eq!(read(&object, Some("l"), 99).expect("reads").len(), 70);
    }

    #[test]
    fn a_broken_line_is_a_record_and_a_broken_list_is_the_files_fault() {
        assert_eq!(read("{\"a\":1}\n{\"a\":\n3", None, 9).expect("lines"), [json!({"a": 1}), Value::Null, json!(3)]);
        for (content, key) in [("[{}", None), ("[1] 2", None), ("[]", Some("list")), ("{\"a\": []}", Some("list"))] {
            let fault = read(content, key, 9).expect_err(content);
            assert!(matches!(fault, PrepareError::BrokenFile { .. }), "{content}: {fault}");
        }
    }
}
