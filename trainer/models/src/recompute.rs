//! Which activations a training step computes a second time instead of holding them.

use std::str::FromStr;

use candle_core::Tensor;
use vela_kernels as kernels;

use crate::ModelError;

/// What is held of a block until the backward pass has come back to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// All that the backward pass reads.
    #[default]
    None,
    /// The input of each block: the rest is computed again, one block at a time, for about a third more arithmetic.
    /// Losses and gradients have the same bits.
    Block,
}

impl Recompute {
    /// The names, as recipes have them.
    pub const NAMES: [&'static str; 2] = ["none", "block"];

    /// `body(x, with)`, whose insides are held as this says.
    pub(crate) fn apply<A: Clone + 'static, B: Clone + 'static>(
        self,
        x: &Tensor,
        (block, context): (&A, &B),
        body: fn(&Tensor, (&A, &B)) -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        match self {
            Self::None => body(x, (block, context)),
            Self::Block => {
                let (block, context) = (block.clone(), context.clone());
                kernels::recompute(x, move |x| body(x, (&block, &context)))
            }
        }
    }
}

impl FromStr for Recompute {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "none" => Ok(Self::None),
            "block" => Ok(Self::Block),
            _ => Err(()),
        }
    }
}
