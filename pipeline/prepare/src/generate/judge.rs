//! Which answers become dialogues. The rules, in the order in which they are tried, are those of `docs/generate.md`.

use std::collections::HashSet;

use vela_types::{IMAGE_MARK, Language};

use super::facts::ImageFacts;
use super::grammar::{Pair, closed_pairs, has_stray_marker, parse_pairs};
use super::kind::GenerateKind;

/// What a model said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// Its text, as it came.
    pub(super) text: String,
    /// Why it stopped: `stop`, `length`, `content_filter`, or what the server calls it.
    pub(super) finish_reason: Option<String>,
}

/// Why an answer is no dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Stable name under which rejects are counted.
    pub(super) cause: &'static str,
    /// What was expected and found.
    pub(super) detail: String,
}

/// Beginnings of answers that are none.
const REFUSALS: [&str; 14] = [
    "i'm sorry",
    "i am sorry",
    "sorry,",
    "i cannot",
    "i can't",
    "i'm unable",
    "i am unable",
    "i apologize",
    "unfortunately, i",
    "抱歉",
    "很抱歉",
    "对不起",
    "我无法",
    "非常抱歉",
];
/// What a model says of itself, wherever it says it.
const SELF_TALK: [&str; 5] = ["as an ai", "language model", "作为一个ai", "作为人工智能", "语言模型"];
/// Words for the notes that the model was told not to mention.
const SOURCE_WORDS: [&str; 13] = [
    "caption",
    "bounding box",
    "coordinates",
    "the notes",
    "provided description",
    "given description",
    "provided sentences",
    "based on the description",
    "according to the description",
    "边界框",
    "坐标",
    "提供的描述",
    "根据描述",
];
/// A description shorter than this says less than a caption, in characters.
const MIN_DESCRIPTION: usize = 40;

/// The pairs of a reply about `facts`; a description is a single pair without a question.
///
/// Of a reply that was cut off at its length the pairs closed by `===` count, as the last answer may lack its end; a description
/// is then rejected.
pub(super) fn judge(kind: GenerateKind, facts: &ImageFacts, reply: &Reply) -> Result<Vec<Pair>, Verdict> {
    let text = reply.text.trim();
    check_whole(text, reply)?;
    let is_cut = reply.finish_reason.as_deref() == Some("length");
    let pairs = match kind {
        GenerateKind::Detail if is_cut => return Err(cut_short()),
        GenerateKind::Detail => vec![Pair { question: String::new(), answer: text.replace("\r\n", "\n") }],
        GenerateKind::Conversation | GenerateKind::Complex => dialogue(kind, text, is_cut)?,
    };
    pairs.iter().try_for_each(|pair| check_pair(kind, pair))?;
    let said: Vec<&str> = pairs.iter().flat_map(|pair| [pair.question.as_str(), &pair.answer]).collect();
    let (asked, found) = (facts.language(), Language::guess(&said.join("\n")));
    match asked != Language::Other && asked != found {
        true => reject("wrong_language", format!("expected `{}`, found `{}`", asked.as_str(), found.as_str())),
        false => Ok(pairs),
    }
}

fn reject<T>(cause: &'static str, detail: impl Into<String>) -> Result<T, Verdict> {
    Err(Verdict { cause, detail: detail.into() })
}

fn cut_short() -> Verdict {
    let detail = "the answer was cut off at `--max-tokens` before it was whole".to_owned();
    Verdict { cause: "cut_short", detail }
}

/// What is wrong with a reply before its form is looked at.
fn check_whole(text: &str, reply: &Reply) -> Result<(), Verdict> {
    if reply.finish_reason.as_deref() == Some("content_filter") {
        return reject("refusal", "the server's filter stopped the answer");
    }
    if text.is_empty() {
        return reject("empty_answer", "expected text, found none");
    }
    let plain = text.to_lowercase().replace('\u{2019}', "'");
    let refusal = REFUSALS.iter().find(|start| plain.starts_with(**start));
    match refusal.or_else(|| SELF_TALK.iter().find(|words| plain.contains(**words))) {
        Some(words) => reject("refusal", format!("the answer says `{words}`")),
        None => Ok(()),
    }
}

fn dialogue(kind: GenerateKind, text: &str, is_cut: bool) -> Result<Vec<Pair>, Verdict> {
    let pairs = match is_cut {
        true => closed_pairs(text),
        false => parse_pairs(text).or_else(|fault| reject("bad_grammar", fault.to_string()))?,
    };
    let wanted = kind.min_pairs();
    match pairs.len() {
        found if found >= wanted => {}
        _ if is_cut => return Err(cut_short()),
        found => {
            return reject(
                "too_few_pairs",
                format!("expected at least {wanted} questions with answers, found {found}"),
            );
        }
    }
    let mut seen = HashSet::new();
    match pairs.iter().find(|pair| !seen.insert(pair.question.to_lowercase())) {
        Some(pair) => reject("repeated_question", format!("`{}` is asked twice", pair.question)),
        None => Ok(pairs),
    }
}

fn check_pair(kind: GenerateKind, pair: &Pair) -> Result<(), Verdict> {
    let texts = [&pair.question, &pair.answer];
    if texts.iter().any(|text| has_stray_marker(text)) {
        return reject("bad_grammar", "a marker or `===` stands within a question or answer");
    }
    if texts.iter().any(|text| text.contains(IMAGE_MARK)) {
        return reject("image_mark", format!("the answer writes `{IMAGE_MARK}`"));
    }
    if let Some(word) = texts.iter().find_map(|text| source_word(text)) {
        return reject("names_source", format!("the answer says `{word}`"));
    }
    match kind {
        GenerateKind::Detail if pair.answer.chars().count() < MIN_DESCRIPTION => {
            reject("too_short", format!("expected at least {MIN_DESCRIPTION} characters"))
        }
        GenerateKind::Conversation | GenerateKind::Complex if !pair.question.contains(['?', '？']) => {
            reject("no_question", format!("expected a question mark in `{}`", pair.question))
        }
        _ => Ok(()),
    }
}

