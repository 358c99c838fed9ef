//! Language models: Qwen2, Llama, Qwen3 and the first Qwen, decoder-only, with grouped-query attention and a key-value
//! cache.
//!
//! The computation follows `Qwen2ForCausalLM`, `LlamaForCausalLM` and `Qwen3ForCausalLM` of `transformers`, which
//! differ in the biases of the query, key and value projections, in norms of heads and in the scaling of rotary
//! frequencies, and `QWenLMHeadModel` of Qwen-7B's own repository, which differs from Qwen2 in names alone as long as a
//! row is no longer than its `seq_length`: query, key and value are one linear, and the gated half of the feed-forward
//! part is the second (`w2`).
//!
//! Shape suffixes: B batch, T positions of this call, S positions with the cached ones, D width of the model, X heads
//! side by side, W width of a head, V vocabulary, N = B * T rows.
#![expect(non_snake_case, reason = "shape suffixes")]

use std::sync::Arc;

use candle_core::Tensor;
use vela_kernels::{self as kernels, AttentionMask, Llama3Scaling, RopeTable};

use crate::config::{LanguageConfig, LanguageFamily};
use crate::layers::{Linear, LinearShape, RmsNorm};
use crate::params::{Params, Specs};
use crate::recompute::Recompute;
use crate::{DropoutKeys, ModelError};

/// Where a language model's parameters are in a `LlavaForConditionalGeneration` file.
pub(crate) const LANGUAGE_PREFIX: &str = "language_model";

/// The names of a family's modules.
struct Names {
    embedding: &'static str,
    blocks: &'static str,
    norm: &'static str,
    norm1: &'static str,
    norm2: &'static str,
    query_key_value: QueryKeyValue,
    out: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
    /// Of every linear of a block.
    linears: &'static [&'static str],
}

