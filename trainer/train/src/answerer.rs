//! Questions to a model at hand, with the template and the pixels of training.

use std::time::Instant;

use candle_core::Tensor;
use serde::Serialize;
use vela_models::{GenerateOptions, Prompt, Vlm};
use vela_processor::Processor;
use vela_types::{IMAGE_MARK, ImageRef, ImageTensor, Turn};

use crate::device_batch::PixelTable;
use crate::error::TrainError;

/// One question about zero or more images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The images, in the order of their marks.
    pub images: Vec<ImageRef>,
    /// The dialogue so far; the last turn is the user's.
    pub turns: Vec<Turn>,
}

impl Question {
    /// A question in one turn. A text without `<image>` marks gets one per image in front, each on its own line, as
    /// LLaVA's data has them.
    pub fn new(images: Vec<ImageRef>, text: &str) -> Self {
        let marks = match text.contains(IMAGE_MARK) {
            true => String::new(),
            false => format!("{IMAGE_MARK}\n").repeat(images.len()),
        };
        Self { images, turns: vec![Turn::user(format!("{marks}{text}"))] }
    }
}

impl Question {
    /// Refuses a question without words, and one whose marks and images differ in number.
    fn check(&self) -> Result<(), TrainError> {
        let refuse = |expected: &str, found: String| Err(TrainError::Asked { expected: expected.to_owned(), found });
        let marks: usize = self.turns.iter().map(|turn| turn.text.matches(IMAGE_MARK).count()).sum();
        let last = self.turns.last().map_or("", |turn| turn.text.as_str());
        match () {
            () if last.replace(IMAGE_MARK, "").trim().is_empty() => refuse("some text", "none".to_owned()),
            () if marks != self.images.len() => {
                let found = format!("{marks} marks and {} images", self.images.len());
                refuse(&format!("one `{IMAGE_MARK}` mark per image, or no mark at all"), found)
            }
            () => Ok(()),
        }
    }
}

/// What the model said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The text, without special tokens.
    pub answer: String,
    /// Tokens generated.
    pub tokens: usize,
    /// Tokens generated per second, image and prompt included in the time; of the whole batch for `answer_many`.
    pub tokens_per_second: f64,
}

/// Token ids and u8 pixels of a question, before the tower: what training would have made of it.
#[derive(Clone, Debug)]
pub struct ProcessedQuestion {
    /// Ids with the generation prompt, one image token per image.
    pub input_ids: Vec<u32>,
    /// The images, resized and cropped.
    pub images: Vec<ImageTensor>,
}

/// What it takes to answer.
pub(crate) struct Answerer<'a> {
    pub(crate) processor: &'a Processor,
    pub(crate) model: &'a Vlm,
    pub(crate) pixels: &'a PixelTable,
}

impl Answerer<'_> {
    /// The greedy answers to several questions, in their order; each equals the answer to it alone.
    pub(crate) fn answer_many(&self, questions: &[Question], max_new_tokens: usize) -> Result<Vec<Answer>, TrainError> {
        let started = Instant::now();
        let processed: Vec<ProcessedQuestion> =
            questions.iter().map(|question| self.process(question)).collect::<Result<_, _>>()?;
        let pixels: Vec<Option<Tensor>> =
            processed.iter().map(|question| self.normalise(&question.images)).collect::<Result<_, _>>()?;
        let prompts = processed.iter().zip(&pixels);
        let prompts: Vec<Prompt<'_>> =
            prompts.map(|(question, pixels)| Prompt { ids: &question.input_ids, pixels: pixels.as_ref() }).collect();
        let stop_ids = self.processor.stop_ids().to_vec();
        let options = GenerateOptions { max_new_tokens, stop_ids, ..GenerateOptions::default() };
        let answers = self.model.generate_batch(&prompts, &options)?;
        let num_tokens: usize = answers.iter().map(Vec::len).sum();
        let tokens_per_second = num_tokens as f64 / started.elapsed().as_secs_f64().max(1e-9);
        answers.iter().map(|ids| self.answer(ids, tokens_per_second)).collect()
    }

    /// A question as training sees it: same template, same tokenizer, same resize and crop.
    pub(crate) fn process(&self, question: &Question) -> Result<ProcessedQuestion, TrainError> {
        question.check()?;
        let load = |image| self.processor.load_image(image).map_err(TrainError::Question);
        let input_ids = self.processor.encode_prompt(&question.turns).map_err(TrainError::Question)?;
        let num_tokens = input_ids.len() + question.images.len() * (self.model.image_tokens() - 1);
        let positions = self.model.config().language.max_positions;
        if num_tokens >= positions {
            let expected = format!("fewer than the model's {positions} positions, images included");
            return Err(TrainError::Asked { expected, found: format!("{num_tokens} tokens") });
        }
        Ok(ProcessedQuestion { input_ids, images: question.images.iter().map(load).collect::<Result<_, _>>()? })
    }

    fn normalise(&self, images: &[ImageTensor]) -> Result<Option<Tensor>, TrainError> {
        let pixels = || self.pixels.apply_to(images, self.model.device());
        (!images.is_empty()).then(pixels).transpose()
    }

    fn answer(&self, ids: &[u32], tokens_per_second: f64) -> Result<Answer, TrainError> {
        let text = self.processor.decode(ids, true).map_err(TrainError::Question)?;
        Ok(Answer { answer: text.trim().to_owned(), tokens: ids.len(), tokens_per_second })
    }
}
