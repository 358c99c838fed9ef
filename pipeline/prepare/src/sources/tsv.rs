//! Cutting tab-separated text into rows as pandas reads it with `sep='\t'`, without holding more than one.
//!
//! A cell that begins with `"` ends with the next `"` that is not doubled, and may hold tabs and line ends; what follows up to the
//! next tab belongs to it too. In other cells `"` is a character. Rows end with LF, CRLF or CR; empty lines are none. Our own
//! instead of the `csv` crate's (which the tests compare it with), because that one takes a quote without its end for a
//! cell as long as the rest of the file.

use std::io::{self, BufRead};

/// A row longer than this is taken for a broken file.
const MAX_ROW_BYTES: usize = 64 << 20;
const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];

/// The cells of one row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TsvRow {
    /// Byte offset of the row in the file.
    pub(super) offset: u64,
    /// One-based line it starts on.
    pub(super) line: u64,
    /// Its cells, unquoted.
    pub(super) cells: Vec<Vec<u8>>,
}

/// Why there is no row.
#[derive(Debug)]
pub(super) enum TsvError {
    /// The file cannot be read.
    Io(io::Error),
    /// The row at `offset` cannot be told from the next.
    Broken { offset: u64, line: u64, expected: &'static str, found: &'static str },
}

impl From<io::Error> for TsvError {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

/// Where in a row a reader stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    CellStart,
    Plain,
    Quoted,
    /// After a quote inside a quoted cell: its end, or half of a doubled one.
    Quote,
}

/// Yields row after row.
pub(super) struct TsvCutter<R> {
    reader: R,
    offset: u64,
    line: u64,
}

impl<R: BufRead> TsvCutter<R> {
    /// From the start of a file; skips a UTF-8 byte order mark.
    pub(super) fn start(mut reader: R) -> Result<Self, TsvError> {
        let mark = if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        reader.consume(mark);
        Ok(Self { reader, offset: mark as u64, line: 1 })
    }

    /// From the first byte of a row that an earlier pass found. Its line is not known: rows count lines from here.
    pub(super) fn resume(reader: R, offset: u64) -> Self {
        Self { reader, offset, line: 1 }
    }

    /// The next row, or `None` after the last.
    pub(super) fn next_row(&mut self) -> Result<Option<TsvRow>, TsvError> {
        self.skip_line_ends()?;
        let mut row = TsvRow { offset: self.offset, line: self.line, cells: Vec::new() };
        let (mut cell, mut state, mut num_bytes) = (Vec::new(), State::CellStart, 0);
        loop {
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            let (used, ended) = take(chunk, &mut state, &mut cell, &mut row.cells);
            self.line += chunk[..used].iter().filter(|next| **next == b'\n').count() as u64;
            self.reader.consume(used);
            self.offset += used as u64;
            num_bytes += used;
            if num_bytes > MAX_ROW_BYTES {
                return Err(row.broken("a row of at most 64 MiB", "a longer one"));
            }
            if ended {
                row.cells.push(cell);
                return Ok(Some(row));
            }
        }
        match state {
            State::Quoted => Err(row.broken("a quote that ends", "the end of the file")),
            State::CellStart if row.cells.is_empty() => Ok(None),
            _ => {
                row.cells.push(cell);
                Ok(Some(row))
            }
        }
    }

    fn skip_line_ends(&mut self) -> Result<(), io::Error> {
        while let Some(next @ (b'\n' | b'\r')) = self.reader.fill_buf()?.first() {
            self.line += u64::from(*next == b'\n');
            self.reader.consume(1);
            self.offset += 1;
        }
        Ok(())
    }
}

impl TsvRow {
    fn broken(&self, expected: &'static str, found: &'static str) -> TsvError {
        TsvError::Broken { offset: self.offset, line: self.line, expected, found }
    }
}

