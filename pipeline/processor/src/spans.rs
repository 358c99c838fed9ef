//! Where the assistant speaks within a rendering, and which text must not turn into special tokens.
//!
//! Each answer is rendered between two marks that stand in no text; the marks tell where it landed. Without them the
//! rendering must be the plain one, byte for byte: a template that changes an answer (other than trimming white space
//! around it) is refused, because no label could be trusted.
//!
//! What a turn says is text, whatever it looks like. A special token's text within a turn is rendered behind a
//! stand-in, one per token, and comes back as a span that is encoded as plain text; only the template writes special
//! tokens, and a user turn's `<image>` marks.

use std::borrow::Cow;
use std::ops::Range;

use vela_types::{Role, Turn};

use crate::builtin::EndOfTurn;
use crate::template::ChatTemplate;
use crate::tokenizer::TextTokenizer;
use crate::{ProcessorError, Rendered};

/// Private-use characters, of which a dialogue's signs are chosen so that neither its text nor the template has them.
const SIGNS: Range<u32> = 0x0010_F000..0x0010_FFFE;
/// The first byte of each sign in UTF-8: text without it holds no sign.
const SIGN_LEAD: u8 = 0xF4;

/// Renders `turns` and finds the assistant's spans, each up to and including its end-of-turn token.
pub(crate) fn render(
    template: &ChatTemplate,
    tokenizer: &TextTokenizer,
    turns: &[Turn],
    generation_prompt: bool,
) -> Result<Rendered, ProcessorError> {
    let mut signs = Signs::absent_from(template, turns);
    let turns = signs.shield(tokenizer, turns);
    let cut = signs.cut.to_string();
    let layout = |turns: &[Turn]| template.render(turns, generation_prompt, &cut).map(|text| signs.read(&text));
    let plain = layout(&turns)?;
    let mut located = layout(&signs.enclose(&turns, |answer| (0, answer.len())))?;
    if located.text != plain.text {
        // The template trims: let the marks hug the words.
        located = layout(&signs.enclose(&turns, |answer| {
            let start = answer.len() - answer.trim_start().len();
            (start, answer.trim_end().len().max(start))
        }))?;
    }
    if located.text != plain.text {
        let detail = "an answer does not stand in the rendering as it was given".to_owned();
        return Err(ProcessorError::AlteredAnswer { detail });
    }
    check_answers(&turns, &located)?;
    for span in &mut located.answers {
        span.end += end_of_turn_length(template, tokenizer, &located.text[span.end..])?;
        let lead = template.answer_lead();
        span.start -= if located.text[..span.start].ends_with(lead) { lead.len() } else { 0 };
    }
    Ok(signs.unshield(located))
}

/// Renders `turns` up to where the assistant answers next.
pub(crate) fn render_prompt(
    template: &ChatTemplate,
    tokenizer: &TextTokenizer,
    turns: &[Turn],
) -> Result<Rendered, ProcessorError> {
    let mut signs = Signs::absent_from(template, turns);
    let turns = signs.shield(tokenizer, turns);
    let located = signs.read(&template.render(&turns, true, &signs.cut.to_string())?);
    Ok(signs.unshield(located))
}

/// Every answer must stand there once, in order, word for word.
fn check_answers(turns: &[Turn], located: &Located) -> Result<(), ProcessorError> {
    let answers: Vec<&str> =
        turns.iter().filter(|turn| turn.role == Role::Assistant).map(|turn| turn.text.as_str()).collect();
    if located.answers.len() != answers.len() {
        let detail = format!("expected {} answers in the rendering, found {}", answers.len(), located.answers.len());
        return Err(ProcessorError::AlteredAnswer { detail });
    }
    for (answer, span) in answers.into_iter().zip(&located.answers) {
        let found = &located.text[span.clone()];
        if found != answer && found != answer.trim() {
            let detail = format!("expected `{answer}`, found `{found}`");
            return Err(ProcessorError::AlteredAnswer { detail });
        }
    }
    Ok(())
}

/// Bytes from the end of an answer to the end of what closes its turn: blanks, if any, and an added token, or the
/// template's own closing text.
fn end_of_turn_length(template: &ChatTemplate, tokenizer: &TextTokenizer, tail: &str) -> Result<usize, ProcessorError> {
    let blanks = tail.len() - tail.trim_start().len();
    let length = match template.end_of_turn() {
        EndOfTurn::AddedToken => tokenizer.added_token_at_start(&tail[blanks..]).map(|(length, _)| blanks + length),
        EndOfTurn::Text(text) => tail.starts_with(text).then_some(text.len()),
    };
    length.ok_or_else(|| ProcessorError::NoEndOfTurn { found: tail.chars().take(20).collect() })
}

