//! The grammar of generated dialogues: `Question:`, text, `===`, `Answer:`, text, `===`, and again.
//!
//! Read with tolerance for what models do to it: line ends of any kind, a missing last `===`, text before the first
//! `Question:`, the text on the marker's own line, bold markers, numbers after `Question`. Nothing else is guessed.

use std::fmt;

/// A question and its answer, trimmed, neither empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What is asked.
    pub question: String,
    /// What is answered.
    pub answer: String,
}

/// Where a text leaves the grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrammarFault {
    /// Number of the block between separators, from 1.
    pub block: usize,
    /// What should stand there.
    pub expected: &'static str,
    /// How it begins instead.
    pub found: String,
}

impl fmt::Display for GrammarFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "block {}: expected {}, found `{}`", self.block, self.expected, self.found)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Marker {
    Question,
    Answer,
}

/// The pairs of a text in order; at least one.
///
/// # Errors
/// If a block is neither a question nor an answer, they do not alternate, one is empty, or there is none.
pub fn parse_pairs(text: &str) -> Result<Vec<Pair>, GrammarFault> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut pairs, mut open): (Vec<Pair>, Option<String>) = (Vec::new(), None);
    let blocks = blocks(&text);
    for (number, block) in (1..).zip(&blocks) {
        let fault = |expected| GrammarFault { block: number, expected, found: beginning(block) };
        let (marker, body) = read_block(block, number == 1).ok_or_else(|| fault("`Question:` or `Answer:`"))?;
        match (marker, open.take()) {
            _ if body.is_empty() => return Err(fault("text after the marker")),
            (Marker::Question, None) => open = Some(body),
            (Marker::Answer, Some(question)) => pairs.push(Pair { question, answer: body }),
            (Marker::Question, Some(_)) => return Err(fault("an answer to the question before")),
            (Marker::Answer, None) => return Err(fault("a question before the answer")),
        }
    }
    let end = |expected| GrammarFault { block: blocks.len() + 1, expected, found: String::new() };
    match open {
        Some(_) => Err(end("an answer to the last question")),
        None if pairs.is_empty() => Err(end("a question")),
        None => Ok(pairs),
    }
}

/// The pairs of a text that was cut off: those whose answers are closed by `===`.
pub(super) fn closed_pairs(text: &str) -> Vec<Pair> {
    let lines = text.split_inclusive('\n').scan(0, |end, line| {
        *end += line.len();
        Some((*end - line.len(), line))
    });
    let closings: Vec<usize> = lines.filter(|(_, line)| is_separator(line)).map(|(start, _)| start).collect();
    // Behind the last closed answer stands at most one closed question, and some models close twice.
    closings.iter().rev().take(4).find_map(|end| parse_pairs(&text[..*end]).ok()).unwrap_or_default()
}

/// Pairs as a text of the grammar.
pub fn render_pairs(pairs: &[Pair]) -> String {
    let blocks = pairs.iter().map(|pair| format!("Question:\n{}\n===\nAnswer:\n{}\n===\n", pair.question, pair.answer));
    blocks.collect()
}

/// True if a line of `text` is a marker without text or a separator: a block that was not closed.
pub(super) fn has_stray_marker(text: &str) -> bool {
    let is_bare = |line: &str| matches!(read_marker(line), Some((_, "")));
    text.lines().any(|line| is_separator(line) || is_bare(line))
}