/// Takes bytes of a row up to its end, which it leaves, or up to the end of `chunk`; tells how many, and whether the row ended.
fn take(chunk: &[u8], state: &mut State, cell: &mut Vec<u8>, cells: &mut Vec<Vec<u8>>) -> (usize, bool) {
    let mut at = 0;
    while at < chunk.len() {
        let rest = &chunk[at..];
        match *state {
            State::Quoted => {
                let num = rest.iter().position(|next| *next == b'"').unwrap_or(rest.len());
                cell.extend_from_slice(&rest[..num]);
                at += num;
                if num < rest.len() {
                    *state = State::Quote;
                    at += 1;
                }
            }
            State::Plain => {
                let num = rest.iter().position(|next| matches!(next, b'\t' | b'\n' | b'\r')).unwrap_or(rest.len());
                cell.extend_from_slice(&rest[..num]);
                at += num;
                if num < rest.len() && rest[num] != b'\t' {
                    return (at, true);
                }
                if num < rest.len() {
                    end_cell(&mut at, state, cell, cells);
                }
            }
            State::CellStart | State::Quote => match rest[0] {
                b'\t' => end_cell(&mut at, state, cell, cells),
                b'\n' | b'\r' => return (at, true),
                b'"' => {
                    if *state == State::Quote {
                        cell.push(b'"');
                    }
                    *state = State::Quoted;
                    at += 1;
                }
                _ => *state = State::Plain,
            },
        }
    }
    (at, false)
}

fn end_cell(at: &mut usize, state: &mut State, cell: &mut Vec<u8>, cells: &mut Vec<Vec<u8>>) {
    cells.push(std::mem::take(cell));
    *state = State::CellStart;
    *at += 1;
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    /// All rows; one that is read from its own offset must be the same.
    fn cut(text: &[u8], capacity: usize) -> Result<Vec<Vec<String>>, TsvError> {
        let mut cutter = TsvCutter::start(BufReader::with_capacity(capacity, text))?;
        let mut rows = Vec::new();
        while let Some(row) = cutter.next_row()? {
            let again = TsvCutter::resume(&text[row.offset as usize..], row.offset).next_row()?.expect("a row");
            assert_eq!((again.offset, &again.cells), (row.offset, &row.cells));
            rows.push(row.cells.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect());
        }
        Ok(rows)
    }

    #[test]
    fn quotes_tabs_and_line_ends() {
        let text = "\u{feff}a\tb\r\n\r\n\"x\ty\n\"\"z\"\"\"\t[\"p\", \"q\"]\rlone\n\t\n\"c\"d\"\te";
        let expected: [&[&str]; 5] =
            [&["a", "b"], &["x\ty\n\"z\"", "[\"p\", \"q\"]"], &["lone"], &["", ""], &["cd\"", "e"]];
        assert_eq!(cut(text.as_bytes(), 3).expect("sound"), expected);
        assert!(cut(b"", 8).expect("empty").is_empty() && cut(b"\n\r\n", 8).expect("empty").is_empty());
    }

    #[test]
    fn a_quote_without_its_end_is_named_with_its_place() {
        let Err(TsvError::Broken { offset, line, .. }) = cut(b"a\tb\nc\t\"d\ne\tf\n", 5) else { panic!("it passed") };
        assert_eq!((offset, line), (4, 2));
    }

    proptest! {
        #[test]
        fn rows_come_back_as_they_were_written(
            rows in proptest::collection::vec(proptest::collection::vec("[ -~\t\n\r\"é]{0,6}", 2..5), 0..6), capacity in 1usize..9,
        ) {
            let mut writer = csv::WriterBuilder::new().delimiter(b'\t').flexible(true).from_writer(Vec::new());
            rows.iter().for_each(|row| writer.write_record(row).expect("written"));
            let text = writer.into_inner().expect("flushed");
            prop_assert_eq!(cut(&text, capacity).expect("sound"), rows);
        }

        #[test]
        fn any_text_is_cut_as_the_csv_crate_does_or_refused(text in "[ab\t\n\r\"]{0,40}", capacity in 1usize..9) {
            let mut reader =
                csv::ReaderBuilder::new().delimiter(b'\t').flexible(true).has_headers(false).from_reader(text.as_bytes());
            let theirs = reader.byte_records().map(|record| record.expect("read"));
            let theirs: Vec<Vec<String>> =
                theirs.map(|record| record.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect()).collect();
            match cut(text.as_bytes(), capacity) {
                Ok(ours) => prop_assert_eq!(ours, theirs),
                Err(TsvError::Broken { .. }) => prop_assert!(text.contains('"')),
                Err(TsvError::Io(fault)) => panic!("{fault}"),
            }
        }
    }
}
