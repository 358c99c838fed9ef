//! Cutting a JSON list or JSON lines into records without holding more than one.

use std::io::BufRead;

/// A record longer than this is taken for a broken file.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// How records follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[record, record, ...]`.
    List,
    /// One record per line; blank lines are none.
    Lines,
}

/// The bytes of one record, white space around them removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawRecord {
    /// Byte offset of the record in the file.
    pub(super) offset: u64,
    /// One-based line it starts on.
    pub(super) line: u64,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// The list itself is broken.
#[derive(Debug)]
pub(super) struct LayoutFault {
    pub(super) offset: u64,
    pub(super) line: u64,
    pub(super) expected: &'static str,
    pub(super) found: String,
}

#[derive(Debug)]
pub(super) enum CutError {
    Io(std::io::Error),
    Layout(LayoutFault),
}

impl From<std::io::Error> for CutError {
    fn from(source: std::io::Error) -> Self {
        Self::Io(source)
    }
}

/// Where in the list a reader stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    /// Before a record; the flag says that `]` may come instead (only right after `[`).
    BeforeRecord {
        may_end: bool,
    },
    AfterList,
}

/// An iterator-like cutter over a reader that stands at the start of the file, or at a record's first byte.
pub(super) struct Cutter<R> {
    reader: R,
    layout: Layout,
    place: Place,
    offset: u64,
    line: u64,
}

impl<R: BufRead> Cutter<R> {
    /// From the start of the file; skips a UTF-8 byte order mark and finds the layout: a file whose first
    /// character is `[` is a list, any other is lines.
    pub(super) fn start(mut reader: R) -> Result<Self, CutError> {
        let head = reader.fill_buf()?;
        let mark = usize::from(head.starts_with(&[0xEF, 0xBB, 0xBF])) * 3;
        if head.starts_with(&[0xFF, 0xFE]) || head.starts_with(&[0xFE, 0xFF]) {
            let fault =
                LayoutFault { offset: 0, line: 1, expected: "UTF-8 text", found: "a UTF-16 byte order mark".into() };
            return Err(CutError::Layout(fault));
        }
        reader.consume(mark);
        let mut cutter = Self { reader, layout: Layout::Lines, place: Place::Start, offset: mark as u64, line: 1 };
        cutter.skip_blank()?;
        if cutter.peek()? == Some(b'[') {
            cutter.layout = Layout::List;
            cutter.bump();
            cutter.place = Place::BeforeRecord { may_end: true };
        }
        Ok(cutter)
    }

