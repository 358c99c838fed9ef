//! CPU code: one task per batch element, blocks of queries within it; the backward recomputes the weights from the
//! saved log-sums, so no `[T, S]` matrix outlives its block.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{shaped, with_strided, with_values};
use crate::machine::{Mat, product, vectorised};
use crate::simd::{exp, sum_of};
use crate::softmax::cpu::softmax_in_place;

/// Queries per block: with few hundred keys its weights stay in the second-level cache.
const QUERIES: usize = 64;
/// Rows of scores start at multiples of it, and what is computed of them is one: no element is left to a scalar loop.
const LANES: usize = 16;

/// The sizes of one attention, and whether heads come before tokens in memory.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) groups: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) width: usize,
    pub(super) heads_first: bool,
}

/// Where the rows of a tensor of heads lie.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    batch: usize,
    head: usize,
    token: usize,
}

impl Place {
    /// Of a given tensor.
    fn of(layout: &Layout, shape: &Heads) -> Self {
        let stride = layout.stride();
        let (head, token) = if shape.heads_first { (stride[1], stride[2]) } else { (shape.width, stride[1]) };
        Self { start: layout.start_offset(), batch: stride[0], head, token }
    }

    /// Of one batch element of a new contiguous tensor of `heads` heads.
    fn fresh(shape: &Heads, heads: usize, tokens: usize) -> Self {
        let (head, token) =
            if shape.heads_first { (tokens * shape.width, shape.width) } else { (shape.width, heads * shape.width) };
        Self { start: 0, batch: heads * tokens * shape.width, head, token }
    }

    fn at(&self, batch: usize, head: usize, token: usize) -> usize {
        self.start + batch * self.batch + head * self.head + token * self.token
    }
}

/// A tensor of heads to read.
#[derive(Clone, Copy)]
struct Operand<'a> {
    values: &'a [f32],
    place: Place,
    width: usize,
}

impl<'a> Operand<'a> {
    fn new(values: &'a [f32], layout: &Layout, shape: &Heads) -> Self {
        Self { values, place: Place::of(layout, shape), width: shape.width }
    }

    /// `count` rows of one head from `token` on.
    fn rows(&self, batch: usize, head: usize, token: usize, count: usize) -> Mat<'a> {
        Mat::strided(&self.values[self.place.at(batch, head, token)..], count, self.width, self.place.token)
    }

    fn row(&self, batch: usize, head: usize, token: usize) -> &'a [f32] {
        &self.values[self.place.at(batch, head, token)..][..self.width]
    }
}

pub(super) struct Attention {
    shape: Heads,
    scale: f32,
    /// Keys before the first query; none where every key is seen.
    offset: Option<usize>,
    /// `[B, S]`, row-major.
    documents: Option<Vec<u32>>,
    /// `[B, H, T]`: log of the sum of exponentials of each query's scores.
    log_sums: OnceLock<Vec<f32>>,
}

/// A block of queries of one head.
#[derive(Clone, Copy)]
struct Block {
    batch: usize,
    head: usize,
    group: usize,
    first: usize,
    count: usize,
    /// Keys that any query of the block sees.
    keys: usize,
    /// Between rows of scores.
    stride: usize,
}

impl Attention {
    pub(super) fn new(shape: Heads, scale: f32, offset: Option<usize>, documents: Option<Vec<u32>>) -> Self {
        Self { shape, scale, offset, documents, log_sums: OnceLock::new() }
    }

    /// Blocks of one batch element, head by head.
    fn blocks(&self, batch: usize) -> impl Iterator<Item = Block> {
        let Heads { heads, groups, queries, .. } = self.shape;
        let keys = move |last: usize| self.seen(last);
        (0..heads).flat_map(move |head| {
            (0..queries).step_by(QUERIES).map(move |first| {
                let count = QUERIES.min(queries - first);
                let keys = keys(first + count - 1);
                let stride = keys.next_multiple_of(LANES);
                Block { batch, head, group: head / (heads / groups), first, count, keys, stride }
            })
        })
    }

    /// Keys up to the query's own position.
    fn seen(&self, query: usize) -> usize {
        self.offset.map_or(self.shape.keys, |offset| query + offset + 1)
    }

