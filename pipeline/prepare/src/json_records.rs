//! Records of a JSON list, of JSON lines, or of the list under one key of a JSON object, one at a time.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::PrepareError;

/// Takes each record, or what is wrong with its line.
pub(crate) type TakeRecord<'a> = dyn FnMut(Result<Value, serde_json::Error>) -> ControlFlow<()> + 'a;

/// Shows every record of the file at `path` to `take`, in order. With `key` the file is one object and its list of that name is
/// read; without, a file whose first character is `[` is a list and any other is lines.
///
/// # Errors
/// If the file cannot be read, or its list is broken, as no record of it can then be told from the next. A broken line is its
/// record's fault.
pub(crate) fn read_records(path: &Path, key: Option<&str>, take: &mut TakeRecord<'_>) -> Result<(), PrepareError> {
    let file = File::open(path).map_err(PrepareError::io("read", path))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let first = first_character(&mut reader).map_err(PrepareError::io("read", path))?;
    match (key, first) {
        (None, Some(b'[')) => read_whole(path, reader, Records { take, has_stopped: false }, None),
        (None, _) => read_lines(reader, take).map_err(PrepareError::io("read", path)),
        (Some(key), _) => read_whole(path, reader, Records { take, has_stopped: false }, Some(key)),
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
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = line.trim_ascii();
        if !text.is_empty() && take(serde_json::from_slice(text)).is_break() {
            break;
        }
        line.clear();
    }
    Ok(())
}

fn read_whole(
    path: &Path,
    reader: impl BufRead,
    mut records: Records<'_, '_>,
    key: Option<&str>,
) -> Result<(), PrepareError> {
    let mut parser = serde_json::Deserializer::from_reader(reader);
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
        while let Some(record) = list.next_element()? {
            if (self.take)(Ok(record)).is_break() {
                // Serde has no other way to leave a list early.
                self.has_stopped = true;
                return Err(serde::de::Error::custom("stopped"));
            }
        }
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
    fn a_broken_line_is_a_record_and_a_broken_list_is_the_files_fault() {
        assert_eq!(read("{\"a\":1}\n{\"a\":\n3", None, 9).expect("lines"), [json!({"a": 1}), Value::Null, json!(3)]);
        for (content, key) in [("[{}", None), ("[1] 2", None), ("[]", Some("list")), ("{\"a\": []}", Some("list"))] {
            let fault = read(content, key, 9).expect_err(content);
            assert!(matches!(fault, PrepareError::BrokenFile { .. }), "{content}: {fault}");
        }
    }
}
