//! Replacing rows, as image features replace the embeddings of image tokens.

mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, KernelError, Result, check_dims, check_f32};
use crate::tape::{self, Needs};

/// `base_ND` with row `rows[i]` replaced by row `i` of `values_MD`; each row at most once.
///
/// The gradient of a replaced row goes to `values_MD` and not to `base_ND`.
///
/// # Errors
/// If the shapes do not fit, a row is beyond `base_ND` or named twice, or a tensor is not f32 on a device this build
/// has code for.
pub fn splice_rows(base_ND: &Tensor, rows: &[u32], values_MD: &Tensor) -> Result<Tensor> {
    const OP: &str = "splice_rows";
    check_f32(OP, "base", base_ND)?;
    check_f32(OP, "values", values_MD)?;
    let (limit, width) = base_ND.dims2().map_err(|_| KernelError::Shape {
        op: OP,
        expected: "`base` [rows, width]".to_owned(),
        found: format!("{:?}", base_ND.dims()),
    })?;
    check_dims(OP, "values", values_MD, &[rows.len(), width])?;
    let mut taken = vec![false; limit];
    for (index, &row) in rows.iter().enumerate() {
        match taken.get_mut(row as usize) {
            None => return Err(KernelError::Index { op: OP, name: "rows", limit, found: i64::from(row), index }),
            Some(true) => {
                return Err(KernelError::Shape {
                    op: OP,
                    expected: "each row at most once in `rows`".to_owned(),
                    found: format!("row {row} again at index {index}"),
                });
            }
            Some(slot) => *slot = true,
        }
    }
    if rows.is_empty() {
        return Ok(base_ND.clone());
    }
    let (base_ND, values_MD) = (tape::contiguous(base_ND).in_op(OP)?, tape::contiguous(values_MD).in_op(OP)?);
    tape::apply2(&base_ND, &values_MD, cpu::Splice { rows: rows.to_vec() }, Needs::SHAPES).in_op(OP)
}
