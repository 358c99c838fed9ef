//! Python literals, as `ast.literal_eval` reads them and `repr` prints them.
//!
//! The grammar is that of the Python language reference, section "Lexical analysis" (string prefixes and escapes,
//! numbers) and "Displays" (list, tuple, dict). Not literals here: sets, bytes, f-strings, `\N{...}` escapes, complex
//! numbers, operators other than a leading sign.

use std::fmt::{self, Write as _};

/// Containers may nest this deep; deeper text is refused instead of exhausting the stack.
const MAX_NESTING: usize = 64;

/// A parsed literal. Tuples are lists.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// `None`.
    None,
    /// `True`, `False`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// A float, or an integer that does not fit 64 bits.
    Float(f64),
    /// A string.
    Text(String),
    /// A list or tuple.
    List(Vec<Literal>),
    /// A dict in its own order.
    Dict(Vec<(Literal, Literal)>),
}

impl Literal {
    /// The value of a dict's text key; the last one wins, as in Python.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Dict(items) = self else { return None };
        items.iter().rev().find(|(name, _)| matches!(name, Self::Text(text) if text == key)).map(|(_, value)| value)
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Where and why a text is no literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiteralFault {
    /// Byte offset in the text.
    pub offset: usize,
    /// What was expected, with what was found.
    pub expected: String,
}

impl fmt::Display for LiteralFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "byte {}: expected {}", self.offset, self.expected)
    }
}

impl std::error::Error for LiteralFault {}

