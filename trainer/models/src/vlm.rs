//! The joined model: image features in the place of image tokens, then the language model.
//!
//! Shape suffixes: B rows, T columns, N = B * T, M image tokens of the batch, D language width, V vocabulary.
#![expect(non_snake_case, reason = "shape suffixes")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use vela_kernels::{self as kernels, AttentionMask};

use crate::language::{LANGUAGE_PREFIX, rope_table};
use crate::params::{ParamSpec, Specs};
use crate::projector::PROJECTOR_PREFIX;
use crate::vision::VISION_PREFIX;
use crate::weights::{self, Fresh, Layout, WEIGHTS_FILE};
use crate::{
    DropoutKeys, KvCache, LanguageModel, ModelBatch, ModelError, Params, Projector, Recompute, VisionTower, VlmConfig,
};

/// A vision-language model with its weights.
pub struct Vlm {
    config: VlmConfig,
    params: Params,
    /// Built on the variables: what is computed from them can be differentiated.
    trained: Modules,
    /// The same values without variables: nothing computed from them records a graph.
    fixed: Modules,
    device: Device,
}

/// The three components over one set of tensors.
pub(crate) struct Modules {
    pub(crate) tower: VisionTower,
    pub(crate) projector: Projector,
    pub(crate) language: LanguageModel,
}

impl Vlm {
    /// Opens a Hugging Face LLaVA folder. Parameters for which `trainable` holds become variables (if the loss
    /// depends on them), all others stay plain tensors.
    ///
    /// Errors: the config's ([`VlmConfig::load`]); unreadable or damaged files; tensors that are missing, unexpected,
    /// doubled or misshapen, all listed in one error.
    pub fn load(dir: &Path, trainable: &dyn Fn(&str) -> bool, device: &Device) -> Result<Self, ModelError> {
        Self::from_folders(VlmConfig::load(dir)?, &[(Layout::Joined, dir)], Fresh::NONE, trainable, device)
    }

    /// A model with fresh weights, each drawn from (seed, name).
    pub fn init(
        config: VlmConfig,
        seed: u64,
        trainable: &dyn Fn(&str) -> bool,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let params = Params::init(&specs(&config), seed, trainable, device)?;
        Self::build(config, params, device)
    }

    /// A model whose weights come from several folders (a published tower and a published language model, say, or a
    /// joined model) and, where `fresh` says so, from a seed.
    pub fn from_folders(
        config: VlmConfig,
        folders: &[(Layout, &Path)],
        fresh: Fresh<'_>,
        trainable: &dyn Fn(&str) -> bool,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let params = weights::load(&specs(&config), folders, fresh, trainable, device)?;
        Self::build(config, params, device)
    }

    fn build(config: VlmConfig, params: Params, device: &Device) -> Result<Self, ModelError> {
        let rope = rope_table(&config.language)?;
        let modules = |params: &Params| -> Result<Modules, ModelError> {
            Ok(Modules {
                tower: VisionTower::new(params, VISION_PREFIX, &config.vision, &config.features)?,
                projector: Projector::new(params, PROJECTOR_PREFIX, &config.projector)?,
                language: LanguageModel::new(params, LANGUAGE_PREFIX, &config.language, rope.clone())?,
            })
        };
        let (trained, fixed) = (modules(&params)?, modules(&params.detached())?);
        Ok(Self { config, params, trained, fixed, device: device.clone() })
    }

