//! Chat templates, rendered as transformers' Jinja environment does it.
//!
//! Same settings (`trim_blocks`, `lstrip_blocks`), same additions (`raise_exception`, `strftime_now`, a `tojson` that
//! writes what Python's `json.dumps(ensure_ascii=False)` does, loop controls, Python's string and mapping methods).
//! `{% generation %}` marks are tolerated; labels do not need them.

use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use serde::Serialize;
use vela_types::Turn;

use crate::ProcessorError;

/// A calendar day, for `strftime_now`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TemplateDate {
    /// Year.
    pub year: u16,
    /// Month, from 1.
    pub month: u8,
    /// Day of the month, from 1.
    pub day: u8,
}

impl Default for TemplateDate {
    /// 26 July 2024, the day that Llama 3's own template falls back to.
    fn default() -> Self {
        Self { year: 2024, month: 7, day: 26 }
    }
}

impl TemplateDate {
    /// `2024-07-26`.
    pub(crate) fn iso(self) -> String {
        format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// C's `strftime` at midnight, for the codes that name a day or an hour.
    fn format(self, pattern: &str) -> Result<String, Error> {
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        let month = MONTHS[usize::from(self.month.clamp(1, 12)) - 1];
        let mut text = String::new();
        let mut letters = pattern.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            match letters.next() {
                Some('d') => text.push_str(&format!("{:02}", self.day)),
                Some('e') => text.push_str(&format!("{:2}", self.day)),
                Some('m') => text.push_str(&format!("{:02}", self.month)),
                Some('b' | 'h') => text.push_str(&month[..3]),
                Some('B') => text.push_str(month),
                Some('Y') => text.push_str(&format!("{:04}", self.year)),
                Some('y') => text.push_str(&format!("{:02}", self.year % 100)),
                Some('F') => text.push_str(&self.iso()),
                Some('A') => text.push_str(self.weekday()),
                Some('a') => text.push_str(&self.weekday()[..3]),
                Some('H' | 'M' | 'S') => text.push_str("00"),
                Some('%') => text.push('%'),
                other => {
                    let code = other.map(String::from).unwrap_or_default();
                    return Err(fault(format!("strftime_now: code `%{code}` is not supported")));
                }
            }
        }
        Ok(text)
    }

    /// Sakamoto's method for the Gregorian calendar.
    fn weekday(self) -> &'static str {
        const NAMES: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
        const SHIFTS: [u32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = u32::from(self.year) - u32::from(self.month < 3);
        let shift = SHIFTS[usize::from(self.month.clamp(1, 12)) - 1];
        NAMES[((year + year / 4 - year / 100 + year / 400 + shift + u32::from(self.day)) % 7) as usize]
    }
}

fn fault(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The tokens that templates may name, absent where the tokenizer has none.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct SpecialTokens {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bos_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eos_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pad_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unk_token: Option<String>,
}

/// A compiled template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: SpecialTokens,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles `source`.
    pub(crate) fn new(source: &str, tokens: SpecialTokens, date: TemplateDate) -> Result<Self, ProcessorError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| Err::<String, _>(fault(message)));
        environment.add_function("strftime_now", move |pattern: String| date.format(&pattern));
        let source = without_generation_marks(source);
        environment
            .add_template_owned(NAME, source)
            .map_err(|source| ProcessorError::Template { step: "compile", source })?;
        Ok(Self { environment, tokens })
    }

    /// The dialogue as one text.
    pub(crate) fn render(&self, turns: &[Turn], generation_prompt: bool) -> Result<String, ProcessorError> {
        let message = |turn: &Turn| context! { role => turn.role.as_str(), content => turn.text.as_str() };
        let messages: Vec<Value> = turns.iter().map(message).collect();
        let context = context! {
            messages => messages,
            add_generation_prompt => generation_prompt,
            ..Value::from_serialize(&self.tokens)
        };
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|template| template.render(context));
        rendered.map_err(|source| ProcessorError::Template { step: "render", source })
    }
}

/// Turns `{% generation %}` blocks into blocks that always hold, so that white space is trimmed around them as around
/// any tag.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, tail) = rest[start..].split_at(length + 2);
        text.push_str(&rest[..start]);
        let word = tag[2..length].trim_matches(|letter: char| letter.is_whitespace() || letter == '-' || letter == '+');
        match word {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        rest = tail;
    }
    text.push_str(rest);
    text
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    _ = options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, PythonFormatter)),
    };
    written.map_err(|error| fault(format!("tojson: {error}")))?;
    // JSON text is UTF-8; marked safe so that no escaping is applied on output.
    Ok(Value::from_safe_string(String::from_utf8_lossy(&text).into_owned()))
}

/// Python's separators: a space after each comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, turns: &[Turn]) -> Result<String, ProcessorError> {
        let tokens = SpecialTokens { bos_token: Some("<s>".into()), ..SpecialTokens::default() };
        ChatTemplate::new(source, tokens, TemplateDate::default())?.render(turns, false)
    }

    #[test]
    fn dates_are_the_given_day() {
        let text = render("{{ strftime_now('%d %b %Y, %A %B %e %y %F %H:%M %%') }}", &[]);
        assert_eq!(text.expect("supported codes"), "26 Jul 2024, Friday July 26 24 2024-07-26 00:00 %");
        assert!(render("{{ strftime_now('%Q') }}", &[]).is_err());
    }

    #[test]
    fn json_is_spaced_as_python_spaces_it_and_not_escaped() {
        let text = render("{{ {'a': [1, 2.5, none, true], 'b': '<猫> \"x\"'} | tojson }}", &[]);
        assert_eq!(text.expect("renders"), r#"{"a": [1, 2.5, null, true], "b": "<猫> \"x\""}"#);
        let text = render("{{ {'a': [1], 'b': {}} | tojson(indent=2) }}", &[]);
        assert_eq!(text.expect("renders"), "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}");
    }

    #[test]
    fn a_template_can_refuse_and_says_why() {
        let error = render("{{ raise_exception('only user turns') }}", &[]).expect_err("raises");
        let source = std::error::Error::source(&error).expect("kept").to_string();
        assert!(source.contains("only user turns"), "{source}");
    }

    #[test]
    fn generation_marks_and_python_methods_are_understood() {
        let source = "{{ bos_token }}{{ eos_token }}{% for m in messages %}\n    {%- generation %}\n{{ m['content'].strip().upper() }}{% endgeneration %}\n\n{% if loop.first %}{% continue %}{% endif %}!{% endfor %}";
        let text = render(source, &[Turn::user(" a "), Turn::assistant("b")]);
        assert_eq!(text.expect("renders"), "<s>A\nB\n!");
    }
}