/// Reads one literal that fills `text` but for white space around it.
pub fn parse(text: &str) -> Result<Literal, LiteralFault> {
    let mut parser = Parser { text, at: 0 };
    parser.skip_blank();
    let value = parser.value(0)?;
    parser.skip_blank();
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(parser.fault("the end of the text")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn eat(&mut self, mark: &str) -> bool {
        let found = self.rest().starts_with(mark);
        self.at += if found { mark.len() } else { 0 };
        found
    }

    fn skip_blank(&mut self) {
        while let Some(next) = self.peek() {
            match next {
                ' ' | '\t' | '\n' | '\r' | '\x0c' => self.at += 1,
                '#' => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                _ => return,
            }
        }
    }

    fn fault(&self, expected: impl fmt::Display) -> LiteralFault {
        let found = match self.peek() {
            Some(next) => format!("`{}`", next.escape_debug()),
            None => "the end".to_owned(),
        };
        LiteralFault { offset: self.at, expected: format!("{expected}, found {found}") }
    }

    fn value(&mut self, depth: usize) -> Result<Literal, LiteralFault> {
        if depth > MAX_NESTING {
            return Err(self.fault(format_args!("at most {MAX_NESTING} nested containers")));
        }
        match self.peek() {
            Some('{') => self.dict(depth),
            Some('[') => self.sequence(depth, ']').map(|(items, _)| Literal::List(items)),
            Some('(') => self.parenthesis(depth),
            Some('0'..='9' | '.' | '-' | '+') => self.number(),
            Some(_) if self.string_prefix().is_some() => self.strings(),
            Some(_) => self.name(),
            None => Err(self.fault("a value")),
        }
    }

    fn name(&mut self) -> Result<Literal, LiteralFault> {
        let end = self.rest().find(|next: char| !next.is_alphanumeric() && next != '_').unwrap_or(self.rest().len());
        let value = match &self.rest()[..end] {
            "None" => Literal::None,
            "True" => Literal::Bool(true),
            "False" => Literal::Bool(false),
            _ => return Err(self.fault("a string, number, list, tuple, dict, `None`, `True` or `False`")),
        };
        self.at += end;
        Ok(value)
    }

    /// Items up to `close`, and whether the last one had a comma after it.
    fn sequence(&mut self, depth: usize, close: char) -> Result<(Vec<Literal>, bool), LiteralFault> {
        self.at += 1;
        let (mut items, mut comma) = (Vec::new(), false);
        loop {
            self.skip_blank();
            if self.peek() == Some(close) {
                self.at += 1;
                return Ok((items, comma));
            }
            if !items.is_empty() && !comma {
                return Err(self.fault(format_args!("`,` or `{close}`")));
            }
            items.push(self.value(depth + 1)?);
            self.skip_blank();
            comma = self.eat(",");
        }
    }

    /// `(a)` is `a`; `()`, `(a,)` and `(a, b)` are tuples.
    fn parenthesis(&mut self, depth: usize) -> Result<Literal, LiteralFault> {
        let (mut items, comma) = self.sequence(depth, ')')?;
        match (items.len(), comma) {
            (1, false) => Ok(items.remove(0)),
            _ => Ok(Literal::List(items)),
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Literal, LiteralFault> {
        self.at += 1;
        let (mut items, mut comma) = (Vec::new(), true);
        loop {
            self.skip_blank();
            if self.eat("}") {
                return Ok(Literal::Dict(items));
            }
            if !comma {
                return Err(self.fault("`,` or `}`"));
            }
            let key = self.value(depth + 1)?;
            self.skip_blank();
            if !self.eat(":") {
                return Err(self.fault("`:` after a dict key"));
            }
            self.skip_blank();
            items.push((key, self.value(depth + 1)?));
            self.skip_blank();
            comma = self.eat(",");
        }
    }

    fn number(&mut self) -> Result<Literal, LiteralFault> {
        let start = self.at;
        let negative = self.peek() == Some('-');
        self.at += usize::from(matches!(self.peek(), Some('-' | '+')));
        let digits_at = self.at;
        let mut previous = ' ';
        while let Some(next) = self.peek() {
            let sign = matches!(next, '+' | '-') && matches!(previous, 'e' | 'E') && !self.is_hex(digits_at);
            if !(next.is_ascii_alphanumeric() || matches!(next, '.' | '_') || sign) {
                break;
            }
            previous = next;
            self.at += 1;
        }
        let digits = &self.text[digits_at..self.at];
        number_value(digits, negative).ok_or_else(|| {
            let found = &self.text[start..self.at];
            LiteralFault { offset: start, expected: format!("a number, found `{found}`") }
        })
    }

    fn is_hex(&self, digits_at: usize) -> bool {
        let digits = &self.text[digits_at..];
        digits.starts_with("0x") || digits.starts_with("0X")
    }

    /// The prefix letters of a string that starts here, or `None` if none does.
    fn string_prefix(&self) -> Option<&'a str> {
        let end = self.rest().find(['\'', '"'])?;
        let prefix = &self.rest()[..end];
        (end <= 2 && prefix.chars().all(|next| next.is_ascii_alphabetic())).then_some(prefix)
    }

    /// One or more adjacent strings, joined.
    fn strings(&mut self) -> Result<Literal, LiteralFault> {
        let mut text = String::new();
        while let Some(prefix) = self.string_prefix() {
            let raw = match prefix {
                "" | "u" | "U" => false,
                "r" | "R" => true,
                _ => return Err(self.fault("a plain, `r` or `u` string")),
            };
            self.at += prefix.len();
            self.string(raw, &mut text)?;
            self.skip_blank();
        }
        Ok(Literal::Text(text))
    }

    fn string(&mut self, raw: bool, text: &mut String) -> Result<(), LiteralFault> {
        let quote = if self.peek() == Some('\'') { "'" } else { "\"" };
        let triple = quote.repeat(3);
        let close = if self.rest().starts_with(&triple) { triple.as_str() } else { quote };
        self.at += close.len();
        loop {
            if self.eat(close) {
                return Ok(());
            }
            match self.peek() {
                None => return Err(self.fault(format_args!("the closing `{close}` of a string"))),
                Some('\n') if close.len() == 1 => {
                    return Err(self.fault(format_args!("`{close}` before the line ends")));
                }
                Some('\\') if raw => {
                    text.push('\\');
                    self.at += 1;
                    text.extend(self.bump());
                }
                Some('\\') => self.escape(text)?,
                Some(next) => {
                    text.push(next);
                    self.at += next.len_utf8();
                }
            }
        }
    }

    /// An escape sequence; one Python does not know stays as it is, backslash included.
    fn escape(&mut self, text: &mut String) -> Result<(), LiteralFault> {
        let start = self.at;
        self.at += 1;
        let Some(letter) = self.bump() else {
            return Err(self.fault("a character after `\\`"));
        };
        match letter {
            '\n' => {}
            '\\' | '\'' | '"' => text.push(letter),
            'a' => text.push('\x07'),
            'b' => text.push('\x08'),
            'f' => text.push('\x0c'),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            't' => text.push('\t'),
            'v' => text.push('\x0b'),
            '0'..='7' => text.push(self.octal(letter)),
            'x' => text.push(self.code_point(start, 2)?),
            'u' => text.push(self.code_point(start, 4)?),
            'U' => text.push(self.code_point(start, 8)?),
            'N' => {
                self.at = start;
                return Err(self.fault("no `\\N{...}` escape (character names are not supported)"));
            }
            other => text.extend(['\\', other]),
        }
        Ok(())
    }

    /// Up to three octal digits; at most 0o777, which is always a character.
    fn octal(&mut self, first: char) -> char {
        let mut value = first.to_digit(8).unwrap_or(0);
        for _ in 0..2 {
            let Some(digit) = self.peek().and_then(|next| next.to_digit(8)) else { break };
            value = value * 8 + digit;
            self.at += 1;
        }
        char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    fn code_point(&mut self, start: usize, num_digits: usize) -> Result<char, LiteralFault> {
        let digits = self.rest().get(..num_digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let value = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
        let Some(value) = value else {
            self.at = start;
            return Err(self.fault(format_args!("{num_digits} hex digits of a Unicode character after the escape")));
        };
        self.at += num_digits;
        Ok(value)
    }
}

fn number_value(digits: &str, negative: bool) -> Option<Literal> {
    if digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    let plain = digits.replace('_', "");
    let lower = plain.to_ascii_lowercase();
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(prefix, _)| lower.starts_with(prefix));
    let sign = if negative { -1 } else { 1 };
    if let Some((prefix, radix)) = radix {
        let value = i64::from_str_radix(lower.strip_prefix(prefix)?, radix).ok()?;
        return Some(Literal::Int(sign * value));
    }
    if lower.bytes().all(|byte| byte.is_ascii_digit()) {
        if lower.len() > 1 && lower.starts_with('0') && lower.bytes().any(|byte| byte != b'0') {
            return None;
        }
        let signed = if negative { format!("-{lower}") } else { lower.clone() };
        if let Ok(value) = signed.parse() {
            return Some(Literal::Int(value));
        }
    }
    let numeric = lower.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'+' | b'-'));
    let value: f64 = numeric.then(|| lower.parse().ok()).flatten()?;
    Some(Literal::Float(if negative { -value } else { value }))
}

/// Prints a literal as Python's `repr` does, ASCII controls escaped and every other character as it is.
pub fn to_repr(value: &Literal) -> String {
    let mut out = String::new();
    write_repr(value, &mut out);
    out
}

fn write_repr(value: &Literal, out: &mut String) {
    match value {
        Literal::None => out.push_str("None"),
        Literal::Bool(true) => out.push_str("True"),
        Literal::Bool(false) => out.push_str("False"),
        Literal::Int(value) => write!(out, "{value}").expect("a String takes any text"),
        Literal::Float(value) => write!(out, "{value:?}").expect("a String takes any text"),
        Literal::Text(text) => write_text(text, out),
        Literal::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_repr(item, out);
            }
            out.push(']');
        }
        Literal::Dict(items) => {
            out.push('{');
            for (index, (key, item)) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_repr(key, out);
                out.push_str(": ");
                write_repr(item, out);
            }
            out.push('}');
        }
    }
}

