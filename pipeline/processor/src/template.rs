//! Chat templates, rendered as transformers' Jinja environment does it.
//!
//! Same settings (`trim_blocks`, `lstrip_blocks`), same additions (`raise_exception`, `strftime_now`, a `tojson` that
//! writes what Python's `json.dumps(ensure_ascii=False)` does, loop controls, Python's string and mapping methods).
//! `{% generation %}` marks are tolerated; labels do not need them.

use std::str::FromStr;

use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use vela_types::{Role, Turn};

use crate::ProcessorError;
use crate::builtin::{Builtin, EndOfTurn};

/// A calendar day, for `strftime_now`; written as `2024-07-26`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

impl FromStr for TemplateDate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("expected a day as YYYY-MM-DD, found `{text}`");
        let parts: Vec<&str> = text.split('-').collect();
        let [year, month, day] = parts[..] else { return Err(fault()) };
        let digits = |part: &str, width| part.len() == width && part.bytes().all(|byte| byte.is_ascii_digit());
        if !(digits(year, 4) && digits(month, 2) && digits(day, 2)) {
            return Err(fault());
        }
        let number = |part: &str| part.parse::<u16>().map_err(|_| fault());
        let date = Self { year: number(year)?, month: number(month)? as u8, day: number(day)? as u8 };
        match date.year > 0 && (1..=12).contains(&date.month) && (1..=date.days_of_month()).contains(&date.day) {
            true => Ok(date),
            false => Err(fault()),
        }
    }
}

impl TryFrom<String> for TemplateDate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TemplateDate> for String {
    fn from(date: TemplateDate) -> Self {
        date.iso()
    }
}

impl TemplateDate {
    fn days_of_month(self) -> u8 {
        let leap = self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        match self.month {
            2 => 28 + u8::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

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

/// A compiled template with what it renders beside the turns.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: SpecialTokens,
    source: String,
    default_system: &'static str,
    end_of_turn: EndOfTurn,
    answer_lead: &'static str,
    /// The system turn of dialogues that bring none.
    system: Option<Turn>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles a folder's own template.
    pub(crate) fn new(source: &str, tokens: SpecialTokens, date: TemplateDate) -> Result<Self, ProcessorError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| Err::<String, _>(fault(message)));
        environment.add_function("strftime_now", move |pattern: String| date.format(&pattern));
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|source| ProcessorError::Template { step: "compile", source })?;
        Ok(Self {
            environment,
            tokens,
            source: source.to_owned(),
            default_system: "",
            end_of_turn: EndOfTurn::AddedToken,
            answer_lead: "",
            system: None,
        })
    }

    /// Compiles a template that has a name.
    pub(crate) fn builtin(
        builtin: &Builtin,
        tokens: SpecialTokens,
        date: TemplateDate,
    ) -> Result<Self, ProcessorError> {
        let Builtin { default_system, end_of_turn, answer_lead, .. } = *builtin;
        Ok(Self { default_system, end_of_turn, answer_lead, ..Self::new(builtin.source, tokens, date)? })
    }

    /// Sets the system turn of dialogues that bring none.
    pub(crate) fn with_system(mut self, system: Option<&str>) -> Self {
        self.system = system.map(Turn::system);
        self
    }

    /// What the template is made of.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// What stands before each answer and belongs to it.
    pub(crate) fn answer_lead(&self) -> &str {
        self.answer_lead
    }

    /// What closes its assistant turns.
    pub(crate) fn end_of_turn(&self) -> EndOfTurn {
        self.end_of_turn
    }

    /// The dialogue as one text. `cut` is what the template sets where text is to be encoded apart, if it does.
    pub(crate) fn render(&self, turns: &[Turn], generation_prompt: bool, cut: &str) -> Result<String, ProcessorError> {
        let message = |turn: &Turn| context! { role => turn.role.as_str(), content => turn.text.as_str() };
        let brings_system = turns.first().is_some_and(|turn| turn.role == Role::System);
        let system = self.system.iter().filter(|_| !brings_system);
        let messages: Vec<Value> = system.chain(turns).map(message).collect();
        let context = context! {
            messages => messages,
            add_generation_prompt => generation_prompt,
            default_system => self.default_system,
            cut => cut,
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
        // Behind the opening: `{%}` is no tag that ends.
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let (tag, tail) = rest[start..].split_at(length + 4);
        text.push_str(&rest[..start]);
        let word =
            tag[2..2 + length].trim_matches(|letter: char| letter.is_whitespace() || letter == '-' || letter == '+');
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
        ChatTemplate::new(source, tokens, TemplateDate::default())?.render(turns, false, "")
    }

    #[test]
    fn days_are_read_as_they_are_written_and_impossible_ones_refused() {
        for text in ["2024-07-26", "2024-02-29", "2000-02-29", "0001-12-31"] {
            assert_eq!(text.parse::<TemplateDate>().map(TemplateDate::iso).as_deref(), Ok(text));
        }
        for text in
            ["", "2024-7-26", "26 Jul 2024", "2023-02-29", "1900-02-29", "2024-13-01", "2024-04-31", "0000-01-01"]
        {
            assert!(text.parse::<TemplateDate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_tag_that_ends_where_it_begins_is_an_error_of_the_template() {
        for source in ["{%}", "{%}{{ x }} %}", "a{%", "{%%}"] {
            assert_eq!(without_generation_marks(source), source);
            assert!(render(source, &[Turn::user("Hi")]).is_err(), "{source}");
        }
        assert_eq!(without_generation_marks("{%- generation %}a{%endgeneration -%}"), "{%- if true %}a{%endif -%}");
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
