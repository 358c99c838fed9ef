//! A record of the ops of one forward pass, walked back without the cost of candle's own walk: the first gradient of a
//! tensor is taken as it is, a further one is added in place, and a node is dropped once it is done.
//!
//! Candle records the same ops, so its `backward` gives the same gradients; a tensor that candle made by an op of its own
//! is left to that walk. Which thread adds what is fixed by the record, so results do not depend on the number of threads.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor, TensorId};

use crate::add::{add_in_place, add_rows_in_place};
use crate::error::{InOp, Result, check_f32};

const OP: &str = "tape";

thread_local! {
    static OPEN: RefCell<Option<Vec<Node>>> = const { RefCell::new(None) };
}

/// The ops recorded in one pass.
pub struct Tape {
    nodes: Vec<Node>,
}

/// One op, its arguments and its result.
struct Node {
    op: Recorded,
    y: Tensor,
}

enum Recorded {
    One(Arc<Box<dyn CustomOp1 + Send + Sync>>, Tensor),
    Two(Arc<Box<dyn CustomOp2 + Send + Sync>>, [Tensor; 2]),
    Three(Arc<Box<dyn CustomOp3 + Send + Sync>>, [Tensor; 3]),
    /// The gradient goes to both, unchanged.
    Sum([Tensor; 2]),
    /// The same values in another shape.
    View(Tensor),
    /// Rows of a table, by id.
    Rows(Arc<Box<dyn CustomOp1 + Send + Sync>>, Arc<[u32]>, Tensor),
}

impl Tape {
    /// Runs `body` and records the ops of this crate that it calls on this thread.
    pub fn record<R>(body: impl FnOnce() -> R) -> (R, Self) {
        let outer = OPEN.replace(Some(Vec::new()));
        let result = body();
        let nodes = OPEN.replace(outer).unwrap_or_default();
        (result, Self { nodes })
    }

    /// The gradients of `seed * of`, a scalar of this pass, for every variable it depends on.
    ///
    /// # Errors
    /// If `of` is not an f32 scalar on a device this build has code for, or a backward fails.
    pub fn backward(self, of: &Tensor, seed: f32) -> Result<GradStore> {
        check_f32(OP, "of", of)?;
        let mut sums = Sums::default();
        let first = Tensor::full(seed, of.shape(), of.device()).in_op(OP)?;
        sums.add(of, first, true).in_op(OP)?;
        for Node { op, y } in self.nodes.into_iter().rev() {
            if let Some(sum) = sums.by_id.remove(&y.id()) {
                op.backward(&y, sum, &mut sums).in_op(OP)?;
            }
        }
        sums.finish().in_op(OP)
    }
}

impl Recorded {
    fn backward(self, y: &Tensor, Sum { grad, owned, .. }: Sum, sums: &mut Sums) -> candle_core::Result<()> {
        match self {
            Self::One(op, x) => sums.add_some(&x, op.bwd(&x, y, &grad)?),
            Self::Two(op, [a, b]) => {
                let (da, db) = op.bwd(&a, &b, y, &grad)?;
                sums.add_some(&a, da)?;
                sums.add_some(&b, db)
            }
            Self::Three(op, [a, b, c]) => {
                let (da, db, dc) = op.bwd(&a, &b, &c, y, &grad)?;
                sums.add_some(&a, da)?;
                sums.add_some(&b, db)?;
                sums.add_some(&c, dc)
            }
            Self::Sum(terms) => {
                for term in terms.iter().filter(|term| term.track_op()) {
                    sums.add(term, grad.clone(), false)?;
                }
                Ok(())
            }
            Self::View(x) => sums.add(&x, grad.reshape(x.shape())?, owned),
            Self::Rows(op, ids, table) => match sums.by_id.get(&table.id()) {
                Some(Sum { grad: sum, owned: true, .. }) => add_rows_in_place(sum, &ids, &grad.contiguous()?),
                _ => sums.add_some(&table, op.bwd(&table, y, &grad)?),
            },
        }
    }
}

/// A gradient so far.
struct Sum {
    of: Tensor,
    grad: Tensor,
    /// No one else holds the gradient's memory.
    owned: bool,
    order: usize,
}

#[derive(Default)]
struct Sums {
    by_id: HashMap<TensorId, Sum>,
    count: usize,
}

