//! Cutting a JSON list or JSON lines into records without holding more than one.

use std::collections::HashMap;
use std::io::BufRead;

/// A line longer than this is a reject; an element of a list that is longer is taken for a broken file.
pub(crate) const MAX_RECORD_BYTES: usize = 64 << 20;
/// What is said of one.
pub(crate) const TOO_LONG: &str = "a record of at most 64 MiB";

/// How records follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[record, record, ...]`.
    List,
    /// A list inside an object; what follows it is not looked at.
    Inner,
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
    /// Its bytes; none of a line that is too long.
    pub(super) bytes: Vec<u8>,
    /// True of a line that is too long, which was passed over.
    pub(super) is_too_long: bool,
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
    pub(super) fn start(reader: R) -> Result<Self, CutError> {
        let mut cutter = Self::start_lines(reader)?;
        if cutter.peek()? == Some(b'[') {
            cutter.layout = Layout::List;
            cutter.bump();
            cutter.place = Place::BeforeRecord { may_end: true };
        }
        Ok(cutter)
    }

    /// From the start of a file of lines; skips a UTF-8 byte order mark.
    pub(super) fn start_lines(mut reader: R) -> Result<Self, CutError> {
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
        Ok(cutter)
    }

    /// From the first byte of a record that an earlier pass found.
    pub(super) fn resume(reader: R, layout: Layout, offset: u64, line: u64) -> Self {
        Self { reader, layout, place: Place::BeforeRecord { may_end: false }, offset, line }
    }

    /// From the first byte inside the `[` of a list that [`find_lists`] found.
    pub(super) fn inside(reader: R, offset: u64, line: u64) -> Self {
        Self { reader, layout: Layout::Inner, place: Place::BeforeRecord { may_end: true }, offset, line }
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The next record, or `None` after the last.
    pub(super) fn next_record(&mut self) -> Result<Option<RawRecord>, CutError> {
        match self.layout {
            Layout::Lines => self.next_line(),
            Layout::List | Layout::Inner => self.next_element(),
        }
    }

    fn next_line(&mut self) -> Result<Option<RawRecord>, CutError> {
        self.skip_blank()?;
        let (offset, line) = (self.offset, self.line);
        let mut bytes = Vec::new();
        let is_too_long = !self.take_until(&mut bytes, |byte| byte == b'\n')?;
        if is_too_long {
            bytes = Vec::new();
            while !self.take_until(&mut bytes, |byte| byte == b'\n')? {
                bytes.clear();
            }
            bytes = Vec::new();
        }
        bytes.truncate(bytes.trim_ascii_end().len());
        Ok((is_too_long || !bytes.is_empty()).then_some(RawRecord { offset, line, bytes, is_too_long }))
    }

    fn next_element(&mut self) -> Result<Option<RawRecord>, CutError> {
        self.skip_blank()?;
        if self.place == Place::AfterList {
            return match self.peek()? {
                _ if self.layout == Layout::Inner => Ok(None),
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
        let (mut bytes, mut depth, mut in_string, mut is_escaped) = (Vec::new(), 0usize, false, false);
        let is_whole = self.take_until(&mut bytes, |byte| {
            if in_string {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' => is_escaped = true,
                    b'"' => in_string = false,
                    _ => {}
                }
                return false;
            }
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => depth += 1,
                b',' | b']' | b'}' if depth == 0 => return true,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            false
        })?;
        if !is_whole {
            return Err(self.fault(TOO_LONG)?);
        }
        match self.peek()? {
            None => return Err(self.fault("`,` or the list's `]`")?),
            Some(b'}') => return Err(self.fault("a record")?),
            _ => bytes.truncate(bytes.trim_ascii_end().len()),
        }
        if bytes.is_empty() {
            return Err(self.fault("a record")?);
        }
        Ok(RawRecord { offset, line, bytes, is_too_long: false })
    }

    /// Adds bytes to `bytes` up to the first one that `is_end`, which stays in the reader, or to the end of the file.
    /// False if there are too many: what did not fit stays in the reader, and `is_end` is not asked about it again in order.
    fn take_until(&mut self, bytes: &mut Vec<u8>, mut is_end: impl FnMut(u8) -> bool) -> Result<bool, CutError> {
        loop {
            let held = self.reader.fill_buf()?;
            let end = held.iter().position(|&byte| is_end(byte));
            let taken = &held[..end.unwrap_or(held.len())];
            let (num_taken, num_lines) = (taken.len(), taken.iter().filter(|&&byte| byte == b'\n').count());
            let room = MAX_RECORD_BYTES - bytes.len();
            bytes.extend_from_slice(&taken[..num_taken.min(room)]);
            if num_taken > room {
                self.offset += room as u64;
                self.reader.consume(room);
                return Ok(false);
            }
            let is_over = end.is_some() || held.is_empty();
            self.reader.consume(num_taken);
            self.offset += num_taken as u64;
            self.line += num_lines as u64;
            if is_over {
                return Ok(true);
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>, std::io::Error> {
        Ok(self.reader.fill_buf()?.first().copied())
    }

    fn bump(&mut self) {
        self.reader.consume(1);
        self.offset += 1;
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

/// True of an object whose brackets match and whose strings stand between signs, whatever else is wrong in it: where it ends
/// is then certain, and what follows it can be read.
pub(super) fn is_delimited_object(bytes: &[u8]) -> bool {
    let (mut open, mut in_string, mut is_escaped) = (Vec::new(), false, false);
    // The last sign or letter before the next, strings as one.
    let mut last = b'[';
    for &next in bytes {
        if in_string {
            match next {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        let may_follow = last != b'"' || matches!(next, b',' | b':' | b'}' | b']');
        match next {
            next if next.is_ascii_whitespace() => continue,
            _ if !may_follow || open.is_empty() && last != b'[' => return false,
            b'"' if !matches!(last, b'[' | b'{' | b',' | b':') => return false,
            b'"' => in_string = true,
            b'{' | b'[' => open.push(next + 2),
            // `}` and `]` come two after their partners in ASCII.
            b'}' | b']' if open.pop() != Some(next) => return false,
            _ => {}
        }
        last = next;
    }
    open.is_empty() && !in_string && bytes.starts_with(b"{") && bytes.ends_with(b"}")
}

/// Where the lists directly inside the object of a JSON file begin, by the name of their field: byte and line of the first
/// byte after `[`. A field that comes twice counts where it comes last, as in every JSON reader.
/// `expected` is said of a file that holds no object.
pub(super) fn find_lists(
    reader: impl BufRead,
    expected: &'static str,
) -> Result<HashMap<String, (u64, u64)>, CutError> {
    let mut cutter = Cutter::start_lines(reader)?;
    let (mut lists, mut depth, mut text, mut in_string) = (HashMap::new(), 0usize, Vec::new(), false);
    if cutter.peek()? != Some(b'{') {
        return Err(cutter.fault(expected)?);
    }
    let mut is_escaped = false;
    loop {
        let held = cutter.reader.fill_buf()?;
        if held.is_empty() {
            break;
        }
        for &next in held {
            cutter.offset += 1;
            cutter.line += u64::from(next == b'\n');
            if in_string {
                match next {
                    _ if is_escaped => is_escaped = false,
                    b'\\' => is_escaped = true,
                    b'"' => in_string = false,
                    _ if depth == 1 => text.push(next),
                    _ => {}
                }
                continue;
            }
            match next {
                b'"' => {
                    in_string = true;
                    text.clear();
                }
                b'[' if depth == 1 => {
                    lists.insert(String::from_utf8_lossy(&text).into_owned(), (cutter.offset, cutter.line));
                    depth += 1;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        let num_held = held.len();
        cutter.reader.consume(num_held);
    }
    match depth {
        0 => Ok(lists),
        _ => Err(cutter.fault("the object's `}`")?),
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

    #[test]
    fn an_object_is_delimited_however_wrong_its_values_are() {
        for sound in [
            r#"{"a": "\ud800"}"#,
            r#"{"a": NaN, "b": [1,, {}]}"#,
            "{\"a\": \"tab\there\"}",
            r#"{ } "#.trim_end(),
            "{oops}",
        ] {
            assert!(is_delimited_object(sound.as_bytes()), "{sound}");
        }
        let wrong = [
            r#"{"a": "x"y", "b": "z"w"}"#,
            r#"{"a": [1}]"#,
            r#"{"a" 2}"#,
            "[1]",
            "{",
            r#"{"a": "}"#,
            r#"{"a": x"y"}"#,
            "{}{}",
            "7",
        ];
        for wrong in wrong {
            assert!(!is_delimited_object(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn lists_inside_an_object_are_found_and_cut() {
        let text = "{\"a\": {\"b\": [0]}, \"x\\\"y\": 1,\n \"b\": [ {\"c\": [1]} , 2], \"e\": []}".as_bytes();
        let lists = find_lists(text, "an object").expect("an object");
        assert_eq!(lists.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), ["b", "e"].into());
        let (offset, line) = lists["b"];
        assert_eq!(line, 2);
        let mut cutter = Cutter::inside(&text[offset as usize..], offset, line);
        let mut records = Vec::new();
        while let Some(record) = cutter.next_record().expect("sound") {
            records.push(String::from_utf8(record.bytes).expect("UTF-8"));
        }
        assert_eq!(records, ["{\"c\": [1]}", "2"]);
        for broken in ["[]", "{\"a\": [", ""] {
            assert!(find_lists(broken.as_bytes(), "an object").is_err(), "{broken}");
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