    /// Says what [`Vlm::loss`] holds of each block for the backward pass of a tape.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.trained.language.set_recompute(recompute);
        self.trained.tower.set_recompute(recompute);
    }

    /// What [`Vlm::set_recompute`] said.
    pub fn recompute(&self) -> Recompute {
        self.trained.language.recompute()
    }

    /// The checked config.
    pub fn config(&self) -> &VlmConfig {
        &self.config
    }

    /// The parameters, in name order.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The parameters, to overwrite values (resume).
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The vision tower; what its trainable parameters give can be differentiated, as for the next two.
    pub fn tower(&self) -> &VisionTower {
        &self.trained.tower
    }

    /// The projector.
    pub fn projector(&self) -> &Projector {
        &self.trained.projector
    }

    /// The language model.
    pub fn language(&self) -> &LanguageModel {
        &self.trained.language
    }

    /// Tokens per image.
    pub fn image_tokens(&self) -> usize {
        self.config.image_tokens()
    }

    /// Sum of the cross-entropies of all labelled tokens, an f32 scalar that can be differentiated. Divide by the
    /// global number of labels; [`ModelBatch::num_labels`] counts a batch's.
    pub fn loss(&self, batch: &ModelBatch) -> Result<Tensor, ModelError> {
        self.training_loss(batch, None)
    }

    /// [`Vlm::loss`] where adapters with a dropout leave some of their inputs out, chosen by `dropout`, whose words are the
    /// batch's tokens'.
    pub fn training_loss(&self, batch: &ModelBatch, dropout: Option<&DropoutKeys>) -> Result<Tensor, ModelError> {
        let hidden_BTD = self.trained.hidden(batch, dropout)?;
        self.trained.language.loss(&flat_rows(&hidden_BTD)?, &batch.shifted_labels()?)
    }

    /// Logits `[B, T, V]`, without a graph.
    pub fn logits(&self, batch: &ModelBatch) -> Result<Tensor, ModelError> {
        self.fixed.language.head(&self.fixed.hidden(batch, None)?)
    }

    /// Image features after projection, `[N, image tokens, D]`, of normalised pixels `[N, C, H, W]`, without a graph.
    pub fn image_features(&self, pixels_NCHW: &Tensor) -> Result<Tensor, ModelError> {
        self.fixed.image_features(pixels_NCHW)
    }

    /// Writes `config.json` and `model.safetensors` into `dir`, making it if need be. The caller who needs the folder
    /// to appear whole writes to a temporary one and renames it.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        fs::create_dir_all(dir).map_err(|source| ModelError::Write { path: dir.to_owned(), source })?;
        self.write_model_files(dir)
    }

    /// Writes `config.json` and `model.safetensors` into an existing folder.
    pub fn write_model_files(&self, dir: &Path) -> Result<(), ModelError> {
        self.config.save(dir)?;
        weights::save(&self.params, &dir.join(WEIGHTS_FILE))
    }

    pub(crate) fn fixed(&self) -> &Modules {
        &self.fixed
    }
}

impl Modules {
    fn hidden(&self, batch: &ModelBatch, dropout: Option<&DropoutKeys>) -> Result<Tensor, ModelError> {
        batch.check()?;
        let x_BTD = self.merge(&batch.ids_BT, batch.pixels_NCHW.as_ref(), &batch.image_rows)?;
        let mask = AttentionMask::Causal { documents_BT: Some(batch.documents_BT.clone()), offset: 0 };
        self.language.forward_dropping(&x_BTD, &batch.positions_BT, &mask, dropout)
    }

    /// Embeddings `[B, T, D]` of `ids_BT`, with features of `pixels` in the rows `image_rows`.
    pub(crate) fn merge(
        &self,
        ids_BT: &Tensor,
        pixels: Option<&Tensor>,
        image_rows: &[u32],
    ) -> Result<Tensor, ModelError> {
        let x_BTD = self.language.embed(ids_BT)?;
        let Some(pixels) = pixels else {
            return match image_rows {
                [] => Ok(x_BTD),
                rows => Err(ModelError::input("image rows", "none in a batch without pixels", rows.len())),
            };
        };
        let features_MD = flat_rows(&self.image_features(pixels)?)?;
        if features_MD.dim(0)? != image_rows.len() {
            let expected = format!("{} (images of the batch times tokens per image)", features_MD.dim(0)?);
            return Err(ModelError::input("image rows", expected, image_rows.len()));
        }
        let spliced_ND = kernels::splice_rows(&flat_rows(&x_BTD)?, image_rows, &features_MD)?;
        Ok(kernels::reshape(&spliced_ND, x_BTD.shape())?)
    }

    fn image_features(&self, pixels_NCHW: &Tensor) -> Result<Tensor, ModelError> {
        match pixels_NCHW.rank() {
            // The tower has seen them before.
            3 => self.projector.forward(pixels_NCHW),
            _ => self.projector.forward(&self.tower.forward(pixels_NCHW)?),
        }
    }

    /// Normed states of new positions after those in `cache`; every row sees all that is before it.
    pub(crate) fn extend(
        &self,
        x_BTD: &Tensor,
        positions_BT: &Tensor,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let mask = AttentionMask::Causal { documents_BT: None, offset: cache.len() };
        self.language.forward(x_BTD, positions_BT, &mask, Some(cache))
    }
}

/// `[.., .., D]` as rows of `D`.
fn flat_rows(x_BTD: &Tensor) -> Result<Tensor, ModelError> {
    let (rows, columns, width) = x_BTD.dims3()?;
    Ok(kernels::reshape(x_BTD, (rows * columns, width))?)
}

/// Every parameter of a model of this config.
pub(crate) fn specs(config: &VlmConfig) -> BTreeMap<String, ParamSpec> {
    let mut specs = Specs::new(&config.init);
    VisionTower::specs(&mut specs, VISION_PREFIX, &config.vision, &config.features);
    let widths = (config.feature_size(), config.language.hidden_size);
    Projector::specs(&mut specs, PROJECTOR_PREFIX, &config.projector, widths);
    LanguageModel::specs(&mut specs, LANGUAGE_PREFIX, &config.language);
    specs.into_map()
}
