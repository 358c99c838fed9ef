//! Turns read back from the tokens of a record, by the texts that the processor's template puts around them.

use vela_processor::Processor;
use vela_types::{IGNORE_LABEL, Record, Role, Turn};

use crate::PrepareError;

/// What stands before, between and after turns in a rendered dialogue.
pub(super) struct Frames {
    /// Before the first user turn of a dialogue without a system turn.
    opening: String,
    /// Around a system turn.
    system: Option<[String; 2]>,
    /// From a user turn to the answer.
    to_answer: String,
    /// From an answer, its end-of-turn token excluded, to the next user turn.
    to_question: String,
    /// From the last answer, its end-of-turn token excluded, to the end.
    closing: String,
}

/// Texts that no template alters and that stand once in what it renders.
const PROBES: [&str; 4] = ["probe-one", "probe-two", "probe-three", "probe-four"];

impl Frames {
    /// Renders probes through the template and keeps what stands around them.
    pub(super) fn of(processor: &Processor) -> Result<Self, PrepareError> {
        let [one, two, three, four] = PROBES;
        let plain = [Turn::user(one), Turn::assistant(two), Turn::user(three), Turn::assistant(four)];
        let text = processor.render(&plain, false)?.text;
        let [opening, to_answer, to_question, _, closing] = split(&text, PROBES);
        let with_system = [Turn::system(one), Turn::user(two), Turn::assistant(three)];
        // Some templates have no system turn; such dialogues have none to show.
        let system = processor.render(&with_system, false).ok().map(|rendered| {
            let [before, after, ..] = split(&rendered.text, [one, two, three, four]);
            [before, after]
        });
        let end = processor.decode(&[processor.summary().end_of_turn_id], false)?;
        let without_end = |text: String| text.strip_prefix(&end).map(str::to_owned).unwrap_or(text);
        let (to_question, closing) = (without_end(to_question), without_end(closing));
        Ok(Self { opening, system, to_answer, to_question, closing })
    }

    /// The turns of a record. What the frames do not explain is given as a system turn, so that nothing is hidden.
    pub(super) fn turns(&self, record: &Record, processor: &Processor) -> Result<Vec<Turn>, PrepareError> {
        let mut turns = Vec::new();
        for (at, (is_answer, ids)) in runs(record).into_iter().enumerate() {
            if is_answer {
                turns.push(Turn::assistant(processor.decode(ids, true)?.trim()));
                continue;
            }
            let text = processor.decode(ids, false)?;
            let frame = if at == 0 { &self.opening } else { &self.to_question };
            match text.strip_suffix(&self.to_answer) {
                Some(text) => self.push_question(&mut turns, text, frame, at == 0),
                None if at > 0 && text.trim() == self.closing.trim() => {}
                None if text.trim().is_empty() => {}
                None => turns.push(Turn::system(text.trim())),
            }
        }
        Ok(turns)
    }

    fn push_question(&self, turns: &mut Vec<Turn>, text: &str, frame: &str, is_first: bool) {
        if let Some(question) = text.strip_prefix(frame) {
            turns.push(Turn::user(question.trim()));
            return;
        }
        let with_system = self.system.as_ref().filter(|_| is_first).and_then(|[before, after]| {
            text.strip_prefix(before.as_str()).and_then(|rest| rest.split_once(after.as_str()))
        });
        match with_system {
            Some((system, question)) => turns.extend([Turn::system(system.trim()), Turn::user(question.trim())]),
            None => turns.push(Turn { role: Role::System, text: text.trim().to_owned() }),
        }
    }
}

/// What stands before, between and after `marks`; empty from the first that is missing.
fn split<const N: usize>(text: &str, marks: [&str; N]) -> [String; 5] {
    let mut parts: [String; 5] = Default::default();
    let mut rest = text;
    for (part, mark) in parts.iter_mut().zip(marks) {
        let Some((before, after)) = rest.split_once(mark) else { return parts };
        *part = before.to_owned();
        rest = after;
    }
    parts[N] = rest.to_owned();
    parts
}

/// Runs of tokens that are learned or not, in order.
fn runs(record: &Record) -> Vec<(bool, &[u32])> {
    let is_learned = |label: &i32| *label != IGNORE_LABEL;
    let mut runs = Vec::new();
    let mut start = 0;
    for run in record.labels.chunk_by(|a, b| is_learned(a) == is_learned(b)) {
        runs.push((is_learned(&run[0]), &record.input_ids[start..start + run.len()]));
        start += run.len();
    }
    runs
}

#[cfg(test)]
mod tests {
    use vela_processor::{ProcessorOptions, Tokens};
    use vela_types::Language;

    use super::*;
    use crate::{DemoDataConfig, write_demo_data};

    #[test]
    fn what_the_template_does_not_explain_is_shown_wherever_it_stands() {
        let folder = tempfile::tempdir().expect("temp folder");
        let demo = DemoDataConfig { num_train: 2, num_heldout: 1, ..DemoDataConfig::new(folder.path().join("demo")) };
        let demo = write_demo_data(&demo).expect("demo data");
        let processor = Processor::load(&demo.processor, &ProcessorOptions::default()).expect("processor");
        let frames = Frames::of(&processor).expect("a template");
        let turns = [
            Turn::user("What is red?"),
            Turn::assistant("the circle"),
            Turn::user("And blue?"),
            Turn::assistant("none"),
        ];
        let tokens = processor.encode_dialogue(&turns).expect("encoded");
        let shown = |more: &str| {
            let Tokens { mut input_ids, mut labels } = tokens.clone();
            let more = processor.encode_text(more).expect("encoded");
            labels.extend(more.iter().map(|_| IGNORE_LABEL));
            input_ids.extend(more);
            let (id, source, language, images) = ("a/b/1".to_owned(), "a".to_owned(), Language::En, vec![]);
            frames.turns(&Record { id, source, language, input_ids, labels, images }, &processor).expect("decoded")
        };
        assert_eq!(shown(""), turns);
        assert_eq!(shown(" \n"), turns);
        let with_rest = shown("and which is green?");
        assert_eq!((&with_rest[..4], with_rest.len()), (&turns[..], 5));
        assert!(with_rest[4].role == Role::System && with_rest[4].text.contains("which is green?"), "{with_rest:?}");
    }

    #[test]
    fn a_rendering_is_split_at_its_probes() {
        let text = "<s>probe-one</s>\n<a>probe-two</a>";
        assert_eq!(split(text, ["probe-one", "probe-two"]), ["<s>", "</s>\n<a>", "</a>", "", ""].map(str::to_owned));
        assert_eq!(split(text, ["probe-one", "no"]), ["<s>", "", "", "", ""].map(str::to_owned));
    }
}
