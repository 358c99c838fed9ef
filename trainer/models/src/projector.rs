//! Projectors: from features of the tower to vectors in the language model's embedding space.
//!
//! Names are those of `LlavaMultiModalProjector`: `linear_1`, `linear_2`; ours alone is `norm`, of `ln_mlp`.
//!
//! Shape suffixes: X any leading axes, F feature width, D language width.
#![expect(non_snake_case, reason = "shape suffixes")]

use candle_core::Tensor;

use crate::ModelError;
use crate::config::{Activation, ProjectorConfig, ProjectorKind};
use crate::layers::{LayerNorm, Linear, LinearShape};
use crate::params::{Params, Specs};

/// Where a projector's parameters are in a `LlavaForConditionalGeneration` file.
pub(crate) const PROJECTOR_PREFIX: &str = "multi_modal_projector";

/// Epsilon of `ln_mlp`'s norm, `torch.nn.LayerNorm`'s default.
const NORM_EPS: f32 = 1e-5;

/// A projector with its weights.
#[derive(Clone, Debug)]
pub struct Projector {
    activation: Activation,
    norm: Option<LayerNorm>,
    linear_1: Linear,
    linear_2: Option<Linear>,
}

impl Projector {
    pub(crate) fn specs(specs: &mut Specs<'_>, prefix: &str, config: &ProjectorConfig, widths: (usize, usize)) {
        let (features, width) = widths;
        let mut linear = |name: &str, inputs: usize| {
            let shape = LinearShape { inputs, outputs: width, bias: config.bias, init: specs.init.linear(inputs) };
            Linear::specs(specs, &format!("{prefix}.{name}"), &shape);
        };
        linear("linear_1", features);
        if config.kind != ProjectorKind::Linear {
            linear("linear_2", width);
        }
        if config.kind == ProjectorKind::LnMlp {
            LayerNorm::specs(specs, &format!("{prefix}.norm"), features);
        }
    }

    pub(crate) fn new(params: &Params, prefix: &str, config: &ProjectorConfig) -> Result<Self, ModelError> {
        let linear = |name: &str| Linear::new(params, &format!("{prefix}.{name}"), config.bias);
        let norm = || LayerNorm::new(params, &format!("{prefix}.norm"), NORM_EPS);
        Ok(Self {
            activation: config.activation,
            norm: (config.kind == ProjectorKind::LnMlp).then(norm).transpose()?,
            linear_1: linear("linear_1")?,
            linear_2: (config.kind != ProjectorKind::Linear).then(|| linear("linear_2")).transpose()?,
        })
    }

    /// Vectors `[X, D]` of features `[X, F]`.
    pub fn forward(&self, features_XF: &Tensor) -> Result<Tensor, ModelError> {
        let normed_XF = self.norm.as_ref().map_or(Ok(features_XF.clone()), |norm| norm.forward(features_XF))?;
        let first_XD = self.linear_1.forward(&normed_XF)?;
        match &self.linear_2 {
            Some(linear) => linear.forward(&self.activation.forward(&first_XD)?),
            None => Ok(first_XD),
        }
    }
}