    /// From the first byte of a record that an earlier pass found.
    pub(super) fn resume(reader: R, layout: Layout, offset: u64, line: u64) -> Self {
        Self { reader, layout, place: Place::BeforeRecord { may_end: false }, offset, line }
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The next record, or `None` after the last.
    pub(super) fn next_record(&mut self) -> Result<Option<RawRecord>, CutError> {
        match self.layout {
            Layout::Lines => self.next_line(),
            Layout::List => self.next_element(),
        }
    }

    fn next_line(&mut self) -> Result<Option<RawRecord>, CutError> {
        self.skip_blank()?;
        let (offset, line) = (self.offset, self.line);
        let mut bytes = Vec::new();
        while let Some(next) = self.peek()? {
            if next == b'\n' {
                break;
            }
            self.push(next, &mut bytes)?;
        }
        bytes.truncate(bytes.trim_ascii_end().len());
        Ok((!bytes.is_empty()).then_some(RawRecord { offset, line, bytes }))
    }

    fn next_element(&mut self) -> Result<Option<RawRecord>, CutError> {
        self.skip_blank()?;
        if self.place == Place::AfterList {
            return match self.peek()? {
                None => Ok(None),
                Some(_) => Err(self.fault("nothing after the list's `]`")?),
            };
        }
        if self.place == (Place::BeforeRecord { may_end: true }) && self.peek()? == Some(b']') {
            self.bump();
            self.place = Place::AfterList;
            return self.next_element();
        }
        let record = self.element()?;
        match self.peek()? {
            Some(b',') => self.place = Place::BeforeRecord { may_end: false },
            _ => self.place = Place::AfterList,
        }
        self.bump();
        Ok(Some(record))
    }

    /// Reads up to the `,` or `]` that ends an element, brackets and strings balanced.
    fn element(&mut self) -> Result<RawRecord, CutError> {
        let (offset, line) = (self.offset, self.line);
        let (mut bytes, mut depth, mut in_string) = (Vec::new(), 0usize, false);
        loop {
            let Some(next) = self.peek()? else {
                return Err(self.fault("`,` or the list's `]`")?);
            };
            match next {
                b'\\' if in_string => {
                    self.push(next, &mut bytes)?;
                    let Some(escaped) = self.peek()? else { continue };
                    self.push(escaped, &mut bytes)?;
                    continue;
                }
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b',' | b']' if !in_string && depth == 0 => break,
                b'}' if !in_string && depth == 0 => return Err(self.fault("a record")?),
                b'}' | b']' if !in_string => depth -= 1,
                _ => {}
            }
            self.push(next, &mut bytes)?;
        }
        bytes.truncate(bytes.trim_ascii_end().len());
        if bytes.is_empty() {
            return Err(self.fault("a record")?);
        }
        Ok(RawRecord { offset, line, bytes })
    }

    fn peek(&mut self) -> Result<Option<u8>, std::io::Error> {
        Ok(self.reader.fill_buf()?.first().copied())
    }

    fn bump(&mut self) {
        self.reader.consume(1);
        self.offset += 1;
    }

    fn push(&mut self, next: u8, bytes: &mut Vec<u8>) -> Result<(), CutError> {
        if bytes.len() >= MAX_RECORD_BYTES {
            return Err(self.fault("a record of at most 64 MiB")?);
        }
        bytes.push(next);
        self.line += u64::from(next == b'\n');
        self.bump();
        Ok(())
    }

    fn skip_blank(&mut self) -> Result<(), std::io::Error> {
        while let Some(next) = self.peek()?
            && next.is_ascii_whitespace()
        {
            self.line += u64::from(next == b'\n');
            self.bump();
        }
        Ok(())
    }

    /// A fault at the next byte.
    fn fault(&mut self, expected: &'static str) -> Result<CutError, std::io::Error> {
        let found = match self.peek()? {
            Some(next) => format!("`{}`", char::from(next).escape_debug()),
            None => "the end of the file".to_owned(),
        };
        Ok(CutError::Layout(LayoutFault { offset: self.offset, line: self.line, expected, found }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &[u8]) -> Result<Vec<String>, CutError> {
        let mut cutter = Cutter::start(std::io::BufReader::with_capacity(3, text))?;
        let mut records = Vec::new();
        while let Some(record) = cutter.next_record()? {
            assert!(text[record.offset as usize..].starts_with(&record.bytes));
            records.push(String::from_utf8_lossy(&record.bytes).into_owned());
        }
        Ok(records)
    }

    #[test]
    fn lists_and_lines_are_cut_alike() {
        let expected = [r#"{"a":"],[\"}"}"#, "[1,{}]", "3"];
        let list = format!("\u{feff} [ {} ,\r\n {}\n,{} ]\n\n", expected[0], expected[1], expected[2]);
        assert_eq!(cut(list.as_bytes()).expect("list"), expected);
        let lines = "\u{feff}{\"a\":1}\r\n\r\n  {\"b\":2}  \n{\"c\":3}";
        assert_eq!(cut(lines.as_bytes()).expect("lines"), [r#"{"a":1}"#, r#"{"b":2}"#, r#"{"c":3}"#]);
        assert_eq!(cut(b"[]").expect("empty"), Vec::<String>::new());
        assert_eq!(cut(b"").expect("empty"), Vec::<String>::new());
    }

    #[test]
    fn a_broken_list_names_its_place() {
        let cases: [(&[u8], u64, u64); 5] =
            [(b"[{}", 3, 1), (b"[{},]", 4, 1), (b"[\n{}\n]\nx", 7, 4), (b"[{}}]", 3, 1), (b"[{\"a\n", 5, 2)];
        for (text, offset, line) in cases {
            let Err(CutError::Layout(fault)) = cut(text) else { panic!("{text:?} passed") };
            assert_eq!((fault.offset, fault.line), (offset, line), "{:?}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn any_json_values_come_back_whole(texts in proptest::collection::vec(any::<String>(), 0..6)) {
            let values: Vec<_> = texts.iter().map(|text| serde_json::json!({"t": text, "n": [1, {"x": text}]})).collect();
            let list = serde_json::to_vec_pretty(&values).expect("JSON");
            let records = cut(&list).expect("a sound list");
            let back: Vec<serde_json::Value> =
                records.iter().map(|record| serde_json::from_str(record).expect("whole")).collect();
            prop_assert_eq!(back, values);
        }
    }
}
