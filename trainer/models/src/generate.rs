//! Greedy generation with a key-value cache.
//!
//! Prompts of equal length run together, so no row needs padding and a row's answer does not depend on its company.
//!
//! Shape suffixes: B rows, T columns, V vocabulary.
#![expect(non_snake_case, reason = "shape suffixes")]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use vela_kernels::on_workers;

use crate::{KvCache, ModelError, Vlm};

/// When generation ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens that end the answer; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// Most prompts that run together in [`Vlm::generate_batch`]; bounds the memory.
    pub max_rows: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 256, stop_ids: Vec::new(), max_rows: 32 }
    }
}

/// A question to answer.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Token ids. An image token stands for a whole image, or is already repeated once per feature.
    pub ids: &'a [u32],
    /// Normalised pixels of its images in order, `[N, C, H, W]`.
    pub pixels: Option<&'a Tensor>,
}

/// A prompt with image tokens repeated, and the columns they are in.
struct Expanded<'a> {
    ids: Vec<u32>,
    image_columns: Vec<u32>,
    pixels: Option<&'a Tensor>,
}

impl Vlm {
    /// The greedy answer to a prompt, without the stop token.
    ///
    /// Errors: image tokens that are neither one per image nor one per feature; a prompt that leaves no position free.
    pub fn generate(
        &self,
        prompt_ids: &[u32],
        pixels: Option<&Tensor>,
        options: &GenerateOptions,
    ) -> Result<Vec<u32>, ModelError> {
        let mut answers = self.generate_batch(&[Prompt { ids: prompt_ids, pixels }], options)?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// The greedy answers to several prompts, in their order; each is what [`Vlm::generate`] gives for it alone.
    pub fn generate_batch(
        &self,
        prompts: &[Prompt<'_>],
        options: &GenerateOptions,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        on_workers(|| self.generate_here(prompts, options))
    }

    fn generate_here(&self, prompts: &[Prompt<'_>], options: &GenerateOptions) -> Result<Vec<Vec<u32>>, ModelError> {
        let mut groups: BTreeMap<usize, Vec<(usize, Expanded<'_>)>> = BTreeMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let expanded = self.expand(prompt)?;
            groups.entry(expanded.ids.len()).or_default().push((index, expanded));
        }
        let mut answers = vec![Vec::new(); prompts.len()];
        for group in groups.values() {
            for rows in group.chunks(options.max_rows.max(1)) {
                let group_answers = self.generate_equal(rows, options)?;
                rows.iter().zip(group_answers).for_each(|((index, _), answer)| answers[*index] = answer);
            }
        }
        Ok(answers)
    }

    /// Repeats the image token of each image once per feature.
    fn expand<'a>(&self, prompt: &Prompt<'a>) -> Result<Expanded<'a>, ModelError> {
        let num_images = prompt.pixels.map_or(Ok(0), |pixels| pixels.dim(0))?;
        let (image_token, per_image) = (self.config().image_token_id, self.image_tokens());
        let num_marks = prompt.ids.iter().filter(|&&id| id == image_token).count();
        let repeat = if num_marks == num_images * per_image {
            1
        } else if num_marks == num_images {
            per_image
        } else {
            let expected = format!("{num_images}, one per image, or {}, one per feature", num_images * per_image);
            return Err(ModelError::input("image tokens of the prompt", expected, num_marks));
        };
        let times = |id: u32| if id == image_token { repeat } else { 1 };
        let ids: Vec<u32> = prompt.ids.iter().flat_map(|&id| std::iter::repeat_n(id, times(id))).collect();
        if ids.is_empty() {
            return Err(ModelError::input("prompt", "at least one token", "none"));
        }
        let image_columns =
            (0u32..).zip(&ids).filter(|(_, id)| **id == image_token).map(|(column, _)| column).collect();
        Ok(Expanded { ids, image_columns, pixels: prompt.pixels })
    }

    /// Answers to prompts of one length, run together.
    fn generate_equal(
        &self,
        prompts: &[(usize, Expanded<'_>)],
        options: &GenerateOptions,
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let max_new = options.max_new_tokens.min(self.free_positions(prompts)?);
        let mut cache = KvCache::new();
        let mut answers = vec![Vec::new(); prompts.len()];
        // Rows still running: their index in `prompts`.
        let mut running: Vec<usize> = (0..prompts.len()).collect();
        let mut x_BTD = self.embed_prompts(prompts)?;
        for step in 0..max_new {
            let ids = self.next_ids(&x_BTD, &mut cache)?;
            let kept: Vec<u32> =
                (0u32..).zip(&ids).filter(|(_, id)| !options.stop_ids.contains(id)).map(|(row, _)| row).collect();
            kept.iter().for_each(|&row| answers[running[row as usize]].push(ids[row as usize]));
            if kept.is_empty() || step + 1 == max_new {
                break;
            }
            if kept.len() < running.len() {
                running = kept.iter().map(|&row| running[row as usize]).collect();
                cache.select_rows(&Tensor::new(kept.as_slice(), self.device())?)?;
            }
            let kept_ids: Vec<u32> = kept.iter().map(|&row| ids[row as usize]).collect();
            x_BTD = self.fixed().language.embed(&column(kept_ids, self.device())?)?;
        }
        Ok(answers)
    }

    /// Positions left for an answer.
    fn free_positions(&self, prompts: &[(usize, Expanded<'_>)]) -> Result<usize, ModelError> {
        let length = prompts.first().map_or(0, |(_, prompt)| prompt.ids.len());
        let limit = self.config().language.max_positions;
        match limit.checked_sub(length) {
            Some(free) if free > 0 => Ok(free),
            _ => Err(ModelError::input("prompt", format!("fewer than {limit} tokens"), length)),
        }
    }

    fn embed_prompts(&self, prompts: &[(usize, Expanded<'_>)]) -> Result<Tensor, ModelError> {
        let length = prompts.first().map_or(0, |(_, prompt)| prompt.ids.len());
        let ids: Vec<u32> = prompts.iter().flat_map(|(_, prompt)| prompt.ids.iter().copied()).collect();
        let ids_BT = Tensor::from_vec(ids, (prompts.len(), length), self.device())?;
        let rows = prompts.iter().enumerate().flat_map(|(row, (_, prompt))| {
            prompt.image_columns.iter().map(move |column| (row * length) as u32 + column)
        });
        let pixels: Vec<&Tensor> = prompts.iter().filter_map(|(_, prompt)| prompt.pixels).collect();
        let pixels = if pixels.is_empty() { None } else { Some(Tensor::cat(&pixels, 0)?) };
        self.fixed().merge(&ids_BT, pixels.as_ref(), &rows.collect::<Vec<_>>())
    }

    /// The most likely next token of each row after `x_BTD`, which joins the cache. Ties go to the lowest id.
    fn next_ids(&self, x_BTD: &Tensor, cache: &mut KvCache) -> Result<Vec<u32>, ModelError> {
        let (rows, columns, _) = x_BTD.dims3()?;
        let start = cache.len() as u32;
        let positions: Vec<u32> = (0..rows).flat_map(|_| start..start + columns as u32).collect();
        let positions_BT = Tensor::from_vec(positions, (rows, columns), self.device())?;
        let hidden_BTD = self.fixed().extend(x_BTD, &positions_BT, cache)?;
        let last_BD = hidden_BTD.narrow(1, columns - 1, 1)?.squeeze(1)?.contiguous()?;
        Ok(self.fixed().language.head(&last_BD)?.argmax(1)?.to_vec1()?)
    }
}

/// One new token per row, `[B, 1]`.
fn column(ids: Vec<u32>, device: &Device) -> Result<Tensor, ModelError> {
    let rows = ids.len();
    Ok(Tensor::from_vec(ids, (rows, 1), device)?)
}
