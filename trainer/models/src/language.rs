//! Language models: Qwen2 and Llama, decoder-only, with grouped-query attention and a key-value cache.
//!
//! The computation follows `Qwen2ForCausalLM` and `LlamaForCausalLM` of `transformers`; the two differ in the biases of
//! the query, key and value projections and in the scaling of rotary frequencies.
//!
//! Shape suffixes: B batch, T positions of this call, S positions with the cached ones, D width of the model, X heads
//! side by side, V vocabulary, N = B * T rows.
#![expect(non_snake_case, reason = "shape suffixes")]

use std::sync::Arc;

use candle_core::Tensor;
use vela_kernels::{self as kernels, AttentionMask, Llama3Scaling, RopeTable};

use crate::ModelError;
use crate::config::{LanguageConfig, LanguageFamily};
use crate::layers::{Linear, LinearShape, RmsNorm};
use crate::params::{Params, Specs};

/// Where a language model's parameters are in a `LlavaForConditionalGeneration` file.
pub(crate) const LANGUAGE_PREFIX: &str = "language_model";

/// A decoder-only language model with its weights.
#[derive(Clone, Debug)]
pub struct LanguageModel {
    embedding_VD: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head_VD: Tensor,
    rope: Arc<RopeTable>,
}

/// Keys and values of the positions already computed, per block.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    blocks: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.blocks.first().and_then(Option::as_ref).map_or(0, |(k_BSX, _)| k_BSX.dims()[1])
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a block's new keys and values and gives back all of them.
    fn append(&mut self, block: usize, k_BTX: Tensor, v_BTX: Tensor) -> Result<(Tensor, Tensor), ModelError> {
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, None);
        }
        let whole = match self.blocks[block].take() {
            Some((k, v)) => (Tensor::cat(&[&k, &k_BTX], 1)?, Tensor::cat(&[&v, &v_BTX], 1)?),
            None => (k_BTX, v_BTX),
        };
        self.blocks[block] = Some(whole.clone());
        Ok(whole)
    }

    /// Keeps the given rows of the batch, in that order.
    pub(crate) fn select_rows(&mut self, rows: &Tensor) -> Result<(), ModelError> {
        for (k_BSX, v_BSX) in self.blocks.iter_mut().flatten() {
            *k_BSX = k_BSX.index_select(rows, 0)?;
            *v_BSX = v_BSX.index_select(rows, 0)?;
        }
        Ok(())
    }
}

/// The rotary table of a language model; made once, shared by every view of it.
pub(crate) fn rope_table(config: &LanguageConfig) -> Result<Arc<RopeTable>, ModelError> {
    let scaling = config.rope_scaling.as_ref().map(|scaling| Llama3Scaling {
        factor: scaling.factor,
        low_freq_factor: scaling.low_freq_factor,
        high_freq_factor: scaling.high_freq_factor,
        original_max_positions: scaling.original_max_positions,
    });
    Ok(Arc::new(RopeTable::new(config.head_dim, config.rope_theta, scaling, config.max_positions)?))
}

impl LanguageModel {
    pub(crate) fn specs(specs: &mut Specs<'_>, prefix: &str, config: &LanguageConfig) {
        let table = [config.vocab_size, config.hidden_size];
        specs.add(format!("{prefix}.model.embed_tokens.weight"), &table, specs.init.embedding());
        for layer in 0..config.num_layers {
            Block::specs(specs, &format!("{prefix}.model.layers.{layer}"), config);
        }
        RmsNorm::specs(specs, &format!("{prefix}.model.norm"), config.hidden_size);
        if !config.tie_embeddings {
            specs.add(format!("{prefix}.lm_head.weight"), &table, specs.init.linear(config.hidden_size));
        }
    }

    pub(crate) fn new(
        params: &Params,
        prefix: &str,
        config: &LanguageConfig,
        rope: Arc<RopeTable>,
    ) -> Result<Self, ModelError> {
        let embedding_VD = params.tensor(&format!("{prefix}.model.embed_tokens.weight"))?;
        let head_VD = match config.tie_embeddings {
            true => embedding_VD.clone(),
            false => params.tensor(&format!("{prefix}.lm_head.weight"))?,
        };
        let blocks = (0..config.num_layers)
            .map(|layer| Block::new(params, &format!("{prefix}.model.layers.{layer}"), config))
            .collect::<Result<_, _>>()?;
        let norm = RmsNorm::new(params, &format!("{prefix}.model.norm"), config.rms_norm_eps)?;
        Ok(Self { embedding_VD, blocks, norm, head_VD, rope })
    }

    /// Embeddings of token ids (u32, any shape), with the width as last axis.
    pub fn embed(&self, ids_X: &Tensor) -> Result<Tensor, ModelError> {
        Ok(kernels::embedding(ids_X, &self.embedding_VD)?)
    }

