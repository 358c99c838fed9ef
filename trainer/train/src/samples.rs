//! Fixed questions, answered now and then while a model learns.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vela_types::ImageRef;

use crate::answerer::{Answerer, Question};
use crate::error::TrainError;
use crate::recipe::{RawQuestion, RawSamples};
use crate::step_log::{StepLine, read_lines};

/// One line of `answers.jsonl`: what the model said after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleAnswers {
    /// Optimizer steps made; 0 before the first.
    pub step: u64,
    /// One for each question of the recipe, in its order.
    pub answers: Vec<SampleAnswer>,
}

/// A question of the recipe and what the model said to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleAnswer {
    /// The image files.
    pub images: Vec<String>,
    /// The question.
    pub question: String,
    /// The greedy answer.
    pub answer: String,
    /// Tokens of the answer.
    pub tokens: usize,
}

impl SampleAnswers {
    /// Whether the questions and their images are those of `other`.
    pub(crate) fn asks_as(&self, other: &Self) -> bool {
        let is_same = |(a, b): (&SampleAnswer, &SampleAnswer)| a.images == b.images && a.question == b.question;
        self.answers.len() == other.answers.len() && self.answers.iter().zip(&other.answers).all(is_same)
    }
}

impl StepLine for SampleAnswers {
    fn step(&self) -> u64 {
        self.step
    }
}

/// The lines of an `answers.jsonl` up to the first that is not whole; none if there is no file.
pub fn read_answers(path: &Path) -> Result<Vec<SampleAnswers>, TrainError> {
    read_lines(path)
}

/// Asks every question of the recipe.
pub(crate) fn answer_samples(
    samples: &RawSamples,
    answerer: &Answerer<'_>,
    step: u64,
) -> Result<SampleAnswers, TrainError> {
    let questions: Vec<Question> = samples.questions.iter().map(to_question).collect();
    let answers = answerer.answer_many(&questions, samples.max_new_tokens)?;
    let said = samples.questions.iter().zip(answers).map(|(asked, said)| SampleAnswer {
        images: asked.images.clone(),
        question: asked.question.clone(),
        answer: said.answer,
        tokens: said.tokens,
    });
    Ok(SampleAnswers { step, answers: said.collect() })
}

fn to_question(question: &RawQuestion) -> Question {
    Question::new(question.images.iter().cloned().map(ImageRef::Path).collect(), &question.question)
}