/// The ids of what closes the assistant turns of `rendered`, each once, in order of appearance.
pub(crate) fn end_of_turn_ids(
    template: &ChatTemplate,
    tokenizer: &TextTokenizer,
    rendered: &Rendered,
) -> Result<Vec<u32>, ProcessorError> {
    let mut ids = Vec::new();
    for span in &rendered.assistant_spans {
        let found = match template.end_of_turn() {
            EndOfTurn::AddedToken => added_token_at_end(tokenizer, &rendered.text[span.clone()]),
            EndOfTurn::Text(text) => tokenizer.encode_plain(text)?.last().copied(),
        };
        let id = found.ok_or_else(|| ProcessorError::NoEndOfTurn { found: rendered.text[span.clone()].to_owned() })?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn added_token_at_end(tokenizer: &TextTokenizer, text: &str) -> Option<u32> {
    let starts = text.char_indices().map(|(at, _)| at);
    let ends_there = |at: usize| {
        tokenizer.added_token_at_start(&text[at..]).filter(|(length, _)| at + length == text.len()).map(|(_, id)| id)
    };
    starts.rev().find_map(ends_there)
}

/// Characters with a meaning of their own in one dialogue's rendering.
struct Signs<'a> {
    open: char,
    close: char,
    cut: char,
    free: Box<dyn Iterator<Item = char> + 'a>,
    /// Stand-ins and the special tokens' text that they stand for.
    shields: Vec<(char, String)>,
}

/// A rendering without signs, and what they said. Positions are bytes of `text`.
struct Located {
    text: String,
    answers: Vec<Range<usize>>,
    cuts: Vec<usize>,
}

impl<'a> Signs<'a> {
    fn absent_from(template: &'a ChatTemplate, turns: &'a [Turn]) -> Self {
        let texts = || std::iter::once(template.source()).chain(turns.iter().map(|turn| turn.text.as_str()));
        let crowded = texts().any(|text| text.bytes().any(|byte| byte == SIGN_LEAD));
        let all = SIGNS.filter_map(char::from_u32);
        let mut free = all.filter(move |sign| !crowded || !texts().any(|text| text.contains(*sign)));
        let mut next =
            || free.next().expect("a text that holds all of some 4,000 private-use characters is no dialogue");
        let (open, close, cut) = (next(), next(), next());
        Self { open, close, cut, free: Box::new(free), shields: Vec::new() }
    }

    /// The turns with special tokens' text replaced by stand-ins.
    fn shield<'t>(&mut self, tokenizer: &TextTokenizer, turns: &'t [Turn]) -> Cow<'t, [Turn]> {
        let found = |turn: &Turn| tokenizer.special_spans(&turn.text, turn.role == Role::User).next().is_some();
        if !turns.iter().any(found) {
            return Cow::Borrowed(turns);
        }
        let shielded = |turn: &Turn| {
            let mut text = String::with_capacity(turn.text.len());
            let mut done = 0;
            for span in tokenizer.special_spans(&turn.text, turn.role == Role::User) {
                text.push_str(&turn.text[done..span.start]);
                text.push(self.stand_in(&turn.text[span.clone()]));
                done = span.end;
            }
            text.push_str(&turn.text[done..]);
            Turn { role: turn.role, text }
        };
        Cow::Owned(turns.iter().map(shielded).collect())
    }

    fn stand_in(&mut self, token: &str) -> char {
        if let Some((sign, _)) = self.shields.iter().find(|(_, shielded)| shielded == token) {
            return *sign;
        }
        let sign = self.free.next().expect("there are more private-use characters than special tokens in a dialogue");
        self.shields.push((sign, token.to_owned()));
        sign
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

    /// The text without marks and cuts, and where they stood. Stand-ins stay.
    fn read(&self, marked: &str) -> Located {
        let mut located = Located { text: String::with_capacity(marked.len()), answers: Vec::new(), cuts: Vec::new() };
        let mut start = None;
        let mut rest = marked;
        while let Some(at) = rest.bytes().position(|byte| byte == SIGN_LEAD) {
            located.text.push_str(&rest[..at]);
            let letter = rest[at..].chars().next().expect("a lead byte starts a character");
            rest = &rest[at + letter.len_utf8()..];
            let end = located.text.len();
            match letter {
                _ if letter == self.open => start = Some(end),
                _ if letter == self.close => located.answers.extend(start.take().map(|start| start..end)),
                _ if letter == self.cut => located.cuts.push(end),
                _ => located.text.push(letter),
            }
        }
        located.text.push_str(rest);
        located
    }

    /// The rendering with special tokens' text back in the place of stand-ins.
    fn unshield(&self, located: Located) -> Rendered {
        let Located { text, answers, cuts } = located;
        let mut rendered = Rendered { text, assistant_spans: answers, plain_spans: Vec::new(), cuts };
        if self.shields.is_empty() {
            return rendered;
        }
        let shielded = std::mem::take(&mut rendered.text);
        // Where the text after each stand-in starts: with stand-ins, without.
        let mut starts = vec![(0, 0)];
        for (at, letter) in shielded.char_indices() {
            let start = rendered.text.len();
            match self.shields.iter().find(|(sign, _)| *sign == letter) {
                None => rendered.text.push(letter),
                Some((sign, token)) => {
                    rendered.text.push_str(token);
                    rendered.plain_spans.push(start..rendered.text.len());
                    starts.push((at + sign.len_utf8(), rendered.text.len()));
                }
            }
        }
        let moved = |at: usize| {
            let (from, to) = starts[starts.partition_point(|(position, _)| *position <= at) - 1];
            to + (at - from)
        };
        rendered.assistant_spans.iter_mut().for_each(|span| *span = moved(span.start)..moved(span.end));
        rendered.cuts.iter_mut().for_each(|cut| *cut = moved(*cut));
        rendered
    }
}
