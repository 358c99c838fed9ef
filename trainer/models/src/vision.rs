//! Vision towers: CLIP, Chinese-CLIP and SigLIP, up to the hidden states that become image features.
//!
//! The computation follows `CLIPVisionModel`, `ChineseCLIPVisionModel` and `SiglipVisionModel` of `transformers`.
//! Blocks after the last state asked for, the norm after the blocks (unless it is asked for) and SigLIP's pooling head
//! are held, for a saved folder must have them, and never computed.
//!
//! Shape suffixes: N images, C channels, Y X image rows and columns, P patches, S positions (patches and class token),
//! D width, K values of a patch (channels * patch height * patch width), F features (D * number of states).
#![expect(non_snake_case, reason = "shape suffixes")]

use candle_core::{DType, Tensor};
use vela_kernels::{self as kernels, AttentionMask};

use crate::ModelError;
use crate::config::{Activation, FeatureConfig, VisionConfig, VisionFamily};
use crate::layers::{LayerNorm, Linear, LinearShape};
use crate::params::{Params, Specs};
use crate::recompute::Recompute;

/// Where a tower's parameters are in a `LlavaForConditionalGeneration` file.
pub(crate) const VISION_PREFIX: &str = "vision_tower.vision_model";

/// A vision tower with its weights.
#[derive(Clone, Debug)]
pub struct VisionTower {
    config: VisionConfig,
    features: FeatureConfig,
    patch_weight_DK: Tensor,
    patch_bias_D: Option<Tensor>,
    class_D: Option<Tensor>,
    position_SD: Tensor,
    pre_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    post_norm: Option<LayerNorm>,
    recompute: Recompute,
}

impl VisionTower {
    /// Parameters of a tower from which the states of `features` are taken.
    pub(crate) fn specs(specs: &mut Specs<'_>, prefix: &str, config: &VisionConfig, features: &FeatureConfig) {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let patch_shape = [width, config.num_channels, patch, patch];
        let inputs = config.num_channels * patch * patch;
        specs.add(format!("{prefix}.embeddings.patch_embedding.weight"), &patch_shape, specs.init.linear(inputs));
        if config.family == VisionFamily::Siglip {
            specs.add(format!("{prefix}.embeddings.patch_embedding.bias"), &[width], crate::init::Init::Zeros);
        }
        if config.family.has_class_token() {
            specs.add(format!("{prefix}.embeddings.class_embedding"), &[width], specs.init.position());
            LayerNorm::specs(specs, &format!("{prefix}.pre_layrnorm"), width);
        }
        let positions = [config.num_positions(), width];
        specs.add(format!("{prefix}.embeddings.position_embedding.weight"), &positions, specs.init.position());
        let num_computed = last_state(features);
        for layer in 0..config.num_layers {
            let block = format!("{prefix}.encoder.layers.{layer}");
            if layer < num_computed {
                Block::specs(specs, &block, config);
            } else {
                specs.unused(|specs| Block::specs(specs, &block, config));
            }
        }
        let post_norm = |specs: &mut Specs<'_>| LayerNorm::specs(specs, &format!("{prefix}.post_layernorm"), width);
        if features.post_norm {
            post_norm(specs)
        } else {
            specs.unused(post_norm)
        }
        if config.pooling_head {
            specs.unused(|specs| pooling_head_specs(specs, &format!("{prefix}.head"), config));
        }
    }