    /// The documents of one batch element.
    fn documents(&self, batch: usize) -> Option<&[u32]> {
        self.documents.as_ref().map(|documents| &documents[batch * self.shape.keys..][..self.shape.keys])
    }

    /// Calls `body(row, scores)` for every row that is not padding after scaling and masking: the scores the query sees
    /// and some of minus infinity. The rest of the row, and rows of padding, become zero.
    #[inline(always)]
    fn for_rows(&self, block: Block, scores: &mut [f32], mut body: impl FnMut(usize, &mut [f32])) {
        let documents = self.documents(block.batch);
        for (i, row) in scores.chunks_exact_mut(block.stride).enumerate() {
            let query = block.first + i;
            let seen = self.seen(query);
            let own = documents.map_or(1, |documents| documents[query]);
            if own == 0 {
                row.fill(0.0);
                continue;
            }
            let (row, rest) = row.split_at_mut(seen.next_multiple_of(LANES));
            rest.fill(0.0);
            row[seen..].fill(f32::NEG_INFINITY);
            match documents {
                Some(documents) => {
                    for (x, &document) in row.iter_mut().zip(&documents[..seen]) {
                        *x = if document == own { *x * self.scale } else { f32::NEG_INFINITY };
                    }
                }
                None => row.iter_mut().for_each(|x| *x *= self.scale),
            }
            body(i, row);
        }
    }

    fn forward(&self, q: Operand<'_>, k: Operand<'_>, v: Operand<'_>) -> Vec<f32> {
        let Heads { batch, heads, queries, keys, width, .. } = self.shape;
        let place = Place::fresh(&self.shape, heads, queries);
        let mut out = vec![0f32; batch * heads * queries * width];
        let mut log_sums = vec![0f32; batch * heads * queries];
        let task = |batch: usize, out: &mut [f32], log_sums: &mut [f32]| {
            let mut scores = vec![0f32; QUERIES * keys.next_multiple_of(LANES)];
            for block in self.blocks(batch) {
                let scores = &mut scores[..block.count * block.stride];
                let log_sums = &mut log_sums[block.head * queries + block.first..];
                let rows = q.rows(batch, block.head, block.first, block.count);
                product(scores, block.stride, rows, k.rows(batch, block.group, 0, block.keys).t(), false);
                vectorised(
                    #[inline(always)]
                    || {
                        self.for_rows(
                            block,
                            scores,
                            #[inline(always)]
                            |i, row| log_sums[i] = softmax_in_place(row),
                        );
                    },
                );
                let out = &mut out[place.at(0, block.head, block.first)..];
                product(
                    out,
                    place.token,
                    Mat::strided(scores, block.count, block.keys, block.stride),
                    v.rows(batch, block.group, 0, block.keys),
                    false,
                );
            }
        };
        let (out_size, sums_size) = (place.batch.max(1), (heads * queries).max(1));
        if batch <= 1 {
            task(0, &mut out, &mut log_sums);
        } else {
            let parts = out.par_chunks_mut(out_size).zip(log_sums.par_chunks_mut(sums_size));
            parts.enumerate().for_each(|(batch, (out, log_sums))| task(batch, out, log_sums));
        }
        // A second forward of the same op would save the same numbers.
        let _ = self.log_sums.set(log_sums);
        out
    }

