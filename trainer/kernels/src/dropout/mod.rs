//! Dropout (Srivastava et al. 2014) whose mask is a pure function of a word per row: nothing is kept between forward and
//! backward, and neither threads nor the order of calls enter.

mod cpu;

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{InOp, KernelError, Result, check_f32, last_dim};
use crate::tape::{self, Needs};

/// `x` with a share of `rate` of its elements set to 0 and the others times `1 / (1 - rate)`.
///
/// `keys` has a word for each row of the last axis. Element `d` of a row of key `k` stays if the high half of output `d`
/// of SplitMix64 (Steele, Lea and Flood 2014), started at `mix(k ^ salt)`, is at least `rate * 2^32`, rounded; calls with
/// other salts have other masks.
///
/// # Errors
/// If `x` is not f32 on a device this build has code for, `keys` is not as long as `x` has rows, or `rate` is not from 0
/// to below 1.
pub fn dropout(x_XD: &Tensor, rate: f32, keys: &Arc<[u64]>, salt: u64) -> Result<Tensor> {
    const OP: &str = "dropout";
    check_f32(OP, "x", x_XD)?;
    let width = last_dim(OP, "x", x_XD)?;
    let rows = x_XD.elem_count() / width.max(1);
    let refuse = |expected: String, found: String| Err(KernelError::Shape { op: OP, expected, found });
    match () {
        () if keys.len() != rows => refuse(format!("`keys` of {rows} rows"), keys.len().to_string()),
        () if !(0.0..1.0).contains(&rate) => refuse("`rate` from 0 to below 1".to_owned(), rate.to_string()),
        () => {
            let op = cpu::Dropout { keys: keys.clone(), salt, rate, width };
            tape::contiguous(x_XD).and_then(|x_XD| tape::apply1(&x_XD, op, Needs::SHAPES)).in_op(OP)
        }
    }
}
