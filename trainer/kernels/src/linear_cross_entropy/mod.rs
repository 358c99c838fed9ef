//! The language-model head and its loss in one op, over labelled rows only.

mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, KernelError, Result, check_dims, check_f32};
use crate::tape::{self, Needs};

/// The label of a row that carries no loss.
pub const IGNORE_LABEL: i32 = -100;

/// The SUM over labelled rows of `-log softmax(hidden_row weight^T)[label]`, a scalar.
///
/// `hidden_ND`, `weight_VD`, one label per row; row `i` predicts `labels[i]` (shifting by one position is the
/// caller's). Rows labelled [`IGNORE_LABEL`] are neither multiplied nor differentiated. Without any labelled row the
/// loss is zero. A weight outside the graph costs no gradient.
///
/// # Errors
/// If the shapes do not fit, a label is neither [`IGNORE_LABEL`] nor in the vocabulary, or a tensor is not f32 on a
/// device this build has code for.
pub fn linear_cross_entropy(hidden_ND: &Tensor, weight_VD: &Tensor, labels: &[i32]) -> Result<Tensor> {
    let (rows, targets) = check(hidden_ND, weight_VD, labels)?;
    let (hidden_ND, weight_VD) = (tape::contiguous(hidden_ND).in_op(OP)?, tape::contiguous(weight_VD).in_op(OP)?);
    let wants = cpu::Wants { hidden: hidden_ND.track_op(), weight: weight_VD.track_op() };
    let op = cpu::LinearCrossEntropy::new(rows, targets, wants);
    tape::apply2(&hidden_ND, &weight_VD, op, Needs::SHAPES).in_op(OP)
}

const OP: &str = "linear_cross_entropy";

/// The labelled rows and their labels, checked.
fn check(hidden_ND: &Tensor, weight_VD: &Tensor, labels: &[i32]) -> Result<(Vec<u32>, Vec<u32>)> {
    check_f32(OP, "hidden", hidden_ND)?;
    check_f32(OP, "weight", weight_VD)?;
    let (Ok((rows, width)), Ok((vocabulary, _))) = (hidden_ND.dims2(), weight_VD.dims2()) else {
        return Err(KernelError::Shape {
            op: OP,
            expected: "`hidden` [rows, width] and `weight` [vocabulary, width]".to_owned(),
            found: format!("{:?} and {:?}", hidden_ND.dims(), weight_VD.dims()),
        });
    };
    check_dims(OP, "weight", weight_VD, &[vocabulary, width])?;
    if labels.len() != rows {
        return Err(KernelError::Shape {
            op: OP,
            expected: format!("one label for each of {rows} rows"),
            found: labels.len().to_string(),
        });
    }
    let mut kept = (Vec::new(), Vec::new());
    for (index, &label) in labels.iter().enumerate().filter(|(_, label)| **label != IGNORE_LABEL) {
        match u32::try_from(label).ok().filter(|label| (*label as usize) < vocabulary) {
            Some(label) => {
                kept.0.push(index as u32);
                kept.1.push(label);
            }
            None => {
                let found = i64::from(label);
                return Err(KernelError::Index { op: OP, name: "labels", limit: vocabulary, found, index });
            }
        }
    }
    Ok(kept)
}
