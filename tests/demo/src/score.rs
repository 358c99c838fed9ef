//! Exact match on held-out images, the same questions with shuffled images, and what guessing would score.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use vela_prepare::{HeldOutQuestion, QuestionKind};
use vela_train::{Chat, Question};
use vela_types::{ImageRef, Language, SeedStream};

use crate::stages::Stage;

/// Questions answered at once.
const BATCH: usize = 50;
/// Longer than any right answer.
const MAX_NEW_TOKENS: usize = 16;

/// A question with what the model said.
pub(crate) struct Answered {
    pub(crate) question: HeldOutQuestion,
    /// About the question's own image.
    pub(crate) said: String,
    /// About another question's image.
    pub(crate) said_shuffled: String,
}

/// Shares of right answers, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    pub(crate) questions: usize,
    pub(crate) exact_match: f64,
    pub(crate) exact_match_shuffled: f64,
    /// The best that one fixed answer per kind and language scores on these very questions.
    pub(crate) chance: f64,
}

/// Everything asked and scored.
pub(crate) struct Scores {
    pub(crate) answers: Vec<Answered>,
    /// The same questions after stage 1, with their own images.
    pub(crate) after_stage_1: f64,
}

/// Asks the last stage's model every question about its image and about another; the stage before only the former.
pub(crate) fn ask_all(stages: &[Stage], folder: &Path, questions: &[HeldOutQuestion], seed: u64) -> Result<Scores> {
    let [.., before, last] = stages else { anyhow::bail!("expected two stages to ask, found {}", stages.len()) };
    let own: Vec<&str> = questions.iter().map(|question| question.image.as_str()).collect();
    let shuffled = shuffle_images(questions, seed);
    let early = ask(&before.checkpoint, folder, questions, &own)?;
    let said = ask(&last.checkpoint, folder, questions, &own)?;
    let said_shuffled = ask(&last.checkpoint, folder, questions, &shuffled)?;
    let right = early.iter().zip(questions).filter(|(said, question)| **said == question.answer).count();
    let answers = questions.iter().cloned().zip(said).zip(said_shuffled);
    let answers = answers.map(|((question, said), said_shuffled)| Answered { question, said, said_shuffled });
    Ok(Scores { answers: answers.collect(), after_stage_1: right as f64 / questions.len().max(1) as f64 })
}

fn ask(checkpoint: &Path, folder: &Path, questions: &[HeldOutQuestion], images: &[&str]) -> Result<Vec<String>> {
    let chat = Chat::load(checkpoint)?;
    let with_image = |(question, image): (&HeldOutQuestion, &&str)| {
        let image = ImageRef::Path(folder.join(image).display().to_string());
        Question::new(vec![image], &question.question)
    };
    let asked: Vec<Question> = questions.iter().zip(images).map(with_image).collect();
    let mut said = Vec::with_capacity(asked.len());
    for batch in asked.chunks(BATCH) {
        let answers = chat.answer_many(batch, MAX_NEW_TOKENS).context("cannot answer held-out questions")?;
        said.extend(answers.into_iter().map(|answer| answer.answer));
    }
    Ok(said)
}

/// Another image for each question: within a language all images move on by one drawn distance, so none stays.
fn shuffle_images(questions: &[HeldOutQuestion], seed: u64) -> Vec<&str> {
    let mut images: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for question in questions {
        let known = images.entry(question.language.as_str()).or_default();
        if !known.contains(&question.image.as_str()) {
            known.push(&question.image);
        }
    }
    let moved = |question: &HeldOutQuestion| {
        let known = &images[question.language.as_str()];
        let distance = 1 + SeedStream::named(seed, "shuffled images", question.language.as_str())
            .below(known.len().saturating_sub(1).max(1) as u64) as usize;
        let at = known.iter().position(|image| *image == question.image).expect("every image was collected above");
        known[(at + distance) % known.len()]
    };
    questions.iter().map(moved).collect()
}

impl Scores {
    /// Over all questions.
    pub(crate) fn overall(&self) -> Score {
        self.of(|_| true)
    }

    /// Over the questions in one language.
    pub(crate) fn of_language(&self, language: Language) -> Score {
        self.of(|question| question.language == language)
    }

    /// Over one kind of question in one language.
    pub(crate) fn of_kind(&self, language: Language, kind: QuestionKind) -> Score {
        self.of(|question| question.language == language && question.kind == kind)
    }