enum QueryKeyValue {
    Apart([&'static str; 3]),
    Fused(&'static str),
}

const HF_NAMES: Names = Names {
    embedding: "model.embed_tokens",
    blocks: "model.layers",
    norm: "model.norm",
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    query_key_value: QueryKeyValue::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    out: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    linears: &[
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
};

const QWEN_NAMES: Names = Names {
    embedding: "transformer.wte",
    blocks: "transformer.h",
    norm: "transformer.ln_f",
    norm1: "ln_1",
    norm2: "ln_2",
    query_key_value: QueryKeyValue::Fused("attn.c_attn"),
    out: "attn.c_proj",
    gate: "mlp.w2",
    up: "mlp.w1",
    down: "mlp.c_proj",
    linears: &["attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj"],
};

fn names(family: LanguageFamily) -> &'static Names {
    match family {
        LanguageFamily::Qwen => &QWEN_NAMES,
        LanguageFamily::Qwen2 | LanguageFamily::Llama | LanguageFamily::Qwen3 => &HF_NAMES,
    }
}

/// The linears of a block, by which adapters name their targets.
pub(crate) fn linear_names(family: LanguageFamily) -> &'static [&'static str] {
    names(family).linears
}

/// A decoder-only language model with its weights.
#[derive(Clone, Debug)]
pub struct LanguageModel {
    embedding_VD: Tensor,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head_VD: Tensor,
    rope: Arc<RopeTable>,
    recompute: Recompute,
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
        let (table, names) = ([config.vocab_size, config.hidden_size], names(config.family));
        specs.add(format!("{prefix}.{}.weight", names.embedding), &table, specs.init.embedding());
        for layer in 0..config.num_layers {
            Block::specs(specs, &format!("{prefix}.{}.{layer}", names.blocks), config);
        }
        RmsNorm::specs(specs, &format!("{prefix}.{}", names.norm), config.hidden_size);
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
        let names = names(config.family);
        let embedding_VD = params.tensor(&format!("{prefix}.{}.weight", names.embedding))?;
        let head_VD = match config.tie_embeddings {
            true => embedding_VD.clone(),
            false => params.tensor(&format!("{prefix}.lm_head.weight"))?,
        };
        let blocks = (0..config.num_layers)
            .map(|layer| Block::new(params, &format!("{prefix}.{}.{layer}", names.blocks), config))
            .collect::<Result<_, _>>()?;
        let norm = RmsNorm::new(params, &format!("{prefix}.{}", names.norm), config.rms_norm_eps)?;
        Ok(Self { embedding_VD, blocks, norm, head_VD, rope, recompute: Recompute::None })
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
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor, ModelError> {
        self.run(x_BTD, &self.context(positions_BT, mask, None), cache)
    }

    /// [`LanguageModel::forward`] in training: with `dropout`, adapters leave some of their inputs out.
    pub(crate) fn forward_dropping(
        &self,
        x_BTD: &Tensor,
        positions_BT: &Tensor,
        mask: &AttentionMask,
        dropout: Option<&DropoutKeys>,
    ) -> Result<Tensor, ModelError> {
        self.run(x_BTD, &self.context(positions_BT, mask, dropout), None)
    }

    fn context(&self, positions_BT: &Tensor, mask: &AttentionMask, dropout: Option<&DropoutKeys>) -> Context {
        let (positions_BT, mask, dropout) = (positions_BT.clone(), mask.clone(), dropout.cloned());
        Context { positions_BT, mask, rope: self.rope.clone(), dropout }
    }

    fn run(&self, x_BTD: &Tensor, context: &Context, mut cache: Option<&mut KvCache>) -> Result<Tensor, ModelError> {
        let mut x_BTD = x_BTD.clone();
        for (index, block) in self.blocks.iter().enumerate() {
            x_BTD = match cache.as_deref_mut() {
                Some(cache) => block.forward(&x_BTD, context, Some((cache, index)))?,
                None => self
                    .recompute
                    .apply(&x_BTD, (block, context), |x_BTD, (block, context)| block.forward(x_BTD, context, None))?,
            };
        }
        self.norm.forward(&x_BTD)
    }

    pub(crate) fn recompute(&self) -> Recompute {
        self.recompute
    }

    pub(crate) fn set_recompute(&mut self, recompute: Recompute) {
        self.recompute = recompute;
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
#[derive(Clone)]
struct Context {
    positions_BT: Tensor,
    mask: AttentionMask,
    rope: Arc<RopeTable>,
    dropout: Option<DropoutKeys>,
}

/// The cache, and the number of the block in it.
type BlockCache<'a> = Option<(&'a mut KvCache, usize)>;

/// Norm, rotary attention, residual, norm, gated feed-forward, residual.
#[derive(Clone, Debug)]
struct Block {
    norm1: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Norms of query and key heads.
    head_norms: Option<[RmsNorm; 2]>,
    out: Linear,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Where the norms of query and key heads are.
const HEAD_NORMS: [&str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];

impl Block {
    fn specs(specs: &mut Specs<'_>, prefix: &str, config: &LanguageConfig) {
        let names = names(config.family);
        RmsNorm::specs(specs, &format!("{prefix}.{}", names.norm1), config.hidden_size);
        RmsNorm::specs(specs, &format!("{prefix}.{}", names.norm2), config.hidden_size);
        if config.family.norms_heads() {
            HEAD_NORMS.iter().for_each(|name| RmsNorm::specs(specs, &format!("{prefix}.{name}"), config.head_dim));
        }
        for (name, shape) in linear_shapes(specs, config) {
            let prefix = format!("{prefix}.{name}");
            Linear::specs(specs, &prefix, &shape);
            if let Some(lora) = config.lora.as_ref().filter(|lora| lora.adapts(name)) {
                Linear::adapter_specs(specs, &prefix, &shape, lora.rank);
            }
        }
    }

    fn new(params: &Params, prefix: &str, config: &LanguageConfig) -> Result<Self, ModelError> {
        let names = names(config.family);
        let linear = |name: &str, bias: bool| {
            let prefix = format!("{prefix}.{name}");
            let linear = Linear::new(params, &prefix, bias)?;
            match config.lora.as_ref().filter(|lora| lora.adapts(name)) {
                Some(lora) => linear.adapted(params, &prefix, lora),
                None => Ok(linear),
            }
        };
        let norm = |name: &str| RmsNorm::new(params, &format!("{prefix}.{name}"), config.rms_norm_eps);
        let bias = config.family.has_query_bias();
        let [query, key, value] = match names.query_key_value {
            QueryKeyValue::Apart([query, key, value]) => {
                [linear(query, bias)?, linear(key, bias)?, linear(value, bias)?]
            }
            QueryKeyValue::Fused(name) => {
                let (fused, width) = (linear(name, bias)?, config.hidden_size);
                [fused.outputs(0, width)?, fused.outputs(width, width)?, fused.outputs(2 * width, width)?]
            }
        };
        let head_norms = || -> Result<_, ModelError> { Ok([norm(HEAD_NORMS[0])?, norm(HEAD_NORMS[1])?]) };
        Ok(Self {
            norm1: norm(names.norm1)?,
            query,
            key,
            value,
            head_norms: config.family.norms_heads().then(head_norms).transpose()?,
            out: linear(names.out, false)?,
            norm2: norm(names.norm2)?,
            gate: linear(names.gate, false)?,
            up: linear(names.up, false)?,
            down: linear(names.down, false)?,
        })
    }

    fn forward(&self, x_BTD: &Tensor, context: &Context, cache: BlockCache<'_>) -> Result<Tensor, ModelError> {
        let attended_BTD = self.attend(&self.norm1.forward(x_BTD)?, context, cache)?;
        let x_BTD = kernels::add(x_BTD, &attended_BTD)?;
        let normed_BTD = self.norm2.forward(&x_BTD)?;
        let gate = self.gate.forward_dropping(&normed_BTD, context.dropout.as_ref())?;
        let inner = kernels::swiglu(&gate, &self.up.forward_dropping(&normed_BTD, context.dropout.as_ref())?)?;
        Ok(kernels::add(&x_BTD, &self.down.forward_dropping(&inner, context.dropout.as_ref())?)?)
    }

    fn attend(&self, x_BTD: &Tensor, context: &Context, cache: BlockCache<'_>) -> Result<Tensor, ModelError> {
        let [q_BTX, k_BTX] = self.queries_and_keys(x_BTD, context)?;
        let q_BTX = kernels::rope_rows(&q_BTX, &context.positions_BT, &context.rope)?;
        let k_BTX = kernels::rope_rows(&k_BTX, &context.positions_BT, &context.rope)?;
        let v_BTX = self.value.forward_dropping(x_BTD, context.dropout.as_ref())?;
        let (k_BSX, v_BSX) = match cache {
            Some((cache, index)) => cache.append(index, k_BTX, v_BTX)?,
            None => (k_BTX, v_BTX),
        };
        let width = context.rope.head_dim();
        let scale = 1.0 / (width as f32).sqrt();
        let attended_BTX = kernels::attention_rows(&q_BTX, &k_BSX, &v_BSX, width, &context.mask, scale)?;
        self.out.forward_dropping(&attended_BTX, context.dropout.as_ref())
    }

    /// Before rotation, heads normed where the family does so.
    fn queries_and_keys(&self, x_BTD: &Tensor, context: &Context) -> Result<[Tensor; 2], ModelError> {
        let q_BTX = self.query.forward_dropping(x_BTD, context.dropout.as_ref())?;
        let k_BTX = self.key.forward_dropping(x_BTD, context.dropout.as_ref())?;
        let width = context.rope.head_dim();
        let Some([query_norm, key_norm]) = &self.head_norms else { return Ok([q_BTX, k_BTX]) };
        Ok([norm_heads(&q_BTX, query_norm, width)?, norm_heads(&k_BTX, key_norm, width)?])
    }
}

/// Each head of a row through `norm`.
fn norm_heads(x_BTX: &Tensor, norm: &RmsNorm, width: usize) -> Result<Tensor, ModelError> {
    let heads_XW = kernels::reshape(x_BTX, (x_BTX.elem_count() / width, width))?;
    Ok(kernels::reshape(&norm.forward(&heads_XW)?, x_BTX.shape())?)
}

/// Name and shape of each linear of a block.
fn linear_shapes(specs: &Specs<'_>, config: &LanguageConfig) -> Vec<(&'static str, LinearShape)> {
    let (names, bias) = (names(config.family), config.family.has_query_bias());
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let plain = |outputs, bias| LinearShape { inputs: width, outputs, bias, init: specs.init.linear(width) };
    let residual = |inputs| {
        let init = specs.init.residual(inputs, config.num_layers);
        LinearShape { inputs, outputs: width, bias: false, init }
    };
    let mut shapes = match names.query_key_value {
        QueryKeyValue::Apart([query, key, value]) => {
            vec![(query, plain(queries, bias)), (key, plain(keys, bias)), (value, plain(keys, bias))]
        }
        QueryKeyValue::Fused(name) => vec![(name, plain(3 * queries, bias))],
    };
    shapes.extend([
        (names.out, residual(queries)),
        (names.gate, plain(inner, false)),
        (names.up, plain(inner, false)),
        (names.down, residual(inner)),
    ]);
    shapes
}
