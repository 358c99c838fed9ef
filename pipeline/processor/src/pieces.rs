//! Cuts text where the split patterns of Qwen and Llama 3 cut it, without running them.
//!
//! The pattern's alternatives, in order, at each place: a contraction; letters, with one sign before them; one digit
//! or up to three; signs, with a space before and line ends after them; blanks up to a line end; blanks but the last
//! one before a word; blanks. Every character is matched by one of them, so that pieces touch.

use std::sync::OnceLock;

use tokenizers::utils::SysRegex;

/// Letters and digits beyond this plane there are none.
const LAST_CLASSIFIED: u32 = 0x3_FFFF;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Digit,
    Blank,
    LineEnd,
    Sign,
}

/// What each character is to the library's regular expressions, which are asked once per process.
struct Classes(Vec<Class>);

impl Classes {
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Classes> = OnceLock::new();
        SHARED.get_or_init(Self::ask)
    }

    fn ask() -> Self {
        let all: Vec<char> = (0..=LAST_CLASSIFIED).filter_map(char::from_u32).collect();
        let text: String = all.iter().collect();
        let mut classes = vec![Class::Sign; LAST_CLASSIFIED as usize + 1];
        for (pattern, class) in
            [(r"\p{L}+", Class::Letter), (r"\p{N}+", Class::Digit), (r"\s+", Class::Blank), (r"[\r\n]", Class::LineEnd)]
        {
            let pattern = SysRegex::new(pattern).expect("a class is a pattern");
            for (start, end) in pattern.find_iter(&text) {
                text[start..end].chars().for_each(|letter| classes[letter as usize] = class);
            }
        }
        Self(classes)
    }

    fn of(&self, letter: char) -> Class {
        self.0.get(letter as usize).copied().unwrap_or(Class::Sign)
    }
}

/// The cuts of one pattern.
pub(crate) struct Splitter {
    most_digits: usize,
    classes: &'static Classes,
}

impl Splitter {
    /// Qwen's pattern has `most_digits` 1, Llama 3's 3.
    pub(crate) fn new(most_digits: usize) -> Self {
        Self { most_digits, classes: Classes::shared() }
    }

    /// The pieces of `text`, which they cover.
    pub(crate) fn pieces<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let (piece, tail) = rest.split_at(self.first(rest)?);
            rest = tail;
            Some(piece)
        })
    }

    /// Bytes of the first piece.
    fn first(&self, text: &str) -> Option<usize> {
        let mut letters = text.chars();
        let first = letters.next()?;
        let after = letters.as_str();
        let second = letters.next().map(|letter| self.classes.of(letter));
        let width = first.len_utf8();
        Some(match self.classes.of(first) {
            Class::Letter => width + self.run(after, Class::Letter, usize::MAX),
            Class::Digit => width + self.run(after, Class::Digit, self.most_digits - 1),
            Class::Sign if first == '\'' && contraction(after) > 0 => width + contraction(after),
            Class::Sign | Class::Blank if second == Some(Class::Letter) => {
                width + self.run(after, Class::Letter, usize::MAX)
            }
            Class::Sign => self.signs(text),
            Class::Blank if first == ' ' && second == Some(Class::Sign) => width + self.signs(after),
            Class::Blank | Class::LineEnd => self.blanks(text),
        })
    }

    /// Bytes of the leading characters of a class, `most` at most.
    fn run(&self, text: &str, class: Class, most: usize) -> usize {
        let run = text.chars().take(most).take_while(|letter| self.classes.of(*letter) == class);
        run.map(char::len_utf8).sum()
    }

    /// Signs and the line ends behind them.
    fn signs(&self, text: &str) -> usize {
        let signs = self.run(text, Class::Sign, usize::MAX);
        signs + self.run(&text[signs..], Class::LineEnd, usize::MAX)
    }

    /// Blanks up to the last line end among them; else all of them if nothing follows; else all but the last, which
    /// goes with what follows; else the one that there is.
    fn blanks(&self, text: &str) -> usize {
        let is_blank = |letter: &char| matches!(self.classes.of(*letter), Class::Blank | Class::LineEnd);
        let length = text.chars().take_while(is_blank).map(char::len_utf8).sum();
        let run = &text[..length];
        if let Some(at) = run.rfind(['\r', '\n']) {
            return at + 1;
        }
        let last = run.chars().next_back().map_or(0, char::len_utf8);
        match length == text.len() || last == length {
            true => length,
            false => length - last,
        }
    }
}

/// Bytes after an apostrophe that belong to it: s, t, m, d, re, ve, ll, in either case.
fn contraction(after: &str) -> usize {
    let mut letters = after.chars();
    let first = letters.next();
    let second = letters.next().map(|letter| letter.to_ascii_lowercase());
    match (first.map(|letter| letter.to_ascii_lowercase()), second) {
        (Some('s' | 't' | 'm' | 'd'), _) => 1,
        // The long s is an s to a pattern that ignores case.
        (Some('\u{17F}'), _) => 2,
        (Some('r' | 'v'), Some('e')) | (Some('l'), Some('l')) => 2,
        _ => 0,
    }
}

/// Whether `text` is surely in Unicode's composed form: every character is one that no composition touches. Scripts
/// that small models are trained on are listed, all others are left to the library.
pub(crate) fn is_composed(text: &str) -> bool {
    text.chars().all(|letter| {
        matches!(letter,
            '\0'..='\u{2FF}'
            | '\u{391}'..='\u{3CE}'
            | '\u{400}'..='\u{482}'
            | '\u{2002}'..='\u{20CF}'
            | '\u{2190}'..='\u{2328}'
            | '\u{2500}'..='\u{2ADB}'
            | '\u{3000}'..='\u{3029}'
            | '\u{3030}'..='\u{3096}'
            | '\u{309B}'..='\u{30FF}'
            | '\u{3400}'..='\u{9FFF}'
            | '\u{AC00}'..='\u{D7A3}'
            | '\u{FE0F}'
            | '\u{FF01}'..='\u{FFEF}'
            | '\u{1F000}'..='\u{1FAFF}'
            | '\u{20000}'..='\u{2A6DF}')
    })
}
