//! Where the assistant speaks within a rendering.
//!
//! Each answer is rendered between two marks that stand in no text; the marks tell where it landed. Without them the
//! rendering must be the plain one, byte for byte: a template that changes an answer (other than trimming white space
//! around it) is refused, because no label could be trusted.

use std::ops::Range;

use vela_types::{Role, Turn};

use crate::template::ChatTemplate;
use crate::tokenizer::TextTokenizer;
use crate::{ProcessorError, Rendered};

/// Private-use characters, of which a dialogue's pair is chosen so that its text has neither.
const MARKS: Range<u32> = 0x0010_F000..0x0010_F800;

/// Renders `turns` and finds the assistant's spans, each up to and including its end-of-turn token.
pub(crate) fn render(
    template: &ChatTemplate,
    tokenizer: &TextTokenizer,
    turns: &[Turn],
    generation_prompt: bool,
) -> Result<Rendered, ProcessorError> {
    let text = template.render(turns, generation_prompt)?;
    let marks = Marks::absent_from(&text);
    let whole = marks.enclose(turns, |answer| (0, answer.len()));
    let mut located = marks.locate(&template.render(&whole, generation_prompt)?);
    if located.text != text {
        // The template trims: let the marks hug the words.
        let trimmed = marks.enclose(turns, |answer| {
            let start = answer.len() - answer.trim_start().len();
            (start, answer.trim_end().len().max(start))
        });
        located = marks.locate(&template.render(&trimmed, generation_prompt)?);
    }
    if located.text != text {
        let detail = "an answer does not stand in the rendering as it was given".to_owned();
        return Err(ProcessorError::AlteredAnswer { detail });
    }
    check_answers(turns, &located)?;
    let spans = located.spans.into_iter().map(|span| include_end_of_turn(tokenizer, &text, span));
    Ok(Rendered { assistant_spans: spans.collect::<Result<_, _>>()?, text })
}

/// Every answer must stand there once, in order, word for word.
fn check_answers(turns: &[Turn], located: &Located) -> Result<(), ProcessorError> {
    let answers: Vec<&str> =
        turns.iter().filter(|turn| turn.role == Role::Assistant).map(|turn| turn.text.as_str()).collect();
    if located.spans.len() != answers.len() {
        let detail = format!("expected {} answers in the rendering, found {}", answers.len(), located.spans.len());
        return Err(ProcessorError::AlteredAnswer { detail });
    }
    for (answer, span) in answers.into_iter().zip(&located.spans) {
        let found = &located.text[span.clone()];
        if found != answer && found != answer.trim() {
            let detail = format!("expected `{answer}`, found `{found}`");
            return Err(ProcessorError::AlteredAnswer { detail });
        }
    }
    Ok(())
}

/// The id of the token that ends the first assistant turn of `rendered`.
pub(crate) fn end_of_turn_id(tokenizer: &TextTokenizer, rendered: &Rendered) -> Option<u32> {
    let span = rendered.assistant_spans.first()?;
    let text = &rendered.text[span.clone()];
    let starts = text.char_indices().map(|(at, _)| at);
    let ends_there = |at: usize| {
        tokenizer.added_token_at_start(&text[at..]).filter(|(length, _)| at + length == text.len()).map(|(_, id)| id)
    };
    starts.rev().find_map(ends_there)
}

/// Stretches the span over the added token that follows the answer, and over blanks between them, if any.
fn include_end_of_turn(
    tokenizer: &TextTokenizer,
    text: &str,
    span: Range<usize>,
) -> Result<Range<usize>, ProcessorError> {
    let tail = &text[span.end..];
    let blanks = tail.len() - tail.trim_start().len();
    match tokenizer.added_token_at_start(&tail[blanks..]) {
        Some((length, _)) => Ok(span.start..span.end + blanks + length),
        None => Err(ProcessorError::NoEndOfTurn { found: tail.chars().take(20).collect() }),
    }
}

struct Marks {
    open: char,
    close: char,
}

struct Located {
    text: String,
    spans: Vec<Range<usize>>,
}

impl Marks {
    fn absent_from(text: &str) -> Self {
        let mut free = MARKS.filter_map(char::from_u32).filter(|mark| !text.contains(*mark));
        let mut next = || free.next().expect("a text that holds all 2,048 private-use marks is not a dialogue");
        Self { open: next(), close: next() }
    }

    /// The turns with marks set into each answer at the two byte positions that `bounds` gives.
    fn enclose(&self, turns: &[Turn], bounds: impl Fn(&str) -> (usize, usize)) -> Vec<Turn> {
        let enclosed = |turn: &Turn| match turn.role {
            Role::Assistant => {
                let (start, end) = bounds(&turn.text);
                let (before, core, after) = (&turn.text[..start], &turn.text[start..end], &turn.text[end..]);
                Turn::assistant(format!("{before}{}{core}{}{after}", self.open, self.close))
            }
            Role::System | Role::User => turn.clone(),
        };
        turns.iter().map(enclosed).collect()
    }

    /// The text without marks, and where they enclosed it.
    fn locate(&self, marked: &str) -> Located {
        let mut located = Located { text: String::with_capacity(marked.len()), spans: Vec::new() };
        let mut start = None;
        for letter in marked.chars() {
            let at = located.text.len();
            if letter == self.open {
                start = Some(at);
            } else if letter == self.close {
                located.spans.extend(start.take().map(|start| start..at));
            } else {
                located.text.push(letter);
            }
        }
        located
    }
}
