//! The way back: nodes from the last to the first, and the gradients so far.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, TensorId};

use super::Tape;
use super::apply::{Op1, Op2, Op3, run1, run2, run3};
use super::held::Held;
use crate::add::{add_in_place, add_rows_in_place};

/// One op, its arguments and its result.
pub(super) struct Node {
    op: Recorded,
    y: Held,
    cheap: bool,
    /// The result, computed again.
    again: Option<Tensor>,
}

/// Part of a model.
pub(super) type Part = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

pub(super) enum Recorded {
    One(Op1, Held),
    Two(Op2, [Held; 2]),
    Three(Op3, [Held; 3]),
    /// The gradient goes unchanged to each that is tracked.
    Sum([Held; 2], [bool; 2]),
    /// The same values in another shape.
    View(Held),
    /// Rows of a table, by id.
    Rows(Op1, Arc<[u32]>, Held),
    /// Ops that are recorded when the way back comes to them.
    Part(Part, Held),
}

/// Goes from the last node to the first.
pub(super) fn walk(mut nodes: Vec<Node>, sums: &mut Sums) -> Result<()> {
    while let Some(node) = nodes.pop() {
        if let Some(sum) = sums.by_id.remove(&node.y.id) {
            node.backward(sum, sums, &mut nodes)?;
        }
    }
    Ok(())
}

impl Node {
    pub(super) fn new(op: Recorded, y: Held, cheap: bool) -> Self {
        Self { op, y, cheap, again: None }
    }

    pub(super) fn is_cheap(&self) -> bool {
        self.cheap
    }

    /// The result, computed again from what is held; kept until the node itself is done.
    pub(super) fn again(&mut self, before: &mut [Self]) -> Result<Tensor> {
        if let Some(y) = &self.again {
            return Ok(y.clone());
        }
        let y = match &self.op {
            Recorded::One(op, x) => run1(op, &x.tensor(before)?)?,
            Recorded::Two(op, [a, b]) => run2(op, [&a.tensor(before)?, &b.tensor(before)?])?,
            Recorded::Three(op, [a, b, c]) => run3(op, [&a.tensor(before)?, &b.tensor(before)?, &c.tensor(before)?])?,
            _ => candle_core::bail!("this op is not computed again"),
        };
        self.again = Some(y.clone());
        Ok(y)
    }

    fn backward(self, sum: Sum, sums: &mut Sums, before: &mut [Self]) -> Result<()> {
        let Self { op, y, .. } = self;
        let grad = sum.grad;
        match op {
            Recorded::One(op, x) => {
                let dx = op.bwd(&x.tensor(before)?, &y.tensor(before)?, &grad)?;
                sums.add_some(&x, dx)
            }
            Recorded::Two(op, [a, b]) => {
                let (da, db) = op.bwd(&a.tensor(before)?, &b.tensor(before)?, &y.tensor(before)?, &grad)?;
                sums.add_some(&a, da)?;
                sums.add_some(&b, db)
            }
            Recorded::Three(op, [a, b, c]) => {
                let args = [a.tensor(before)?, b.tensor(before)?, c.tensor(before)?];
                let (da, db, dc) = op.bwd(&args[0], &args[1], &args[2], &y.tensor(before)?, &grad)?;
                sums.add_some(&a, da)?;
                sums.add_some(&b, db)?;
                sums.add_some(&c, dc)
            }
            Recorded::Sum(terms, tracked) => {
                let terms = terms.iter().zip(tracked).filter(|(_, tracked)| *tracked);
                for (term, _) in terms {
                    sums.add(term, grad.clone(), false)?;
                }
                Ok(())
            }
            Recorded::View(x) => {
                let shape = x.tensor(before)?.shape().clone();
                sums.add(&x, grad.reshape(shape)?, sum.owned)
            }
            Recorded::Rows(op, ids, table) => match sums.by_id.get(&table.id) {
                Some(Sum { grad: sum, owned: true, .. }) => add_rows_in_place(sum, &ids, &grad.contiguous()?),
                _ => {
                    let dtable = op.bwd(&table.tensor(before)?, &y.tensor(before)?, &grad)?;
                    sums.add_some(&table, dtable)
                }
            },
            Recorded::Part(part, x) => {
                let x = x.tensor(before)?;
                let (y, tape) = Tape::record(|| part(&x));
                drop(x);
                sums.by_id.insert(y?.id(), Sum { grad, ..sum });
                walk(tape.nodes, sums)
            }
        }
    }
}

impl Recorded {
    pub(super) fn args(&self) -> impl Iterator<Item = &Held> {
        let args = match self {
            Self::One(_, x) | Self::View(x) | Self::Rows(_, _, x) | Self::Part(_, x) => std::slice::from_ref(x),
            Self::Two(_, args) | Self::Sum(args, _) => &args[..],
            Self::Three(_, args) => &args[..],
        };
        args.iter()
    }
}

/// A gradient so far.
struct Sum {
    /// Whose it is, where no node will take it.
    of: Option<Tensor>,
    grad: Tensor,
    /// No one else holds the gradient's memory.
    owned: bool,
    order: usize,
}

#[derive(Default)]
pub(super) struct Sums {
    by_id: HashMap<TensorId, Sum>,
    count: usize,
}

impl Sums {
    /// Begins with `seed` for `of`.
    pub(super) fn seed(&mut self, of: Tensor, seed: f32) -> Result<()> {
        let first = Tensor::full(seed, of.shape(), of.device())?;
        self.add(&Held::given(of), first, true)
    }

    fn add_some(&mut self, of: &Held, grad: Option<Tensor>) -> Result<()> {
        grad.map_or(Ok(()), |grad| self.add(of, grad, true))
    }

    fn add(&mut self, of: &Held, grad: Tensor, owned: bool) -> Result<()> {
        let Some(sum) = self.by_id.get_mut(&of.id) else {
            self.count += 1;
            let sum = Sum { of: of.outside().cloned(), grad, owned, order: self.count };
            self.by_id.insert(of.id, sum);
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
    pub(super) fn finish(self) -> Result<GradStore> {
        let mut rest: Vec<(Tensor, Sum)> = Vec::with_capacity(self.by_id.len());
        for mut sum in self.by_id.into_values() {
            match sum.of.take() {
                Some(of) => rest.push((of, sum)),
                None => candle_core::bail!("a gradient is left of a tensor that no node took"),
            }
        }
        rest.sort_by_key(|(_, sum)| sum.order);
        let mut store = GradStore::default();
        let (variables, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(of, _)| of.is_variable());
        for (of, sum) in variables {
            // Whoever adds to it must not change another's.
            store.insert(&of, if sum.owned { sum.grad } else { sum.grad.copy()? });
        }
        for (of, sum) in others {
            store.extend(of.apply_op1(Seed(sum.grad))?.backward()?)?;
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

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
