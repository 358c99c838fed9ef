//! Rows of a table by id.

mod cpu;

use candle_core::{DType, Tensor};

use crate::error::{InOp, KernelError, Result, check_cpu, check_f32};
use crate::tape;

/// The row of `table_VD` for each id: ids (u32) of any shape give `[ids.., D]`.
///
/// The backward adds rows in the order of the ids; a table outside the graph costs none.
///
/// # Errors
/// If an id is beyond the table, or a tensor is not u32 (ids) or f32 (table) on a device this build has code for.
pub fn embedding(ids: &Tensor, table_VD: &Tensor) -> Result<Tensor> {
    const OP: &str = "embedding";
    check_cpu(OP, "ids", ids, DType::U32)?;
    check_f32(OP, "table", table_VD)?;
    let (limit, width) = table_VD.dims2().map_err(|_| KernelError::Shape {
        op: OP,
        expected: "`table` [vocabulary, width]".to_owned(),
        found: format!("{:?}", table_VD.dims()),
    })?;
    let flat = ids.flatten_all().and_then(|t| t.to_vec1::<u32>()).in_op(OP)?;
    if let Some((index, &found)) = flat.iter().enumerate().find(|(_, id)| **id as usize >= limit) {
        return Err(KernelError::Index { op: OP, name: "ids", limit, found: i64::from(found), index });
    }
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    let table_VD = tape::contiguous(table_VD).in_op(OP)?;
    tape::apply_rows(&table_VD, &flat.clone(), cpu::Embedding { ids: flat, dims }).in_op(OP)
}
