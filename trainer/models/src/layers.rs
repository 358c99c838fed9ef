//! Layers that towers, projectors and language models share: a linear, two norms and the activations, each with the
//! parameters it asks for.
//!
//! Shape suffixes: X any leading axes, I inputs, O outputs, D width.
#![expect(non_snake_case, reason = "shape suffixes")]

use candle_core::Tensor;
use vela_kernels as kernels;

use crate::ModelError;
use crate::config::Activation;
use crate::init::Init;
use crate::params::{Params, Specs};

/// `x W^T + b`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    weight_OI: Tensor,
    bias_O: Option<Tensor>,
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

    pub(crate) fn new(params: &Params, prefix: &str, bias: bool) -> Result<Self, ModelError> {
        let bias_O = if bias { Some(params.tensor(&format!("{prefix}.bias"))?) } else { None };
        Ok(Self { weight_OI: params.tensor(&format!("{prefix}.weight"))?, bias_O })
    }

    pub(crate) fn forward(&self, x_XI: &Tensor) -> Result<Tensor, ModelError> {
        Ok(kernels::linear(x_XI, &self.weight_OI, self.bias_O.as_ref())?)
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
        })
    }
}