/// What stands between lines of `===`, empty blocks left out.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.split('\n') {
        match is_separator(line) {
            true => blocks.push(String::new()),
            false => {
                let block = blocks.last_mut().expect("it starts with one");
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks.retain(|block| !block.trim().is_empty());
    blocks
}

fn is_separator(line: &str) -> bool {
    let line = line.trim();
    line.len() >= 3 && line.bytes().all(|byte| byte == b'=')
}

/// The block's marker and its text; `may_lead` allows lines before a `Question:`.
fn read_block(block: &str, may_lead: bool) -> Option<(Marker, String)> {
    let mut rest = block.trim_start();
    loop {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        match read_marker(line) {
            Some((marker, text)) => return Some((marker, format!("{text}\n{after}").trim().to_owned())),
            None if may_lead && !after.is_empty() => rest = after,
            None => return None,
        }
    }
}

/// `Question:`, `**Answer:** text`, `Question 2: text`.
fn read_marker(line: &str) -> Option<(Marker, &str)> {
    let line = line.trim_start_matches(['*', '#', ' ', '\t']);
    let named = |name: &str| {
        let head = line.get(..name.len())?;
        head.eq_ignore_ascii_case(name).then(|| &line[name.len()..])
    };
    let (marker, rest) = match named("question") {
        Some(rest) => (Marker::Question, rest),
        None => (Marker::Answer, named("answer")?),
    };
    let rest = rest.trim_start_matches(|letter: char| letter == ' ' || letter == '*' || letter.is_ascii_digit());
    let text = rest.strip_prefix(':').or_else(|| rest.strip_prefix('：'))?;
    Some((marker, text.trim_start_matches('*').trim()))
}

fn beginning(block: &str) -> String {
    block.trim().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(question: &str, answer: &str) -> Pair {
        Pair { question: question.to_owned(), answer: answer.to_owned() }
    }

    #[test]
    fn what_models_do_to_the_grammar_is_understood() {
        let expected = vec![pair("What is it?", "A cat.\n\nA grey one."), pair("Where?", "On a mat.")];
        let plain = render_pairs(&expected);
        let bold = plain.replace("Question:", "**Question:**").replace("Answer:\n", "**Answer**: ");
        let numbered = plain.replacen("Question:\n", "Question 1: ", 1).replace("===", " ===== ");
        for text in [
            plain.clone(),
            plain.replace('\n', "\r\n"),
            plain.trim_end().trim_end_matches('=').to_owned(),
            format!("Here is the conversation:\n\n{plain}"),
            plain.replace("===\nQ", "===\n===\n\nQ"),
            bold,
            numbered,
        ] {
            assert_eq!(parse_pairs(&text).as_ref(), Ok(&expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_whole_is_a_fault_with_its_block() {
        for (text, block) in [
            ("", 1),
            ("Just text.", 1),
            ("Question:\nWhat?\n===\n", 2),
            ("Question:\nWhat?\nAnswer:\nA cat.\n", 2),
            ("Answer:\nA cat.\n===", 1),
            ("Question:\nWhat?\n===\nQuestion:\nWhere?\n===", 2),
            ("Question:\n===\nAnswer:\nA cat.", 1),
            ("Question:\nWhat?\n===\nAnswer:\n", 2),
            ("Question:\nWhat?\n===\nAnswer:\nA cat.\n===\nI hope this helps!", 3),
            ("Questions: many\n===\nAnswer:\nA", 1),
        ] {
            assert_eq!(parse_pairs(text).expect_err(text).block, block, "{text}");
        }
    }

    #[test]
    fn an_unclosed_block_leaves_a_stray_marker() {
        let pairs = parse_pairs("Question:\nWhat?\n===\nAnswer:\nA cat.\nQuestion:\nWhere?").expect("balanced");
        assert!(has_stray_marker(&pairs[0].answer));
        for text in ["The answer: a cat.", "Question: is it?", "a = b", "Answers:\n==", ""] {
            assert!(!has_stray_marker(text), "{text}");
        }
    }

    /// Any trimmed text without a line of `===`.
    fn text() -> impl Strategy<Value = String> {
        let line = prop_oneof!["\\PC{0,20}", "(Question|Answer|[*=: \n]){0,8}", Just(String::new())];
        let text = proptest::collection::vec(line, 1..4).prop_map(|lines| lines.join("\n").trim().to_owned());
        text.prop_filter("text of a pair", |text| !text.is_empty() && !text.split('\n').any(is_separator))
    }

    proptest! {
        #[test]
        fn rendered_pairs_come_back(texts in proptest::collection::vec((text(), text()), 1..5), crlf in any::<bool>()) {
            let pairs: Vec<Pair> = texts.iter().map(|(question, answer)| pair(question, answer)).collect();
            let rendered = render_pairs(&pairs);
            let rendered = if crlf { rendered.replace('\n', "\r\n") } else { rendered };
            prop_assert_eq!(parse_pairs(&rendered), Ok(pairs));
        }

        #[test]
        fn no_text_panics(text in "(\\PC|Question|Answer|：|:|=|\\*|\n|\r|[0-9]){0,80}") {
            let _ = parse_pairs(&text).map(|pairs| pairs.iter().any(|pair| has_stray_marker(&pair.answer)));
        }
    }
}
