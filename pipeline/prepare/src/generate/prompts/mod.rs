//! What the model is told: for each kind a task and worked examples, all written for Vela.

mod complex;
mod conversation;
mod detail;

use vela_types::{Language, SeedStream};

use super::facts::{ImageFacts, LabelledBox};
use super::kind::GenerateKind;

/// Changes whenever a word below changes: dialogues of different versions are different data.
pub const PROMPT_VERSION: u32 = 1;

/// An image in words and the answer that is wanted for it.
pub(super) struct Example {
    captions: &'static [&'static str],
    boxes: &'static [(&'static str, [f64; 4])],
    /// The model's answer in the form that is asked of it.
    pub(super) answer: &'static str,
}

impl Example {
    /// The image as a record would give it.
    pub(super) fn facts(&self) -> ImageFacts {
        let object = |(category, corners): &(&str, [f64; 4])| LabelledBox {
            category: (*category).to_owned(),
            corners: *corners,
        };
        ImageFacts {
            id: "example".to_owned(),
            image: "example.jpg".to_owned(),
            captions: self.captions.iter().map(|caption| (*caption).to_owned()).collect(),
            boxes: self.boxes.iter().map(object).collect(),
        }
    }
}

/// What all kinds are told of their input and their manners.
const SEEING: &str = "You are looking at one photo. You know it from notes: sentences that different people wrote about it, \
one per line. Where the notes agree, that is what you see; where they contradict one another, stay silent about it.";

/// Added where boxes are shown.
const BOXES: &str = "After the sentences comes a list of objects, one per line, with the place of each in the photo: \
left, top, right and bottom edge as fractions of its width and height, from 0 at the upper left corner. Use it to count, and to \
tell what is left or right of, in front of, above or near what, and how large things are. Say so in everyday words; never write \
down a number that stands for an edge.";

/// How the result must sound.
const MANNERS: &str = "Speak of the photo as somebody who has it before their eyes. Never mention the notes, captions, \
bounding boxes or coordinates, and never say that you were given a text. State nothing that the notes do not support: if \
something cannot be known, leave it out.";

/// The grammar, for the kinds that use it.
const GRAMMAR: &str = "Write exactly this form and nothing around it, each question ending with a question mark:
Question:
<the question>
===
Answer:
<the answer>
===";

/// The system message for `kind` about captions in `language`.
pub(super) fn system_message(kind: GenerateKind, language: Language) -> String {
    let task = match kind {
        GenerateKind::Conversation => conversation::TASK,
        GenerateKind::Detail => detail::TASK,
        GenerateKind::Complex => complex::TASK,
    };
    let mut parts = vec![SEEING];
    parts.extend(kind.shows_boxes().then_some(BOXES));
    parts.extend([task, MANNERS]);
    parts.extend((kind != GenerateKind::Detail).then_some(GRAMMAR));
    parts.extend(match language {
        Language::Zh => {
            Some("Write every question and answer in Chinese; keep the words `Question:` and `Answer:` as they are.")
        }
        _ => None,
    });
    parts.join("\n\n")
}

/// The worked examples of `kind`.
pub(super) fn examples(kind: GenerateKind) -> &'static [Example] {
    match kind {
        GenerateKind::Conversation => &conversation::EXAMPLES,
        GenerateKind::Detail => &detail::EXAMPLES,
        GenerateKind::Complex => &complex::EXAMPLES,
    }
}

/// The question that a generated description answers, drawn by (`seed`, `id`).
pub(super) fn detail_question(seed: u64, id: &str, language: Language) -> &'static str {
    let questions: &[&str] = if language == Language::Zh { &detail::QUESTIONS_ZH } else { &detail::QUESTIONS_EN };
    SeedStream::named(seed, "detail question", id).choose(questions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::judge::{Reply, judge};

    const KINDS: [GenerateKind; 3] = [GenerateKind::Conversation, GenerateKind::Detail, GenerateKind::Complex];

    #[test]
    fn our_own_examples_pass_our_own_rules() {
        for kind in KINDS {
            assert!(examples(kind).len() >= 2);
            for example in examples(kind) {
                let reply = Reply { text: example.answer.to_owned(), finish_reason: Some("stop".to_owned()) };
                let judged = judge(kind, &example.facts(), &reply);
                assert!(judged.is_ok(), "{kind:?}: {judged:?}");
                let has_boxes = kind.context(&example.facts()).contains(": [");
                assert_eq!(has_boxes, kind.shows_boxes());
            }
        }
    }

    #[test]
    fn the_task_tells_of_boxes_and_grammar_only_where_they_are() {
        for kind in KINDS {
            let text = system_message(kind, Language::En);
            assert_eq!(text.contains("upper left corner"), kind.shows_boxes());
            assert_eq!(text.contains("==="), kind != GenerateKind::Detail);
            assert!(system_message(kind, Language::Zh).contains("in Chinese"));
        }
    }

    #[test]
    fn the_question_of_a_description_depends_on_seed_and_id_alone() {
        let drawn: Vec<&str> = (0..40).map(|id| detail_question(1, &id.to_string(), Language::En)).collect();
        assert_eq!(drawn[7], detail_question(1, "7", Language::En));
        assert!((1..40).any(|at| drawn[at] != drawn[0]));
        assert!((0..40).any(|id| detail_question(2, &id.to_string(), Language::En) != drawn[id]));
        assert!(detail::QUESTIONS_ZH.contains(&detail_question(1, "7", Language::Zh)));
    }
}
