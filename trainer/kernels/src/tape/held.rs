//! What a record holds of a tensor.

use candle_core::{Device, Shape, Tensor, TensorId, Var};

use super::walk::{Node, Recorded};
use super::{OPEN, Record};

/// What the backward of an op reads. Of everything else it may ask the shape, and whether it is tracked.
#[derive(Clone, Copy)]
pub(crate) struct Needs {
    args: [bool; 3],
    result: bool,
    /// Computing the result costs a pass over memory, and its backward does not read it.
    cheap: bool,
}

impl Needs {
    /// Shapes alone.
    pub(crate) const SHAPES: Self = Self::args([false; 3]);

    /// Some of the arguments.
    pub(crate) const fn args(args: [bool; 3]) -> Self {
        Self { args, result: false, cheap: false }
    }

    /// The result as well.
    pub(crate) const fn and_result(self) -> Self {
        Self { result: true, ..self }
    }

    /// The result may be computed again instead of being held.
    pub(crate) const fn cheap(self) -> Self {
        Self { cheap: true, ..self }
    }

    pub(super) fn arg(&self, index: usize) -> bool {
        self.args[index]
    }

    pub(super) fn result(&self) -> bool {
        self.result
    }

    pub(super) fn is_cheap(&self) -> bool {
        self.cheap
    }
}

/// A tensor of the record.
pub(super) struct Held {
    pub(super) id: TensorId,
    kept: Kept,
}

enum Kept {
    /// A variable, what candle made of variables, or something without a gradient.
    Given(Tensor),
    /// The result of a node.
    Made(Tensor),
    /// Its shape and whether it is tracked: a view of a single number.
    Shape(Tensor),
    /// The result of a cheap node, to be computed again.
    Again(usize),
}

impl Held {
    /// A tensor whose gradient is no node's business.
    pub(super) fn given(tensor: Tensor) -> Self {
        Self { id: tensor.id(), kept: Kept::Given(tensor) }
    }

    /// The tensor, where no node of the record made it.
    pub(super) fn outside(&self) -> Option<&Tensor> {
        match &self.kept {
            Kept::Given(tensor) => Some(tensor),
            _ => None,
        }
    }

    fn is_again(&self) -> bool {
        matches!(self.kept, Kept::Again(_))
    }

    /// The tensor, or what stands for it; `nodes` are those before the one that asks.
    pub(super) fn tensor(&self, nodes: &mut [Node]) -> candle_core::Result<Tensor> {
        match &self.kept {
            Kept::Given(tensor) | Kept::Made(tensor) | Kept::Shape(tensor) => Ok(tensor.clone()),
            Kept::Again(node) => {
                let (before, rest) = nodes.split_at_mut(*node);
                rest[0].again(before)
            }
        }
    }
}

impl Record {
    /// What is to be held of `tensor`; `reads`: a backward reads its values.
    pub(super) fn hold(&self, tensor: &Tensor, reads: bool) -> Held {
        let maker = self.made.get(&tensor.id()).copied();
        let kept = match (reads, maker) {
            (true, Some(node)) if self.nodes[node].is_cheap() => Kept::Again(node),
            (true, Some(_)) => Kept::Made(tensor.clone()),
            (true, None) => Kept::Given(tensor.clone()),
            // Its gradient is told by the tensor itself.
            (false, None) if tensor.track_op() => Kept::Given(tensor.clone()),
            (false, _) => Kept::Shape(shape_of(tensor)),
        };
        Held { id: tensor.id(), kept }
    }

    /// The tensor itself, for a node that hands it to ops which know it by its id.
    pub(super) fn hold_itself(&self, tensor: &Tensor) -> Held {
        let made = self.made.contains_key(&tensor.id());
        let kept = if made { Kept::Made(tensor.clone()) } else { Kept::Given(tensor.clone()) };
        Held { id: tensor.id(), kept }
    }

    /// Notes who made `y`, where a tape records and `y` is tracked.
    pub(super) fn note(y: &Tensor, cheap: bool, op: impl FnOnce(&Self) -> Recorded) {
        Self::note_with(y, false, cheap, op);
    }

    /// [`Record::note`] of an op that may read its result.
    pub(super) fn note_with(y: &Tensor, reads_result: bool, cheap: bool, op: impl FnOnce(&Self) -> Recorded) {
        if !y.track_op() {
            return;
        }
        OPEN.with_borrow_mut(|record| {
            let Some(record) = record.as_mut().filter(|record| !record.aside) else { return };
            let op = op(record);
            // No chains: what is computed again comes from what is held.
            let cheap = cheap && !op.args().any(Held::is_again);
            let kept = if reads_result { Kept::Made(y.clone()) } else { Kept::Shape(shape_of(y)) };
            record.made.insert(y.id(), record.nodes.len());
            record.nodes.push(Node::new(op, Held { id: y.id(), kept }, cheap));
        });
    }
}

/// Shape and tracking of a tensor, without its memory.
fn shape_of(tensor: &Tensor) -> Tensor {
    let number = anchor();
    let number = if tensor.track_op() { number } else { number.detach() };
    number.broadcast_as(tensor.shape().clone()).unwrap_or_else(|_| tensor.clone())
}

thread_local! {
    static ANCHOR: Tensor = Var::zeros(Shape::from(()), candle_core::DType::F32, &Device::Cpu)
        .expect("a number fits into memory")
        .into_inner();
}

/// A tracked number, which tracked results are tied to in place of the tensors they came from.
pub(super) fn anchor() -> Tensor {
    ANCHOR.with(Tensor::clone)
}