impl Sums {
    fn add_some(&mut self, of: &Tensor, grad: Option<Tensor>) -> candle_core::Result<()> {
        grad.map_or(Ok(()), |grad| self.add(of, grad, true))
    }

    fn add(&mut self, of: &Tensor, grad: Tensor, owned: bool) -> candle_core::Result<()> {
        let Some(sum) = self.by_id.get_mut(&of.id()) else {
            self.count += 1;
            self.by_id.insert(of.id(), Sum { of: of.clone(), grad, owned, order: self.count });
            return Ok(());
        };
        match (sum.owned, owned) {
            (true, _) => add_in_place(&sum.grad, &grad)?,
            (false, true) => {
                add_in_place(&grad, &sum.grad)?;
                sum.grad = grad;
            }
            (false, false) => sum.grad = (&sum.grad + &grad)?.detach(),
        }
        sum.owned = true;
        Ok(())
    }

    /// The variables' gradients; what is left of other tensors goes back the way candle recorded.
    fn finish(self) -> candle_core::Result<GradStore> {
        let mut rest: Vec<Sum> = self.by_id.into_values().collect();
        rest.sort_by_key(|sum| sum.order);
        let mut store = GradStore::default();
        let (variables, others): (Vec<Sum>, Vec<Sum>) = rest.into_iter().partition(|sum| sum.of.is_variable());
        for sum in variables {
            store.insert(&sum.of, sum.grad);
        }
        for sum in others {
            store.extend(sum.of.apply_op1(Seed(sum.grad))?.backward()?)?;
        }
        Ok(store)
    }
}

/// A scalar whose gradient with respect to its argument is given.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

fn note(y: &Tensor, op: impl FnOnce() -> Recorded) {
    if y.track_op() {
        OPEN.with_borrow_mut(|nodes| {
            if let Some(nodes) = nodes {
                nodes.push(Node { op: op(), y: y.clone() });
            }
        });
    }
}

/// Records `y = a + b`.
pub(crate) fn note_sum(a: &Tensor, b: &Tensor, y: &Tensor) {
    note(y, || Recorded::Sum([a.clone(), b.clone()]));
}

/// Applies and records an op of one tensor.
pub(crate) fn apply1(x: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> candle_core::Result<Tensor> {
    let op: Arc<Box<dyn CustomOp1 + Send + Sync>> = Arc::new(Box::new(op));
    let y = x.apply_op1_arc(op.clone())?;
    note(&y, || Recorded::One(op, x.clone()));
    Ok(y)
}

/// Applies and records an op of two tensors.
pub(crate) fn apply2(
    a: &Tensor,
    b: &Tensor,
    op: impl CustomOp2 + Send + Sync + 'static,
) -> candle_core::Result<Tensor> {
    let op: Arc<Box<dyn CustomOp2 + Send + Sync>> = Arc::new(Box::new(op));
    let y = a.apply_op2_arc(b, op.clone())?;
    note(&y, || Recorded::Two(op, [a.clone(), b.clone()]));
    Ok(y)
}

/// Applies and records an op of three tensors.
pub(crate) fn apply3(
    [a, b, c]: [&Tensor; 3],
    op: impl CustomOp3 + Send + Sync + 'static,
) -> candle_core::Result<Tensor> {
    let op: Arc<Box<dyn CustomOp3 + Send + Sync>> = Arc::new(Box::new(op));
    let y = a.apply_op3_arc(b, c, op.clone())?;
    note(&y, || Recorded::Three(op, [a.clone(), b.clone(), c.clone()]));
    Ok(y)
}

/// Applies and records a lookup of rows.
pub(crate) fn apply_rows(
    table: &Tensor,
    ids: &[u32],
    op: impl CustomOp1 + Send + Sync + 'static,
) -> candle_core::Result<Tensor> {
    let op: Arc<Box<dyn CustomOp1 + Send + Sync>> = Arc::new(Box::new(op));
    let y = table.apply_op1_arc(op.clone())?;
    note(&y, || Recorded::Rows(op, ids.into(), table.clone()));
    Ok(y)
}

/// `x` in another shape of as many elements, without a copy if it is contiguous.
///
/// # Errors
/// If the number of elements differs.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let x = x.contiguous().in_op("reshape")?;
    let y = x.reshape(shape.into()).in_op("reshape")?;
    // The very same tensor comes back where the shape is the same.
    if y.id() != x.id() {
        note(&y, || Recorded::View(x));
    }
    Ok(y)
}