/// Single quotes, unless the text holds single quotes and no double ones.
fn write_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for next in text.chars() {
        match next {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if next == quote => out.extend(['\\', quote]),
            '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => {
                write!(out, "\\x{:02x}", u32::from(next)).expect("a String takes any text");
            }
            _ => out.push(next),
        }
    }
    out.push(quote);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: &str) -> Literal {
        Literal::Text(value.to_owned())
    }

    #[test]
    fn escapes_and_prefixes_mean_what_python_says() {
        let cases = [
            (r"'it\'s \x41\u4e2d\U0001F600'", "it's A中😀"),
            (r"'\a\b\f\n\r\t\v\0\101\7'", "\x07\x08\x0c\n\r\t\x0b\0A\x07"),
            (r"r'a\n\'b'", r"a\n\'b"),
            (r"u'x' U'y' 'z'", "xyz"),
            (r"'\d \.'", r"\d \."),
            ("'''two\nlines'''", "two\nlines"),
            ("\"\"\"a\"b\"\"\"", "a\"b"),
            ("'a\\\nb'", "ab"),
        ];
        for (source, expected) in cases {
            assert_eq!(parse(source), Ok(text(expected)), "{source}");
        }
    }

    #[test]
    fn numbers_and_containers_are_read() {
        let cases = [
            ("0x1f", Literal::Int(31)),
            ("-1_000", Literal::Int(-1000)),
            ("1e-3", Literal::Float(0.001)),
            (".5", Literal::Float(0.5)),
            ("-9223372036854775808", Literal::Int(i64::MIN)),
            ("(1)", Literal::Int(1)),
            ("(1,)", Literal::List(vec![Literal::Int(1)])),
            ("( )", Literal::List(vec![])),
            ("[1, 2,]", Literal::List(vec![Literal::Int(1), Literal::Int(2)])),
            ("{ # note\n'a': None,\n 'b': True}", {
                Literal::Dict(vec![(text("a"), Literal::None), (text("b"), Literal::Bool(true))])
            }),
        ];
        for (source, expected) in cases {
            assert_eq!(parse(source), Ok(expected), "{source}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_place() {
        let deep = "[".repeat(70) + &"]".repeat(70);
        let broken =
            ["", "{'a': }", "{'a' 1}", "{'a': 1", "[1 2]", "'abc", "'a\nb'", "null", "b'x'", "f'x'", "{1, 2}", "1 + 2"];
        let more =
            ["'\\ud83d'", "'\\xg1'", "'\\N{DASH}'", "012", "1__0", "0xzz", "__import__('os')", "'a' 1", "[,]", &deep];
        for source in broken.iter().chain(&more) {
            let fault = parse(source).expect_err(source);
            assert!(fault.offset <= source.len(), "{source}: {fault}");
        }
        assert_eq!(parse("{'a': }").expect_err("no value").offset, 6);
    }

    fn literals() -> impl Strategy<Value = Literal> {
        let leaf = prop_oneof![
            Just(Literal::None),
            any::<bool>().prop_map(Literal::Bool),
            any::<i64>().prop_map(Literal::Int),
            (-1.0e300..1.0e300).prop_map(Literal::Float),
            any::<String>().prop_map(Literal::Text),
            "[ -~\n\t'\"\\\\]{0,12}".prop_map(Literal::Text),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            let pairs = (any::<String>().prop_map(Literal::Text), inner.clone());
            prop_oneof![
                proptest::collection::vec(inner, 0..5).prop_map(Literal::List),
                proptest::collection::vec(pairs, 0..5).prop_map(Literal::Dict),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_repr_prints_is_read_back(value in literals()) {
            let printed = to_repr(&value);
            prop_assert_eq!(parse(&printed), Ok(value), "{}", printed);
        }

        #[test]
        fn no_text_panics(source in "[\\[\\]{}(),:'\"\\\\ru0-9a-fxN\n é中-]{0,40}") {
            let _ = parse(&source);
        }
    }
}
