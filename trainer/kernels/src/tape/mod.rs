//! A record of the ops of one forward pass, walked back without the cost of candle's own walk: the first gradient of a
//! tensor is taken as it is, a further one is added in place, and a node is dropped once it is done.
//!
//! The record holds what backwards read and nothing else. A result made while it is open stands in candle's graph as
//! tracked, without the tensors it came from; so memory is freed where the model drops it, or where the walk has passed.
//! Results that are cheap to compute (norms, activations) are not held but computed again on the way back, and
//! [`recompute`] does so with whole parts of a model. Outside a record the same ops stand in candle's graph, whose
//! `backward` gives the same gradients; in one, candle's own ops may make tensors from variables alone.
//!
//! Which thread adds what is fixed by the record, so results do not depend on the number of threads.

mod apply;
mod held;
mod walk;

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Shape, Tensor, TensorId};

use crate::error::{InOp, Result, check_f32};
use walk::{Node, Recorded, Sums};

pub(crate) use apply::{apply_rows, apply_sum, apply1, apply2, apply3, contiguous};
pub(crate) use held::Needs;

const OP: &str = "tape";

thread_local! {
    static OPEN: RefCell<Option<Record>> = const { RefCell::new(None) };
}

/// What is recorded on a thread.
#[derive(Default)]
struct Record {
    nodes: Vec<Node>,
    /// The node that made a tensor.
    made: HashMap<TensorId, usize>,
    /// Nothing is kept: it will be recorded once more.
    aside: bool,
}

/// The ops recorded in one pass.
pub struct Tape {
    nodes: Vec<Node>,
}

impl Tape {
    /// Runs `body` and records the ops of this crate that it calls on this thread.
    pub fn record<R>(body: impl FnOnce() -> R) -> (R, Self) {
        let (result, record) = open(Record::default(), body);
        (result, Self { nodes: record.nodes })
    }

    /// The gradients of `seed * of`, a scalar of this pass, for every variable it depends on. What the pass left in memory
    /// is freed on the way, so `of` is taken.
    ///
    /// # Errors
    /// If `of` is not an f32 scalar on a device this build has code for, a backward fails, or a tensor of this pass went
    /// through an op that is not of this crate.
    pub fn backward(self, of: Tensor, seed: f32) -> Result<GradStore> {
        check_f32(OP, "of", &of)?;
        let mut sums = Sums::default();
        sums.seed(of, seed).in_op(OP)?;
        walk::walk(self.nodes, &mut sums).in_op(OP)?;
        sums.finish().in_op(OP)
    }
}

/// Runs `body` with this record open on this thread.
fn open<R>(record: Record, body: impl FnOnce() -> R) -> (R, Record) {
    let outer = OPEN.replace(Some(record));
    let result = body();
    (result, OPEN.replace(outer).unwrap_or_default())
}

/// Whether results made now stand without the tensors they came from.
fn is_open() -> bool {
    OPEN.with_borrow(Option::is_some)
}

/// Whether nodes are kept.
fn is_recording() -> bool {
    OPEN.with_borrow(|record| record.as_ref().is_some_and(|record| !record.aside))
}

/// `body(x)`; while a tape records, it keeps `x` alone of what the body computes, and runs the body again on the way back.
/// The body must give the same each time. Gradients have the bits they have without.
///
/// # Errors
/// The body's, at once or from [`Tape::backward`].
pub fn recompute<E>(
    x: &Tensor,
    body: impl Fn(&Tensor) -> std::result::Result<Tensor, E> + 'static,
) -> std::result::Result<Tensor, E>
where
    E: std::error::Error + Send + Sync + 'static,
{
    if !is_recording() {
        return body(x);
    }
    let y = open(Record { aside: true, ..Record::default() }, || body(x)).0?;
    if y.id() != x.id() {
        let again = move |x: &Tensor| body(x).map_err(|error| candle_core::Error::wrap(describe(&error)));
        Record::note(&y, false, |record| Recorded::Part(Box::new(again), record.hold_itself(x)));
    }
    Ok(y)
}

/// An error with its causes, as one text.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// `x` in another shape of as many elements, without a copy if it is contiguous.
///
/// # Errors
/// If the number of elements differs.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let x = contiguous(x).in_op("reshape")?;
    let y = x.reshape(shape.into()).in_op("reshape")?;
    // The very same tensor comes back where the shape is the same.
    if y.id() != x.id() {
        Record::note(&y, false, |record| Recorded::View(record.hold(&x, false)));
    }
    Ok(y)
}