    /// Kinds in the order of their first question.
    pub(crate) fn kinds(&self) -> Vec<QuestionKind> {
        let mut kinds: Vec<QuestionKind> = Vec::new();
        for answered in &self.answers {
            if !kinds.contains(&answered.question.kind) {
                kinds.push(answered.question.kind);
            }
        }
        kinds
    }

    fn of(&self, is_meant: impl Fn(&HeldOutQuestion) -> bool) -> Score {
        let meant: Vec<&Answered> = self.answers.iter().filter(|answered| is_meant(&answered.question)).collect();
        let share = |right: usize| right as f64 / meant.len().max(1) as f64;
        let right = |is_right: fn(&Answered) -> bool| meant.iter().filter(|answered| is_right(answered)).count();
        Score {
            questions: meant.len(),
            exact_match: share(right(|answered| answered.said == answered.question.answer)),
            exact_match_shuffled: share(right(|answered| answered.said_shuffled == answered.question.answer)),
            chance: share(best_guesses(&meant)),
        }
    }
}

/// Questions that the most frequent answer of their kind and language gets right.
fn best_guesses(answers: &[&Answered]) -> usize {
    let mut counts: BTreeMap<(&str, QuestionKind), BTreeMap<&str, usize>> = BTreeMap::new();
    for Answered { question, .. } in answers {
        let of_kind = counts.entry((question.language.as_str(), question.kind)).or_default();
        *of_kind.entry(question.answer.as_str()).or_default() += 1;
    }
    counts.values().filter_map(|of_kind| of_kind.values().max()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(language: Language, kind: QuestionKind, image: &str, answer: &str) -> HeldOutQuestion {
        let (question, answer) = ("?".to_owned(), answer.to_owned());
        HeldOutQuestion { image: image.to_owned(), language, question, answer, kind, num_choices: 3 }
    }

    fn answered(question: HeldOutQuestion, said: &str, said_shuffled: &str) -> Answered {
        Answered { question, said: said.to_owned(), said_shuffled: said_shuffled.to_owned() }
    }

    #[test]
    fn scores_count_equal_texts_and_chance_the_commonest_answer_per_kind_and_language() {
        let (zh, en) = (Language::Zh, Language::En);
        let answers = vec![
            answered(question(zh, QuestionKind::Count, "a", "两个"), "两个", "三个"),
            answered(question(zh, QuestionKind::Count, "b", "两个"), "两个。", "两个"),
            answered(question(zh, QuestionKind::Color, "a", "红色"), "红色", "蓝色"),
            answered(question(en, QuestionKind::Color, "c", "red"), "red", "red"),
            answered(question(en, QuestionKind::Color, "d", "blue"), "red", "red"),
            answered(question(en, QuestionKind::Color, "e", "green"), "green", "red"),
        ];
        let scores = Scores { answers, after_stage_1: 0.0 };
        let overall =
            Score { questions: 6, exact_match: 4.0 / 6.0, exact_match_shuffled: 2.0 / 6.0, chance: 4.0 / 6.0 };
        assert_eq!(scores.overall(), overall);
        let english = scores.of_language(en);
        assert_eq!((english.questions, english.chance), (3, 1.0 / 3.0));
        assert_eq!(scores.of_kind(zh, QuestionKind::Count).exact_match, 0.5);
        assert_eq!(scores.kinds(), [QuestionKind::Count, QuestionKind::Color]);
    }

    #[test]
    fn no_question_keeps_its_image_and_each_image_is_used_as_often_as_before() {
        let mut questions = Vec::new();
        for image in 0..7 {
            for language in [Language::Zh, Language::En] {
                let name = format!("{}-{image}", language.as_str());
                questions.push(question(language, QuestionKind::Count, &name, "x"));
                questions.push(question(language, QuestionKind::Where, &name, "y"));
            }
        }
        for seed in 0..20 {
            let shuffled = shuffle_images(&questions, seed);
            assert!(questions.iter().zip(&shuffled).all(|(question, image)| question.image != *image));
            let mut used: Vec<&str> = shuffled.clone();
            let mut own: Vec<&str> = questions.iter().map(|question| question.image.as_str()).collect();
            used.sort_unstable();
            own.sort_unstable();
            assert_eq!(used, own);
        }
    }
}
