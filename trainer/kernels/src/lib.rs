//! Tensor ops with true gradients: every op is a forward and an explicit backward over candle tensors, one folder per
//! op with its CPU code (CUDA code joins it there). The crate owns the arithmetic and its order, so that a result does
//! not depend on the number of threads; it refuses models, parameter names, files and schedules, and answers
//! `not built for this device` where a device has no code yet.
//!
//! Shape suffixes: `B` batch, `T` query positions, `S` key positions, `H` query heads, `G` key/value heads, `D` head or
//! row width, `N` rows, `M` spliced rows, `V` vocabulary, `I` inputs, `O` outputs, `X` any leading dimensions.
#![expect(non_snake_case, reason = "tensor names carry shape suffixes")]

mod activation;
mod adamw;
mod add;
mod attention;
mod concat;
mod cpu;
mod dropout;
mod embedding;
mod error;
mod linear;
mod linear_cross_entropy;
mod machine;
mod norm;
mod rope;
mod scale;
mod simd;
mod softmax;
mod splice;
mod tape;

pub use activation::{gelu_erf, gelu_tanh, quick_gelu, silu, swiglu};
pub use adamw::{AdamWStep, adamw_step, clip_coefficient, square_sum};
pub use add::{add, add_assign};
pub use attention::{AttentionMask, attention, attention_rows};
pub use concat::concat;
pub use dropout::dropout;
pub use embedding::embedding;
pub use error::{KernelError, Result};
pub use linear::linear;
pub use linear_cross_entropy::{IGNORE_LABEL, linear_cross_entropy};
pub use machine::{keep_freed_memory, on_workers};
pub use norm::{layer_norm, rms_norm};
pub use rope::{Llama3Scaling, RopeTable, rope, rope_rows};
pub use scale::scale;
pub use softmax::softmax;
pub use splice::splice_rows;
pub use tape::{Tape, recompute, reshape};
