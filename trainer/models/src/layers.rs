//! Layers that towers, projectors and language models share: a linear, two norms and the activations, each with the
//! parameters it asks for.
//!
//! Shape suffixes: X any leading axes, I inputs, O outputs, R rank of an adapter, D width.
#![expect(non_snake_case, reason = "shape suffixes")]

use candle_core::Tensor;
use vela_kernels as kernels;

use crate::DropoutKeys;
use crate::ModelError;
use crate::config::{Activation, LoraConfig};
use crate::init::{Init, name_hash};
use crate::params::{Params, Specs};

/// What the name of an adapter's first matrix ends with, after its linear's.
pub(crate) const LORA_A: &str = ".lora_A.weight";
/// What the name of its second matrix ends with.
pub(crate) const LORA_B: &str = ".lora_B.weight";

/// Whether the parameter `name` belongs to an adapter.
pub fn is_adapter(name: &str) -> bool {
    name.ends_with(LORA_A) || name.ends_with(LORA_B)
}

/// `x W^T + b`, and what an adapter adds to it.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight_OI: Tensor,
    bias_O: Option<Tensor>,
    adapter: Option<Adapter>,
}

/// A low-rank adapter: `scale * (x A^T) B^T`, in training of an `x` of which dropout leaves some out.
#[derive(Clone, Debug)]
struct Adapter {
    a_RI: Tensor,
    b_OR: Tensor,
    scale: f32,
    dropout: f32,
    /// Of its linear's name: the same words give each adapter another mask.
    salt: u64,
}

impl Adapter {
    fn input(&self, x_XI: &Tensor, keys: Option<&DropoutKeys>) -> Result<Tensor, ModelError> {
        match keys.filter(|_| self.dropout > 0.0) {
            Some(keys) => Ok(kernels::dropout(x_XI, self.dropout, keys.words(), self.salt)?),
            None => Ok(x_XI.clone()),
        }
    }
}

/// Inputs, outputs, bias and start of a linear.
pub(crate) struct LinearShape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bias: bool,
    pub(crate) init: Init,
}

impl Linear {
    pub(crate) fn specs(specs: &mut Specs<'_>, prefix: &str, shape: &LinearShape) {
        specs.add(format!("{prefix}.weight"), &[shape.outputs, shape.inputs], shape.init);
        if shape.bias {
            specs.add(format!("{prefix}.bias"), &[shape.outputs], Init::Zeros);
        }
    }

    /// The parameters of an adapter, which starts as PEFT's does: `A` uniform within `1 / sqrt(inputs)`, `B` zero.
    pub(crate) fn adapter_specs(specs: &mut Specs<'_>, prefix: &str, shape: &LinearShape, rank: usize) {
        let start = Init::Uniform(1.0 / (shape.inputs as f64).sqrt());
        specs.add(format!("{prefix}{LORA_A}"), &[rank, shape.inputs], start);
        specs.add(format!("{prefix}{LORA_B}"), &[shape.outputs, rank], Init::Zeros);
    }

    pub(crate) fn new(params: &Params, prefix: &str, bias: bool) -> Result<Self, ModelError> {
        let bias_O = if bias { Some(params.tensor(&format!("{prefix}.bias"))?) } else { None };
        Ok(Self { weight_OI: params.tensor(&format!("{prefix}.weight"))?, bias_O, adapter: None })
    }

    /// With the adapter whose parameters are under `prefix`.
    pub(crate) fn adapted(self, params: &Params, prefix: &str, lora: &LoraConfig) -> Result<Self, ModelError> {
        let (a_RI, b_OR) = (params.tensor(&format!("{prefix}{LORA_A}"))?, params.tensor(&format!("{prefix}{LORA_B}"))?);
        let (scale, dropout, salt) = (lora.scale(), lora.dropout as f32, name_hash(prefix));
        Ok(Self { adapter: Some(Adapter { a_RI, b_OR, scale, dropout, salt }), ..self })
    }

    /// The part that gives the outputs `start..start + count`: views, no copies.
    pub(crate) fn outputs(&self, start: usize, count: usize) -> Result<Self, ModelError> {
        let rows = |tensor: &Tensor| tensor.narrow(0, start, count);
        let part = |adapter: &Adapter| -> Result<Adapter, ModelError> {
            Ok(Adapter { b_OR: rows(&adapter.b_OR)?, ..adapter.clone() })
        };
        Ok(Self {
            weight_OI: rows(&self.weight_OI)?,
            bias_O: self.bias_O.as_ref().map(rows).transpose()?,
            adapter: self.adapter.as_ref().map(part).transpose()?,
        })
    }

    pub(crate) fn forward(&self, x_XI: &Tensor) -> Result<Tensor, ModelError> {
        self.forward_dropping(x_XI, None)
    }

    /// With dropout before the adapter, if it has one and there are keys: in training.
    pub(crate) fn forward_dropping(&self, x_XI: &Tensor, keys: Option<&DropoutKeys>) -> Result<Tensor, ModelError> {
        let y_XO = kernels::linear(x_XI, &self.weight_OI, self.bias_O.as_ref())?;
        let Some(adapter) = &self.adapter else { return Ok(y_XO) };
        let low_XR = kernels::linear(&adapter.input(x_XI, keys)?, &adapter.a_RI, None)?;
        let low_XR = kernels::scale(&low_XR, adapter.scale)?;
        Ok(kernels::add(&y_XO, &kernels::linear(&low_XR, &adapter.b_OR, None)?)?)
    }
}

/// Layer norm with scale and shift.
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    weight_D: Tensor,
    bias_D: Tensor,
    eps: f32,
}

impl LayerNorm {
    pub(crate) fn specs(specs: &mut Specs<'_>, prefix: &str, size: usize) {
        specs.add(format!("{prefix}.weight"), &[size], Init::Ones);
        specs.add(format!("{prefix}.bias"), &[size], Init::Zeros);
    }

    pub(crate) fn new(params: &Params, prefix: &str, eps: f32) -> Result<Self, ModelError> {
        let weight_D = params.tensor(&format!("{prefix}.weight"))?;
        Ok(Self { weight_D, bias_D: params.tensor(&format!("{prefix}.bias"))?, eps })
    }

    pub(crate) fn forward(&self, x_XD: &Tensor) -> Result<Tensor, ModelError> {
        Ok(kernels::layer_norm(x_XD, &self.weight_D, &self.bias_D, self.eps)?)
    }
}

/// Root-mean-square norm with scale.
#[derive(Clone, Debug)]
pub(crate) struct RmsNorm {
    weight_D: Tensor,
    eps: f32,
}

impl RmsNorm {
    pub(crate) fn specs(specs: &mut Specs<'_>, prefix: &str, size: usize) {
        specs.add(format!("{prefix}.weight"), &[size], Init::Ones);
    }

    pub(crate) fn new(params: &Params, prefix: &str, eps: f32) -> Result<Self, ModelError> {
        Ok(Self { weight_D: params.tensor(&format!("{prefix}.weight"))?, eps })
    }

    pub(crate) fn forward(&self, x_XD: &Tensor) -> Result<Tensor, ModelError> {
        Ok(kernels::rms_norm(x_XD, &self.weight_D, self.eps)?)
    }
}

impl Activation {
    pub(crate) fn forward(self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(match self {
            Self::QuickGelu => kernels::quick_gelu(x)?,
            Self::Gelu => kernels::gelu_erf(x)?,
            Self::GeluTanh => kernels::gelu_tanh(x)?,
            Self::Identity => x.clone(),
        })
    }
}
