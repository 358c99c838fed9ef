//! Applying ops: as candle does where no tape is open, else so that a result holds nothing but itself.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

use super::held::{Needs, anchor};
use super::walk::Recorded;
use super::{Record, is_open};

pub(super) type Op1 = Arc<Box<dyn CustomOp1 + Send + Sync>>;
pub(super) type Op2 = Arc<Box<dyn CustomOp2 + Send + Sync>>;
pub(super) type Op3 = Arc<Box<dyn CustomOp3 + Send + Sync>>;

/// Applies and records an op of one tensor.
pub(crate) fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static, needs: Needs) -> Result<Tensor> {
    let op: Op1 = Arc::new(Box::new(op));
    if !is_open() || !x.track_op() {
        return x.apply_op1_arc(op);
    }
    let y = run1(&op, x)?;
    Record::note_with(&y, needs.result(), needs.is_cheap(), |record| Recorded::One(op, record.hold(x, needs.arg(0))));
    Ok(y)
}

/// Applies and records an op of two tensors.
pub(crate) fn apply2(
    a: &Tensor,
    b: &Tensor,
    op: impl CustomOp2 + Send + Sync + 'static,
    needs: Needs,
) -> Result<Tensor> {
    let op: Op2 = Arc::new(Box::new(op));
    if !is_open() || !(a.track_op() || b.track_op()) {
        return a.apply_op2_arc(b, op);
    }
    let y = run2(&op, [a, b])?;
    Record::note_with(&y, needs.result(), needs.is_cheap(), |record| {
        Recorded::Two(op, [record.hold(a, needs.arg(0)), record.hold(b, needs.arg(1))])
    });
    Ok(y)
}

/// Applies and records an op of three tensors.
pub(crate) fn apply3(
    [a, b, c]: [&Tensor; 3],
    op: impl CustomOp3 + Send + Sync + 'static,
    needs: Needs,
) -> Result<Tensor> {
    let op: Op3 = Arc::new(Box::new(op));
    if !is_open() || !(a.track_op() || b.track_op() || c.track_op()) {
        return a.apply_op3_arc(b, c, op);
    }
    let y = run3(&op, [a, b, c])?;
    Record::note_with(&y, needs.result(), needs.is_cheap(), |record| {
        let held = [(a, 0), (b, 1), (c, 2)].map(|(tensor, index)| record.hold(tensor, needs.arg(index)));
        Recorded::Three(op, held)
    });
    Ok(y)
}

/// Applies and records `op(a, b) = a + b`, whose gradient goes to both unchanged.
pub(crate) fn apply_sum(a: &Tensor, b: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    let op: Op2 = Arc::new(Box::new(op));
    if !is_open() || !(a.track_op() || b.track_op()) {
        return a.apply_op2_arc(b, op);
    }
    let y = run2(&op, [a, b])?;
    let tracked = [a, b].map(Tensor::track_op);
    Record::note(&y, false, |record| Recorded::Sum([a, b].map(|term| record.hold(term, false)), tracked));
    Ok(y)
}

/// Applies and records a lookup of rows.
pub(crate) fn apply_rows(table: &Tensor, ids: &[u32], op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    let op: Op1 = Arc::new(Box::new(op));
    if !is_open() || !table.track_op() {
        return table.apply_op1_arc(op);
    }
    let y = run1(&op, table)?;
    Record::note(&y, false, |record| Recorded::Rows(op, ids.into(), record.hold(table, false)));
    Ok(y)
}

/// `x` itself, or a copy of it whose rows follow one another.
pub(crate) fn contiguous(x: &Tensor) -> Result<Tensor> {
    if x.is_contiguous() || !is_open() || !x.track_op() {
        return x.contiguous();
    }
    let (copy, shape) = (x.detach().contiguous()?, x.shape().clone());
    let y = tracked(move || with_storage(&copy, |storage, _| Ok((storage.clone(), shape))))?;
    Record::note(&y, false, |record| Recorded::View(record.hold(x, false)));
    Ok(y)
}

/// The op's result, tracked and tied to nothing.
pub(super) fn run1(op: &Op1, x: &Tensor) -> Result<Tensor> {
    let (op, x) = (op.clone(), x.clone());
    tracked(move || with_storage(&x, |x, layout| op.cpu_fwd(x, layout)))
}

/// As [`run1`].
pub(super) fn run2(op: &Op2, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
    let (op, a, b) = (op.clone(), a.clone(), b.clone());
    tracked(move || {
        with_storage(&a, |a, a_layout| with_storage(&b, |b, b_layout| op.cpu_fwd(a, a_layout, b, b_layout)))
    })
}

/// As [`run1`].
pub(super) fn run3(op: &Op3, [a, b, c]: [&Tensor; 3]) -> Result<Tensor> {
    let (op, a, b, c) = (op.clone(), a.clone(), b.clone(), c.clone());
    tracked(move || {
        with_storage(&a, |a, a_layout| {
            with_storage(&b, |b, b_layout| {
                with_storage(&c, |c, c_layout| op.cpu_fwd(a, a_layout, b, b_layout, c, c_layout))
            })
        })
    })
}

type Values = Result<(CpuStorage, Shape)>;

fn with_storage(tensor: &Tensor, body: impl FnOnce(&CpuStorage, &Layout) -> Values) -> Values {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => body(storage, layout),
        _ => bail!("expected a tensor on the cpu"),
    }
}

/// A tracked tensor of the values that `compute` gives.
fn tracked(compute: impl FnOnce() -> Values + Send + 'static) -> Result<Tensor> {
    let source: Op1 = Arc::new(Box::new(Source(Mutex::new(Some(Box::new(compute))))));
    anchor().apply_op1_arc(source)
}

type Compute = Box<dyn FnOnce() -> Values + Send>;

/// Gives values from elsewhere, once: so a tensor is tracked and its graph ends there.
struct Source(Mutex<Option<Compute>>);

impl CustomOp1 for Source {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Values {
        match self.0.lock().ok().and_then(|mut compute| compute.take()) {
            Some(compute) => compute(),
            None => bail!("a recorded result is made once"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        bail!("a recorded tensor went through an op that the tape does not know; only the tape can go back from here")
    }
}