/// What in `text` gives away that it was written from notes.
fn source_word(text: &str) -> Option<String> {
    let plain = text.to_lowercase();
    let word = SOURCE_WORDS.iter().find(|word| plain.contains(**word)).map(|word| (*word).to_owned());
    word.or_else(|| edge_numbers(&plain).map(str::to_owned))
}

/// Two fractions in a row, as edges of a box are written: `0.31, 0.642`.
fn edge_numbers(text: &str) -> Option<&str> {
    let starts = text.match_indices("0.").map(|(at, _)| at);
    starts.filter_map(|at| two_fractions(&text[at..])).next()
}

fn two_fractions(text: &str) -> Option<&str> {
    let fraction = |text: &str| {
        let digits = text.strip_prefix("0.")?.bytes().take_while(u8::is_ascii_digit).count();
        (digits > 0).then_some(digits + 2)
    };
    let first = fraction(text)?;
    let gap = text[first..].strip_prefix(',')?;
    let second = gap.trim_start_matches(' ');
    let skipped = first + 1 + gap.len() - second.len();
    Some(&text[..skipped + fraction(second)?])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(caption: &str) -> ImageFacts {
        ImageFacts { id: "1".into(), image: "1.jpg".into(), captions: vec![caption.into()], boxes: vec![] }
    }

    fn reply(text: &str, finish_reason: &str) -> Reply {
        Reply { text: text.to_owned(), finish_reason: Some(finish_reason.to_owned()) }
    }

    fn cause(kind: GenerateKind, text: &str) -> Option<&'static str> {
        judge(kind, &facts("A cat on a mat."), &reply(text, "stop")).err().map(|verdict| verdict.cause)
    }

    const TWO: &str =
        "Question:\nWhat is it?\n===\nAnswer:\nA cat.\n===\nQuestion:\nWhere?\n===\nAnswer:\nOn a mat.\n===\n";

    #[test]
    fn each_rule_has_its_cause() {
        use GenerateKind::{Complex, Conversation, Detail};
        let said = |answer: &str| TWO.replace("On a mat.", answer);
        for (text, expected) in [
            (TWO.to_owned(), None),
            (String::new(), Some("empty_answer")),
            ("I’m sorry, but I can't see it.".to_owned(), Some("refusal")),
            (said("As an AI, I think on a mat."), Some("refusal")),
            ("What a cat!".to_owned(), Some("bad_grammar")),
            (said("On a mat.\nQuestion:\nWhy?"), Some("bad_grammar")),
            (TWO.replace("===\nAnswer:\nOn a mat.", ""), Some("bad_grammar")),
            (TWO.split("Question:\nWhere").next().expect("a part").to_owned(), Some("too_few_pairs")),
            (TWO.replace("Where?", "What is it?"), Some("repeated_question")),
            (TWO.replace("Where?", "Tell me where it is."), Some("no_question")),
            (said("The caption says on a mat."), Some("names_source")),
            (said("Its Bounding Box is on the left."), Some("names_source")),
            (said("At [0.1, 0.25, 0.3, 0.4]."), Some("names_source")),
            (said("<image> shows it."), Some("image_mark")),
            (TWO.replace("A cat.", "一只猫在垫子上。").replace("On a mat.", "在垫子上。"), Some("wrong_language")),
        ] {
            assert_eq!(cause(Conversation, &text), expected, "{text}");
        }
        assert_eq!(cause(Complex, TWO.split("Question:\nWhere").next().expect("a part")), None);
        assert_eq!(cause(Detail, "A grey cat lies on a red mat in front of a door."), None);
        assert_eq!(cause(Detail, "A grey cat."), Some("too_short"));
        assert_eq!(cause(Detail, TWO), Some("bad_grammar"));
    }

    #[test]
    fn numbers_in_a_text_are_no_edges() {
        for text in ["0.5 meters, 0 chairs", "It weighs 0.3 kg.", "10.5, 20.1", "0., 0.", "0.5,"] {
            assert_eq!(source_word(text), None, "{text}");
        }
        assert_eq!(source_word("(0.31,  0.642)"), Some("0.31,  0.642".into()));
    }

    #[test]
    fn a_cut_answer_keeps_the_pairs_before_its_last_and_no_half() {
        let cut = |text: &str, kind| judge(kind, &facts("A cat."), &reply(text, "length")).map(|pairs| pairs.len());
        let three = format!("{TWO}Question:\nWhy is it there?\n===\nAnswer:\nBecause the");
        assert_eq!(cut(&three, GenerateKind::Conversation), Ok(2));
        assert_eq!(
            cut(TWO.trim_end().trim_end_matches('='), GenerateKind::Conversation).expect_err("one").cause,
            "cut_short"
        );
        assert_eq!(
            cut("A long description that never comes to its", GenerateKind::Detail).expect_err("half").cause,
            "cut_short"
        );
    }

    proptest! {
        #[test]
        fn no_reply_panics(text in "(\\PC|Question:|Answer:|===|\n|0\\.[0-9]|, |\\?){0,60}", is_cut in any::<bool>()) {
            let reply = reply(&text, if is_cut { "length" } else { "stop" });
            for kind in [GenerateKind::Conversation, GenerateKind::Detail, GenerateKind::Complex] {
                let _ = judge(kind, &facts("A cat."), &reply);
            }
        }
    }
}
