//! Answers about images from a trained folder.

use std::path::Path;

use vela_models::Vlm;
use vela_processor::Processor;

use crate::answerer::{Answer, Answerer, ProcessedQuestion, Question};
use crate::data::check_model;
use crate::device_batch::PixelTable;
use crate::error::TrainError;
use crate::open::{open_frozen, open_processor};

/// A model with its processor, ready to answer.
pub struct Chat {
    processor: Processor,
    model: Vlm,
    pixels: PixelTable,
}

impl Chat {
    /// Opens a model folder as a checkpoint has it (weights, config and processor files), or the newest of a run folder.
    pub fn load(folder: &Path) -> Result<Self, TrainError> {
        let processor = open_processor(folder)?;
        let model = open_frozen(folder)?;
        check_model(model.config(), processor.summary())?;
        let pixels = PixelTable::new(&processor.summary().normalization);
        Ok(Self { processor, model, pixels })
    }

    /// The processor of the folder.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }

    /// The greedy answer to one question.
    pub fn answer(&self, question: &Question, max_new_tokens: usize) -> Result<Answer, TrainError> {
        let mut answers = self.answer_many(std::slice::from_ref(question), max_new_tokens)?;
        Ok(answers.pop().expect("one answer per question"))
    }

    /// The greedy answers to several questions, in their order; each equals the answer to it alone.
    pub fn answer_many(&self, questions: &[Question], max_new_tokens: usize) -> Result<Vec<Answer>, TrainError> {
        self.answerer().answer_many(questions, max_new_tokens)
    }

    /// A question as training sees it: same template, same tokenizer, same resize and crop.
    pub fn process(&self, question: &Question) -> Result<ProcessedQuestion, TrainError> {
        self.answerer().process(question)
    }

    fn answerer(&self) -> Answerer<'_> {
        Answerer { processor: &self.processor, model: &self.model, pixels: &self.pixels }
    }
}