    /// Normed states `[B, T, D]` of embeddings `[B, T, D]` at `positions_BT` (u32). With a cache, the new positions
    /// follow the cached ones.
    pub fn forward(
        &self,
        x_BTD: &Tensor,
        positions_BT: &Tensor,
        mask: &AttentionMask,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor, ModelError> {
        let mut x_BTD = x_BTD.clone();
        for (index, block) in self.blocks.iter().enumerate() {
            let context = Context { positions_BT, mask, rope: &self.rope, index };
            x_BTD = block.forward(&x_BTD, &context, cache.as_deref_mut())?;
        }
        self.norm.forward(&x_BTD)
    }

    /// Logits over the vocabulary of normed states.
    pub fn head(&self, x_XD: &Tensor) -> Result<Tensor, ModelError> {
        Ok(kernels::linear(x_XD, &self.head_VD, None)?)
    }

    /// Sum of the cross-entropies of `labels` (`-100`: none) under the logits of normed states, one per row.
    pub fn loss(&self, x_ND: &Tensor, labels: &[i32]) -> Result<Tensor, ModelError> {
        Ok(kernels::linear_cross_entropy(x_ND, &self.head_VD, labels)?)
    }
}

/// What every block of one pass shares.
struct Context<'a> {
    positions_BT: &'a Tensor,
    mask: &'a AttentionMask,
    rope: &'a RopeTable,
    index: usize,
}

/// Norm, rotary attention, residual, norm, gated feed-forward, residual.
#[derive(Clone, Debug)]
struct Block {
    norm1: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    fn specs(specs: &mut Specs<'_>, prefix: &str, config: &LanguageConfig) {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.num_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        RmsNorm::specs(specs, &format!("{prefix}.input_layernorm"), width);
        RmsNorm::specs(specs, &format!("{prefix}.post_attention_layernorm"), width);
        let bias = config.family == LanguageFamily::Qwen2;
        let plain = |inputs| specs.init.linear(inputs);
        let residual = |inputs| specs.init.residual(inputs, config.num_layers);
        let linears = [
            ("self_attn.q_proj", LinearShape { inputs: width, outputs: queries, bias, init: plain(width) }),
            ("self_attn.k_proj", LinearShape { inputs: width, outputs: keys, bias, init: plain(width) }),
            ("self_attn.v_proj", LinearShape { inputs: width, outputs: keys, bias, init: plain(width) }),
            ("self_attn.o_proj", LinearShape { inputs: queries, outputs: width, bias: false, init: residual(queries) }),
            ("mlp.gate_proj", LinearShape { inputs: width, outputs: inner, bias: false, init: plain(width) }),
            ("mlp.up_proj", LinearShape { inputs: width, outputs: inner, bias: false, init: plain(width) }),
            ("mlp.down_proj", LinearShape { inputs: inner, outputs: width, bias: false, init: residual(inner) }),
        ];
        for (name, shape) in &linears {
            Linear::specs(specs, &format!("{prefix}.{name}"), shape);
        }
    }

    fn new(params: &Params, prefix: &str, config: &LanguageConfig) -> Result<Self, ModelError> {
        let linear = |name: &str, bias: bool| Linear::new(params, &format!("{prefix}.{name}"), bias);
        let norm = |name: &str| RmsNorm::new(params, &format!("{prefix}.{name}"), config.rms_norm_eps);
        let bias = config.family == LanguageFamily::Qwen2;
        Ok(Self {
            norm1: norm("input_layernorm")?,
            query: linear("self_attn.q_proj", bias)?,
            key: linear("self_attn.k_proj", bias)?,
            value: linear("self_attn.v_proj", bias)?,
            out: linear("self_attn.o_proj", false)?,
            norm2: norm("post_attention_layernorm")?,
            gate: linear("mlp.gate_proj", false)?,
            up: linear("mlp.up_proj", false)?,
            down: linear("mlp.down_proj", false)?,
        })
    }

    fn forward(
        &self,
        x_BTD: &Tensor,
        context: &Context<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor, ModelError> {
        let attended_BTD = self.attend(&self.norm1.forward(x_BTD)?, context, cache)?;
        let x_BTD = kernels::add(x_BTD, &attended_BTD)?;
        let normed_BTD = self.norm2.forward(&x_BTD)?;
        let inner = kernels::swiglu(&self.gate.forward(&normed_BTD)?, &self.up.forward(&normed_BTD)?)?;
        Ok(kernels::add(&x_BTD, &self.down.forward(&inner)?)?)
    }

    fn attend(&self, x_BTD: &Tensor, context: &Context<'_>, cache: Option<&mut KvCache>) -> Result<Tensor, ModelError> {
        let q_BTX = kernels::rope_rows(&self.query.forward(x_BTD)?, context.positions_BT, context.rope)?;
        let k_BTX = kernels::rope_rows(&self.key.forward(x_BTD)?, context.positions_BT, context.rope)?;
        let v_BTX = self.value.forward(x_BTD)?;
        let (k_BSX, v_BSX) = match cache {
            Some(cache) => cache.append(context.index, k_BTX, v_BTX)?,
            None => (k_BTX, v_BTX),
        };
        let width = context.rope.head_dim();
        let scale = 1.0 / (width as f32).sqrt();
        self.out.forward(&kernels::attention_rows(&q_BTX, &k_BSX, &v_BSX, width, context.mask, scale)?)
    }
}
