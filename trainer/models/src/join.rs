//! One LLaVA folder from a published tower and a published language model.

use std::path::Path;

use candle_core::{Device, Tensor};

use crate::config::ProjectorPreset;
use crate::projector::PROJECTOR_PREFIX;
use crate::vlm::specs;
use crate::weights::{
    Files, Fresh, HEAD_NAME, Layout, Origin, Piece, WEIGHTS_FILE, WeightDtype, check_stop, is_embedding, made,
    shared_dtype, until, write_tensors,
};
use crate::{ModelError, VlmConfig};

/// New embedding rows come in multiples of this, as `transformers`' own conversions make them.
const ROWS_TOGETHER: usize = 64;

/// What is joined, and how.
#[derive(Clone, Debug)]
pub struct Join<'a> {
    /// A folder with a tower, or with a whole CLIP, Chinese-CLIP or SigLIP model.
    pub vision: &'a Path,
    /// A folder with a language model.
    pub language: &'a Path,
    /// The projector, which starts fresh.
    pub projector: ProjectorPreset,
    /// Hidden state that becomes the image features, counted as Python does.
    pub feature_layer: i64,
    /// The features are the last state after the tower's last norm.
    pub feature_norm: bool,
    /// The token that stands for an image.
    pub image_token_id: u32,
    /// Ids of the tokenizer; the tables of the language model grow to hold them and the image token.
    pub num_ids: u32,
    /// Seed of the projector.
    pub seed: u64,
    /// Element type of what is written; each tensor's own by default, f32 for the projector.
    pub dtype: Option<WeightDtype>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The model.
    pub config: VlmConfig,
    /// Rows that the tables of the language model got, each the mean of the rows before.
    pub rows_added: usize,
}

impl Join<'_> {
    /// Writes `config.json` and `model.safetensors` into `output`, an existing folder. The files are mapped and copied
    /// tensor by tensor; once `stopped` gives true, the writing is given up with [`ModelError::Stopped`].
    ///
    /// Errors: those of [`VlmConfig::join`]; tensors that are missing, unexpected, doubled or misshapen, all listed.
    pub fn write(&self, output: &Path, stopped: &dyn Fn() -> bool) -> Result<Joined, ModelError> {
        let (source, config) = self.configs()?;
        let rows_added = config.language.vocab_size - source.language.vocab_size;
        let folders = [(Layout::Vision, self.vision), (Layout::Language, self.language)];
        let files = Files::open(&folders)?;
        let fresh = Fresh { names: &|name| name.starts_with(PROJECTOR_PREFIX), seed: self.seed };
        let specs = specs(&source);
        let mut tensors = Vec::new();
        for (name, origin) in files.resolve(&specs, fresh)? {
            let tensor = match origin {
                Origin::Fresh => {
                    let spec = &specs[&name];
                    let values = spec.init.draw(self.seed, &name, spec.shape.iter().product());
                    made(Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu)?, self.dtype)
                }
                Origin::File(view) => {
                    let grows = is_embedding(&name) || name == HEAD_NAME;
                    Piece::whole(view).grown(if grows { rows_added } else { 0 }).outgoing(self.dtype)
                }
            };
            tensors.push((name, tensor));
        }
        config.save_as(output, shared_dtype(&tensors))?;
        write_tensors(until(tensors, stopped), &output.join(WEIGHTS_FILE))?;
        check_stop(stopped, output)?;
        Ok(Joined { config, rows_added })
    }

    /// The model with the language model's own rows, and with those that the tokenizer needs.
    fn configs(&self) -> Result<(VlmConfig, VlmConfig), ModelError> {
        let mut source = VlmConfig::join_unchecked(self.vision, self.language, &self.projector, self.image_token_id)?;
        source.set_features(self.feature_layer, self.feature_norm)?;
        let rows = source.language.vocab_size;
        let needed = self.num_ids.max(self.image_token_id + 1) as usize;
        let mut config = source.clone();
        config.language.vocab_size = if needed > rows { needed.next_multiple_of(ROWS_TOGETHER) } else { rows };
        Ok((source, config.check()?))
    }
}