    /// Takes the tower's parameters under `prefix`.
    pub(crate) fn new(
        params: &Params,
        prefix: &str,
        config: &VisionConfig,
        features: &FeatureConfig,
    ) -> Result<Self, ModelError> {
        let embeddings = format!("{prefix}.embeddings");
        let has_class = config.family.has_class_token();
        let class_D = has_class.then(|| params.tensor(&format!("{embeddings}.class_embedding"))).transpose()?;
        let norm = |name: &str| LayerNorm::new(params, &format!("{prefix}.{name}"), config.layer_norm_eps);
        let has_bias = config.family == VisionFamily::Siglip;
        let patch_bias_D =
            has_bias.then(|| params.tensor(&format!("{embeddings}.patch_embedding.bias"))).transpose()?;
        let blocks = (0..last_state(features))
            .map(|layer| Block::new(params, &format!("{prefix}.encoder.layers.{layer}"), config))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patch_weight_DK: params.tensor(&format!("{embeddings}.patch_embedding.weight"))?.flatten_from(1)?,
            patch_bias_D,
            class_D,
            position_SD: params.tensor(&format!("{embeddings}.position_embedding.weight"))?,
            pre_norm: has_class.then(|| norm("pre_layrnorm")).transpose()?,
            blocks,
            post_norm: features.post_norm.then(|| norm("post_layernorm")).transpose()?,
            config: config.clone(),
            features: features.clone(),
            recompute: Recompute::None,
        })
    }

    /// Image features `[N, image tokens, F]` of normalised pixels `[N, C, Y, X]`.
    pub fn forward(&self, pixels_NCYX: &Tensor) -> Result<Tensor, ModelError> {
        let features_NSF = self.chosen_states(pixels_NCYX)?;
        let features_NSF =
            self.post_norm.as_ref().map_or(Ok(features_NSF.clone()), |norm| norm.forward(&features_NSF))?;
        if self.class_D.is_none() || self.features.keep_class_token {
            return Ok(features_NSF);
        }
        self.without_class_token(&features_NSF)
    }

    pub(crate) fn set_recompute(&mut self, recompute: Recompute) {
        self.recompute = recompute;
    }

    /// The states that features are taken from, side by side. Others are dropped when the next one is there.
    fn chosen_states(&self, pixels_NCYX: &Tensor) -> Result<Tensor, ModelError> {
        let mut states: Vec<Option<Tensor>> = vec![None; self.blocks.len() + 1];
        let mut x_NSD = self.embed(pixels_NCYX)?;
        for (number, block) in self.blocks.iter().enumerate() {
            if self.features.states.contains(&number) {
                states[number] = Some(x_NSD.clone());
            }
            x_NSD = self.recompute.apply(&x_NSD, (block, &()), |x_NSD, (block, ())| block.forward(x_NSD))?;
        }
        states[self.blocks.len()] = Some(x_NSD);
        let mut chosen = self.features.states.iter().filter_map(|&state| states[state].clone());
        let first = chosen.next().ok_or_else(|| ModelError::input("feature states", "at least one", "none"))?;
        chosen.try_fold(first, |side, state| Ok(kernels::concat(&side, &state)?))
    }

    /// The rows of patches, by number: the class token is the first of each image.
    fn without_class_token(&self, features_NSF: &Tensor) -> Result<Tensor, ModelError> {
        let (num_images, positions, width) = features_NSF.dims3()?;
        let (positions, num_images) = (positions as u32, num_images as u32);
        let rows: Vec<u32> =
            (0..num_images).flat_map(|image| (1..positions).map(move |patch| image * positions + patch)).collect();
        let rows_NP = Tensor::from_vec(rows, (num_images as usize, positions as usize - 1), features_NSF.device())?;
        let flat = kernels::reshape(features_NSF, ((num_images * positions) as usize, width))?;
        Ok(kernels::embedding(&rows_NP, &flat)?)
    }

    /// `hidden_states[0..=k]` of `transformers`, each `[N, S, D]`, up to the last one that features are taken from.
    pub fn hidden_states(&self, pixels_NCYX: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        let mut states = vec![self.embed(pixels_NCYX)?];
        for block in &self.blocks {
            let state = block.forward(&states[states.len() - 1])?;
            states.push(state);
        }
        Ok(states)
    }

    fn embed(&self, pixels_NCYX: &Tensor) -> Result<Tensor, ModelError> {
        let patches_NPK = self.unfold(pixels_NCYX)?;
        let mut x_NSD = kernels::linear(&patches_NPK, &self.patch_weight_DK, self.patch_bias_D.as_ref())?;
        if let Some(class_D) = &self.class_D {
            x_NSD = with_class_token(class_D, &x_NSD)?;
        }
        let (num_images, positions, _) = x_NSD.dims3()?;
        let numbers: Vec<u32> = (0..num_images).flat_map(|_| 0..positions as u32).collect();
        let numbers_NS = Tensor::from_vec(numbers, (num_images, positions), x_NSD.device())?;
        let x_NSD = kernels::add(&x_NSD, &kernels::embedding(&numbers_NS, &self.position_SD)?)?;
        self.pre_norm.as_ref().map_or(Ok(x_NSD.clone()), |norm| norm.forward(&x_NSD))
    }

    /// Cuts images into patches in reading order, each channel by channel: a convolution with stride = kernel size is
    /// then one matrix product. Rows and columns beyond the last whole patch are left out, as the convolution does.
    fn unfold(&self, pixels_NCYX: &Tensor) -> Result<Tensor, ModelError> {
        let VisionConfig { image_size, patch_size, num_channels, .. } = self.config;
        let (num_images, channels, rows, columns) = pixels_NCYX.dims4()?;
        if (channels, rows, columns) != (num_channels, image_size, image_size) {
            let expected = format!("[N, {num_channels}, {image_size}, {image_size}]");
            return Err(ModelError::input("pixels", expected, format!("{:?}", pixels_NCYX.dims())));
        }
        let grid = image_size / patch_size;
        let whole = pixels_NCYX.narrow(2, 0, grid * patch_size)?.narrow(3, 0, grid * patch_size)?;
        let cells = whole.contiguous()?.reshape(&[num_images, channels, grid, patch_size, grid, patch_size][..])?;
        let patches = cells.permute([0, 2, 4, 1, 3, 5])?.contiguous()?;
        Ok(patches.reshape((num_images, grid * grid, channels * patch_size * patch_size))?)
    }
}