    fn backward(&self, pass: &Pass<'_>) -> Result<[Vec<f32>; 3]> {
        let Some(log_sums) = self.log_sums.get() else { bail!("backward before forward") };
        let Heads { batch, heads, groups, queries, keys, .. } = self.shape;
        let (to_q, to_k) = (Place::fresh(&self.shape, heads, queries), Place::fresh(&self.shape, groups, keys));
        let mut dq = vec![0f32; batch * to_q.batch];
        let (mut dk, mut dv) = (vec![0f32; batch * to_k.batch], vec![0f32; batch * to_k.batch]);
        let task = |batch: usize, grads: Grads<'_>| {
            let log_sums = &log_sums[batch * heads * queries..];
            let size = QUERIES * keys.next_multiple_of(LANES);
            let (mut weights, mut slopes) = (vec![0f32; size], vec![0f32; size]);
            for block in self.blocks(batch) {
                let size = block.count * block.stride;
                let (weights, slopes) = (&mut weights[..size], &mut slopes[..size]);
                self.block_slopes(block, pass, log_sums, weights, slopes);
                let (q_at, k_at) = (to_q.at(0, block.head, block.first), to_k.at(0, block.group, 0));
                let dense = |values| Mat::strided(values, block.count, block.keys, block.stride);
                let (weights, slopes) = (dense(weights), dense(slopes));
                let grad = pass.grad.rows(batch, block.head, block.first, block.count);
                let q = pass.q.rows(batch, block.head, block.first, block.count);
                product(&mut grads.dv[k_at..], to_k.token, weights.t(), grad, true);
                product(&mut grads.dk[k_at..], to_k.token, slopes.t(), q, true);
                let k = pass.k.rows(batch, block.group, 0, block.keys);
                product(&mut grads.dq[q_at..], to_q.token, slopes, k, false);
            }
        };
        if batch <= 1 {
            task(0, Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv });
        } else {
            let (q_size, k_size) = (to_q.batch.max(1), to_k.batch.max(1));
            (dq.par_chunks_mut(q_size), dk.par_chunks_mut(k_size), dv.par_chunks_mut(k_size))
                .into_par_iter()
                .enumerate()
                .for_each(|(batch, (dq, dk, dv))| task(batch, Grads { dq, dk, dv }));
        }
        Ok([dq, dk, dv])
    }

    /// The block's attention weights, and the gradients of its unscaled scores.
    fn block_slopes(&self, block: Block, pass: &Pass<'_>, log_sums: &[f32], weights: &mut [f32], slopes: &mut [f32]) {
        let Block { batch, head, group, first, count, keys, stride } = block;
        product(weights, stride, pass.q.rows(batch, head, first, count), pass.k.rows(batch, group, 0, keys).t(), false);
        product(
            slopes,
            stride,
            pass.grad.rows(batch, head, first, count),
            pass.v.rows(batch, group, 0, keys).t(),
            false,
        );
        let log_sums = &log_sums[head * self.shape.queries + first..];
        let slopes_of = |i: usize| i * stride..(i + 1) * stride;
        vectorised(
            #[inline(always)]
            || {
                self.for_rows(
                    block,
                    weights,
                    #[inline(always)]
                    |i, row| {
                        let query = first + i;
                        let (out, grad) = (pass.out.row(batch, head, query), pass.grad.row(batch, head, query));
                        let mean = sum_of(out, grad, |out, grad| out * grad);
                        let log_sum = log_sums[i];
                        for (d, p) in slopes[slopes_of(i)].iter_mut().zip(row) {
                            *p = exp(*p - log_sum);
                            *d = *p * (*d - mean) * self.scale;
                        }
                    },
                );
                // A key without weight has no slope, also where no row was given to the body.
                for (p, d) in weights.iter().zip(slopes) {
                    *d = if *p > 0.0 { *d } else { 0.0 };
                }
            },
        );
    }
}

/// What a backward reads.
struct Pass<'a> {
    q: Operand<'a>,
    k: Operand<'a>,
    v: Operand<'a>,
    out: Operand<'a>,
    grad: Operand<'a>,
}

/// What a backward writes for one batch element.
struct Grads<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.forward(
            Operand::new(s1.as_slice()?, l1, &self.shape),
            Operand::new(s2.as_slice()?, l2, &self.shape),
            Operand::new(s3.as_slice()?, l3, &self.shape),
        );
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let shape = &self.shape;
        let [dq, dk, dv] = with_strided(q, |q, q_layout| {
            with_strided(k, |k, k_layout| {
                with_strided(v, |v, v_layout| {
                    with_values(out, |out_values| {
                        with_values(&grad, |grad_values| {
                            let fresh = Place::fresh(shape, shape.heads, shape.queries);
                            let dense = |values| Operand { values, place: fresh, width: shape.width };
                            self.backward(&Pass {
                                q: Operand::new(q, q_layout, shape),
                                k: Operand::new(k, k_layout, shape),
                                v: Operand::new(v, v_layout, shape),
                                out: dense(out_values),
                                grad: dense(grad_values),
                            })
                        })
                    })
                })
            })
        })??????;
        let give = |values, of: &Tensor| if of.track_op() { shaped(values, of).map(Some) } else { Ok(None) };
        Ok((give(dq, q)?, give(dk, k)?, give(dv, v)?))
    }
}
