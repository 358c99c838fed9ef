//! Scaled dot-product attention with grouped key/value heads.

mod cpu;

use candle_core::{DType, Tensor};

use crate::error::{InOp, KernelError, Result, check_cpu, check_f32};
use crate::tape::{self, Needs};

/// Which keys a query sees.
#[derive(Debug, Clone)]
pub enum AttentionMask {
    /// All of them (vision towers).
    Full,
    /// Keys up to the query's own position.
    Causal {
        /// One document id per token (u32); tokens see only their own document. Id 0 is padding: it sees nothing and
        /// nothing sees it, and its output and gradient are zero. Needs as many keys as queries.
        documents_BT: Option<Tensor>,
        /// The number of keys before the first query (cached decoding): `S - T`.
        offset: usize,
    },
}

/// `softmax(q k^T * scale, masked) v` per head; query head `h` uses key/value head `h / (H / G)`.
///
/// `q_BHTD`, `k_BGSD`, `v_BGSD` give `[B, H, T, D]`; views with unit stride over `D` are read without a copy.
///
/// # Errors
/// If the shapes do not fit, or a tensor is not f32 (u32 for documents) on a device this build has code for.
pub fn attention(
    q_BHTD: &Tensor,
    k_BGSD: &Tensor,
    v_BGSD: &Tensor,
    mask: &AttentionMask,
    scale: f32,
) -> Result<Tensor> {
    let found = || format!("q {:?}, k {:?}, v {:?}", q_BHTD.dims(), k_BGSD.dims(), v_BGSD.dims());
    let (&[batch, heads, queries, width], &[k_batch, groups, keys, k_width]) = (q_BHTD.dims(), k_BGSD.dims()) else {
        return Err(shape_error("`q`, `k` and `v` of four dimensions", found()));
    };
    if k_batch != batch || k_width != width {
        return Err(shape_error("`q` and `k` of one batch size and head width", found()));
    }
    let shape = cpu::Heads { batch, heads, groups, queries, keys, width, heads_first: true };
    apply([q_BHTD, k_BGSD, v_BGSD], shape, mask, scale)
}

/// [`attention`] for heads that lie side by side in a row, as projections leave them: `q_BTX` with `X = H * D`,
/// `k_BSX` and `v_BSX` with `X = G * D`, giving `[B, T, H * D]`. No transposed copy is made either way.
///
/// # Errors
/// As [`attention`].
pub fn attention_rows(
    q_BTX: &Tensor,
    k_BSX: &Tensor,
    v_BSX: &Tensor,
    head_dim: usize,
    mask: &AttentionMask,
    scale: f32,
) -> Result<Tensor> {
    let found = || format!("q {:?}, k {:?}, v {:?}", q_BTX.dims(), k_BSX.dims(), v_BSX.dims());
    let (&[batch, queries, q_row], &[k_batch, keys, k_row]) = (q_BTX.dims(), k_BSX.dims()) else {
        return Err(shape_error("`q`, `k` and `v` of three dimensions", found()));
    };
    let whole = |row: usize| head_dim != 0 && row.is_multiple_of(head_dim);
    if k_batch != batch || !whole(q_row) || !whole(k_row) {
        return Err(shape_error(&format!("one batch size and rows of whole heads of width {head_dim}"), found()));
    }
    let (heads, groups) = (q_row / head_dim, k_row / head_dim);
    let shape = cpu::Heads { batch, heads, groups, queries, keys, width: head_dim, heads_first: false };
    apply([q_BTX, k_BSX, v_BSX], shape, mask, scale)
}

const OP: &str = "attention";

fn shape_error(expected: &str, found: String) -> KernelError {
    KernelError::Shape { op: OP, expected: expected.to_owned(), found }
}

fn apply(qkv: [&Tensor; 3], shape: cpu::Heads, mask: &AttentionMask, scale: f32) -> Result<Tensor> {
    let [q, k, v] = qkv;
    for (name, t) in [("q", q), ("k", k), ("v", v)] {
        check_f32(OP, name, t)?;
    }
    if v.dims() != k.dims() {
        return Err(shape_error(&format!("`v` {:?}", k.dims()), format!("{:?}", v.dims())));
    }
    if shape.groups == 0 || !shape.heads.is_multiple_of(shape.groups) {
        let found = format!("{} and {}", shape.heads, shape.groups);
        return Err(shape_error("query heads that are a multiple of key/value heads", found));
    }
    let (offset, documents) = match mask {
        AttentionMask::Full => (None, None),
        AttentionMask::Causal { documents_BT, offset } => {
            (Some(*offset), check_causal(&shape, documents_BT.as_ref(), *offset)?)
        }
    };
    let rows = |t: &Tensor| if t.stride().last() == Some(&1) { Ok(t.clone()) } else { tape::contiguous(t) };
    let (q, k, v) = (rows(q).in_op(OP)?, rows(k).in_op(OP)?, rows(v).in_op(OP)?);
    let op = cpu::Attention::new(shape, scale, offset, documents);
    tape::apply3([&q, &k, &v], op, Needs::args([true; 3]).and_result()).in_op(OP)
}

/// The documents as one row-major list, checked against the shapes.
fn check_causal(shape: &cpu::Heads, documents_BT: Option<&Tensor>, offset: usize) -> Result<Option<Vec<u32>>> {
    let (queries, keys) = (shape.queries, shape.keys);
    if keys != queries + offset {
        return Err(shape_error(&format!("{queries} queries + offset {offset} keys"), format!("{keys} keys")));
    }
    let Some(documents_BT) = documents_BT else { return Ok(None) };
    check_cpu(OP, "documents", documents_BT, DType::U32)?;
    if offset != 0 {
        return Err(shape_error("offset 0 where documents are given", offset.to_string()));
    }
    if documents_BT.dims() != [shape.batch, keys] {
        let found = format!("{:?}", documents_BT.dims());
        return Err(shape_error(&format!("`documents` [{}, {keys}]", shape.batch), found));
    }
    documents_BT.flatten_all().and_then(|t| t.to_vec1::<u32>()).in_op(OP).map(Some)
}