/// The class token before the patches `[N, P, D]` of each image.
fn with_class_token(class_D: &Tensor, patches_NPD: &Tensor) -> Result<Tensor, ModelError> {
    let (num_images, num_patches, width) = patches_NPD.dims3()?;
    let num_rows = num_images * (num_patches + 1);
    let class_1D = kernels::reshape(class_D, (1, width))?;
    let class_XD = kernels::embedding(&Tensor::zeros(num_rows, DType::U32, class_D.device())?, &class_1D)?;
    let rows: Vec<u32> = (0..num_rows as u32).filter(|row| !row.is_multiple_of(num_patches as u32 + 1)).collect();
    let patches_XD = kernels::reshape(patches_NPD, (num_images * num_patches, width))?;
    let x_XD = kernels::splice_rows(&class_XD, &rows, &patches_XD)?;
    Ok(kernels::reshape(&x_XD, (num_images, num_patches + 1, width))?)
}

/// The last state that features are taken from is the number of blocks computed.
fn last_state(features: &FeatureConfig) -> usize {
    features.states.iter().copied().max().unwrap_or(0)
}

/// The attention-pooling head of `SiglipVisionModel` (a `torch.nn.MultiheadAttention` with a learned query).
fn pooling_head_specs(specs: &mut Specs<'_>, prefix: &str, config: &VisionConfig) {
    let width = config.hidden_size;
    specs.add(format!("{prefix}.probe"), &[1, 1, width], specs.init.position());
    specs.add(format!("{prefix}.attention.in_proj_weight"), &[3 * width, width], specs.init.linear(width));
    specs.add(format!("{prefix}.attention.in_proj_bias"), &[3 * width], crate::init::Init::Zeros);
    let out = LinearShape { inputs: width, outputs: width, bias: true, init: specs.init.linear(width) };
    Linear::specs(specs, &format!("{prefix}.attention.out_proj"), &out);
    LayerNorm::specs(specs, &format!("{prefix}.layernorm"), width);
    feed_forward_specs(specs, &format!("{prefix}.mlp"), config);
}

fn feed_forward_specs(specs: &mut Specs<'_>, prefix: &str, config: &VisionConfig) {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let up = LinearShape { inputs: width, outputs: inner, bias: true, init: specs.init.linear(width) };
    Linear::specs(specs, &format!("{prefix}.fc1"), &up);
    let init = specs.init.residual(inner, config.num_layers);
    Linear::specs(specs, &format!("{prefix}.fc2"), &LinearShape { inputs: inner, outputs: width, bias: true, init });
}

/// Norm, attention, residual, norm, feed-forward, residual.
#[derive(Clone, Debug)]
struct Block {
    num_heads: usize,
    activation: Activation,
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn specs(specs: &mut Specs<'_>, prefix: &str, config: &VisionConfig) {
        let width = config.hidden_size;
        LayerNorm::specs(specs, &format!("{prefix}.layer_norm1"), width);
        LayerNorm::specs(specs, &format!("{prefix}.layer_norm2"), width);
        for (name, init) in [
            ("q_proj", specs.init.linear(width)),
            ("k_proj", specs.init.linear(width)),
            ("v_proj", specs.init.linear(width)),
            ("out_proj", specs.init.residual(width, config.num_layers)),
        ] {
            let shape = LinearShape { inputs: width, outputs: width, bias: true, init };
            Linear::specs(specs, &format!("{prefix}.self_attn.{name}"), &shape);
        }
        feed_forward_specs(specs, &format!("{prefix}.mlp"), config);
    }

    fn new(params: &Params, prefix: &str, config: &VisionConfig) -> Result<Self, ModelError> {
        let linear = |name: &str| Linear::new(params, &format!("{prefix}.{name}"), true);
        let norm = |name: &str| LayerNorm::new(params, &format!("{prefix}.{name}"), config.layer_norm_eps);
        Ok(Self {
            num_heads: config.num_heads,
            activation: config.activation,
            norm1: norm("layer_norm1")?,
            query: linear("self_attn.q_proj")?,
            key: linear("self_attn.k_proj")?,
            value: linear("self_attn.v_proj")?,
            out: linear("self_attn.out_proj")?,
            norm2: norm("layer_norm2")?,
            fc1: linear("mlp.fc1")?,
            fc2: linear("mlp.fc2")?,
        })
    }

    fn forward(&self, x_NSD: &Tensor) -> Result<Tensor, ModelError> {
        let attended_NSD = self.attend(&self.norm1.forward(x_NSD)?)?;
        let x_NSD = kernels::add(x_NSD, &attended_NSD)?;
        let inner = self.activation.forward(&self.fc1.forward(&self.norm2.forward(&x_NSD)?)?)?;
        Ok(kernels::add(&x_NSD, &self.fc2.forward(&inner)?)?)
    }

    fn attend(&self, x_NSD: &Tensor) -> Result<Tensor, ModelError> {
        let (q, k, v) = (self.query.forward(x_NSD)?, self.key.forward(x_NSD)?, self.value.forward(x_NSD)?);
        let width = x_NSD.dim(2)? / self.num_heads;
        let scale = 1.0 / (width as f32).sqrt();
        self.out.forward(&kernels::attention_rows(&q, &k, &v, width, &AttentionMask::Full, scale)?)
    }
}
