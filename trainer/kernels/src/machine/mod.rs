//! The one module with `unsafe`: a checked door to matrix products over slices (our own where the processor has 512-bit
//! vectors, the `gemm` crate's elsewhere), and loops compiled for the processor's wide vectors.
//!
//! A product runs on the calling thread; callers split work into blocks whose sizes depend on shapes alone, so the
//! order of every sum is the same for any number of threads.
#![expect(
    unsafe_code,
    reason = "products take pointers, checked here first; vector instructions are asked for at run time"
)]

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use gemm::Parallelism;
use rayon::prelude::*;

/// A read-only matrix inside a slice: element `(i, j)` is `values[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows of `cols` values, one after another.
    pub(crate) fn rows(values: &'a [f32], cols: usize) -> Self {
        Self::strided(values, values.len() / cols.max(1), cols, cols)
    }

    /// Rows of `cols` values that start `row_stride` apart.
    pub(crate) fn strided(values: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let mat = Self { values, rows, cols, row_stride, col_stride: 1 };
        assert!(span(rows, cols, row_stride) <= values.len(), "a matrix must lie within its slice");
        mat
    }

    /// The transpose, without a copy.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            values: self.values,
        }
    }
}

/// Elements from the first to the last of a matrix with unit column stride, both included.
fn span(rows: usize, cols: usize, row_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols }
}

/// `dst = a b`, or `dst += a b`; row `i` of `dst` starts at `i * dst_stride`.
pub(crate) fn product(dst: &mut [f32], dst_stride: usize, a: Mat<'_>, b: Mat<'_>, accumulate: bool) {
    assert!(a.rows <= 1 || dst_stride >= b.cols, "rows of the result must not overlap");
    assert!(span(a.rows, b.cols, dst_stride) <= dst.len(), "the result must lie within its slice");
    if a.rows == 1 && (b.col_stride == 1 || (b.row_stride == 1 && a.col_stride == 1)) {
        return one_row_product(&mut dst[..b.cols], a, b, accumulate);
    }
    // SAFETY: `dst` was checked just above; it is borrowed mutably, so it overlaps neither factor.
    unsafe { product_at(dst.as_mut_ptr(), dst_stride, a, b, accumulate) }
}

/// [`product`] of one row: what a panel would be packed for is used once, so nothing is packed.
fn one_row_product(dst: &mut [f32], a: Mat<'_>, b: Mat<'_>, accumulate: bool) {
    assert_eq!(a.cols, b.rows, "inner dimensions must agree");
    if !accumulate {
        dst.fill(0.0);
    }
    vectorised(
        #[inline(always)]
        || match b.col_stride == 1 {
            true => {
                for term in 0..a.cols {
                    let (x, row) = (a.values[term * a.col_stride], &b.values[term * b.row_stride..][..dst.len()]);
                    dst.iter_mut().zip(row).for_each(|(y, b)| *y += x * b);
                }
            }
            false => {
                for (column, y) in dst.iter_mut().enumerate() {
                    *y += row_product(&a.values[..a.cols], &b.values[column * b.col_stride..][..a.cols]);
                }
            }
        },
    );
}

/// [`product`] into memory.
///
/// # Safety
/// `a.rows` rows of `b.cols` values, `dst_stride` apart from `dst` on, are writable, no one else's, and part of neither factor.
unsafe fn product_at(dst: *mut f32, dst_stride: usize, a: Mat<'_>, b: Mat<'_>, accumulate: bool) {
    assert_eq!(a.cols, b.rows, "inner dimensions must agree");
    #[cfg(target_arch = "x86_64")]
    if a.cols > 0 && avx512::is_available() {
        // SAFETY: the processor was just asked; factors were checked at construction, the caller vouches for `dst`.
        return unsafe { avx512::product(dst, dst_stride, a, b, accumulate) };
    }
    // SAFETY: as this function's own.
    unsafe { portable_product_at(dst, dst_stride, a, b, accumulate) }
}

/// [`product_at`] by the `gemm` crate, for every processor.
///
/// # Safety
/// As for [`product_at`]; the inner dimensions agree.
unsafe fn portable_product_at(dst: *mut f32, dst_stride: usize, a: Mat<'_>, b: Mat<'_>, accumulate: bool) {
    // SAFETY: `a` and `b` were checked against their slices at construction (a transpose spans the same elements), the
    // caller vouches for `dst`; strides fit isize because slices do.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst,
            1,
            dst_stride as isize,
            accumulate,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            f32::from(u8::from(accumulate)),
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Runs `body` compiled for the widest vectors the processor has; what it calls must be `#[inline(always)]`.
#[inline(always)]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_available() {
        // SAFETY: the processor was just asked whether it has the instructions.
        return unsafe { with_avx512(body) };
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just asked whether it has the instructions.
        return unsafe { with_avx2(body) };
    }
    body()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// `len` values made by `body(block, values)` in blocks of `size`, in parallel if there are several. A block is zero when
/// its task begins: only then is its memory touched, by the thread that fills it, while it is in its cache.
pub(crate) fn build(len: usize, size: usize, body: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    let spare = &mut values.spare_capacity_mut()[..len];
    let task = |(block, part): (usize, &mut [MaybeUninit<f32>])| {
        part.fill(MaybeUninit::new(0.0));
        // SAFETY: every value was written just above.
        body(block, unsafe { part.assume_init_mut() });
    };
    if len <= size {
        task((0, spare));
    } else {
        spare.par_chunks_mut(size.max(1)).enumerate().for_each(task);
    }
    // SAFETY: the blocks cover `len` values, and each task has written all of its block.
    unsafe { values.set_len(len) }
    values
}

/// Rows of the result per task.
const ROWS: usize = 512;
/// Multiply-adds below which a product stays on the calling thread.
const SERIAL: usize = 64 * 1024;
/// Elements of the result above which [`reduce_rows`] splits the result and not the sum.
const WIDE: usize = 64 * 1024;

/// Rows of a block where `rows` are cut for tasks: an even number of blocks of about the same size, no remainder of a tile
/// but at the end.
fn block_rows(rows: usize) -> usize {
    let blocks = rows.div_ceil(ROWS).next_multiple_of(4);
    rows.div_ceil(blocks).next_multiple_of(TILE)
}

/// Rows that a product computes at a time.
const TILE: usize = 12;

/// [`map_rows`] into new memory.
pub(crate) fn new_rows(rows: usize, x: &[f32], w: Mat<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let (inner, outputs) = (w.rows, w.cols);
    let few = rows < ROWS / 8 && outputs >= 2 * ROWS;
    if rows <= 1 || inner == 0 || few || rows * inner * outputs < SERIAL {
        let mut dst = vec![0f32; rows * outputs];
        map_rows(&mut dst, x, w, bias);
        return dst;
    }
    let size = block_rows(rows);
    build(rows * outputs, size * outputs, |block, dst| {
        let x = &x[block * size * inner..][..dst.len() / outputs * inner];
        fill_rows(dst, bias);
        product(dst, outputs, Mat::rows(x, inner), w, bias.is_some());
    })
}

/// `dst[M, N] = x[M, K] w[K, N]` by blocks of rows; each row of `dst` starts from `bias` where given.
pub(crate) fn map_rows(dst: &mut [f32], x: &[f32], w: Mat<'_>, bias: Option<&[f32]>) {
    let (inner, outputs) = (w.rows, w.cols);
    if dst.is_empty() || inner == 0 {
        return fill_rows(dst, bias);
    }
    let rows = dst.len() / outputs;
    if rows == 1 && w.row_stride == 1 {
        return map_one_row(dst, x, w, bias);
    }
    if rows < ROWS / 8 && outputs >= 2 * ROWS {
        return map_few_rows(dst, x, w, bias);
    }
    let block = |(dst, x): (&mut [f32], &[f32])| {
        fill_rows(dst, bias);
        product(dst, outputs, Mat::rows(x, inner), w, bias.is_some());
    };
    if rows * inner * outputs < SERIAL {
        return block((dst, x));
    }
    let size = block_rows(rows);
    dst.par_chunks_mut(size * outputs).zip(x.par_chunks(size * inner)).for_each(block);
}

fn fill_rows(dst: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        dst.chunks_mut(bias.len().max(1)).for_each(|row| row.copy_from_slice(bias));
    }
}

/// One row (decoding) and a weight whose rows lie as they are multiplied: a product of two rows per output, without the
/// copies that pay off for many rows. Reading the weight is what takes the time.
fn map_one_row(dst: &mut [f32], x: &[f32], w: Mat<'_>, bias: Option<&[f32]>) {
    let size = (SERIAL / w.rows).max(1).next_multiple_of(LANES);
    let block = |(block, dst): (usize, &mut [f32])| {
        vectorised(
            #[inline(always)]
            || {
                for (group, y) in dst.chunks_mut(STREAMS).enumerate() {
                    let first = block * size + group * STREAMS;
                    let row = |i: usize| &w.values[(first + i) * w.col_stride..][..w.rows];
                    match y.len() {
                        STREAMS => y.copy_from_slice(&row_products(std::array::from_fn(row), &x[..w.rows])),
                        _ => y.iter_mut().enumerate().for_each(|(i, y)| *y = row_product(row(i), &x[..w.rows])),
                    }
                    if let Some(bias) = bias {
                        y.iter_mut().zip(&bias[first..]).for_each(|(y, bias)| *y += bias);
                    }
                }
            },
        );
    };
    if dst.len() <= size {
        return block((0, dst));
    }
    dst.par_chunks_mut(size).enumerate().for_each(block);
}

/// Rows read side by side: one alone leaves the memory waiting.
const STREAMS: usize = 4;

/// [`row_product`] of several rows with one.
#[inline(always)]
fn row_products(rows: [&[f32]; STREAMS], x: &[f32]) -> [f32; STREAMS] {
    const LANES: usize = 16;
    let mut lanes = [[0f32; LANES]; STREAMS];
    let whole = x.len() / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let x = &x[start..start + LANES];
        for (lanes, row) in lanes.iter_mut().zip(rows) {
            for ((lane, a), b) in lanes.iter_mut().zip(&row[start..start + LANES]).zip(x) {
                *lane += a * b;
            }
        }
    }
    let mut sums = [0f32; STREAMS];
    for ((sum, lanes), row) in sums.iter_mut().zip(lanes).zip(rows) {
        let rest: f32 = row[whole..].iter().zip(&x[whole..]).map(|(a, b)| a * b).sum();
        let quarter = |i: usize| (lanes[i] + lanes[i + 4]) + (lanes[i + 8] + lanes[i + 12]);
        *sum = (quarter(0) + quarter(1)) + (quarter(2) + quarter(3)) + rest;
    }
    sums
}

/// Lanes of a product of rows: enough sums side by side that none waits for the one before.
const LANES: usize = 64;

/// The sum of products of two rows of one length.
#[inline(always)]
fn row_product(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_parts.remainder().iter().zip(b_parts.remainder());
    lanes.iter_mut().zip(rest).for_each(|(lane, (a, b))| *lane += a * b);
    for (a, b) in a_parts.zip(b_parts) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let mut sums = [0f32; LANES / 4];
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = (lanes[i] + lanes[i + 16]) + (lanes[i + 32] + lanes[i + 48]);
    }
    let quarter = |i: usize| (sums[i] + sums[i + 4]) + (sums[i + 8] + sums[i + 12]);
    (quarter(0) + quarter(1)) + (quarter(2) + quarter(3))
}

/// A result whose columns several tasks write.
struct Columns(*mut f32);

// SAFETY: each task writes columns of its own.
unsafe impl Sync for Columns {}

/// Few rows and many outputs (decoding, a large vocabulary): blocks of outputs.
fn map_few_rows(dst: &mut [f32], x: &[f32], w: Mat<'_>, bias: Option<&[f32]>) {
    let (inner, outputs) = (w.rows, w.cols);
    fill_rows(dst, bias);
    let x = Mat::rows(x, inner);
    assert!(span(x.rows, outputs, outputs) <= dst.len(), "the result must lie within its slice");
    let columns = Columns(dst.as_mut_ptr());
    (0..outputs.div_ceil(ROWS)).into_par_iter().for_each(|block| {
        let columns = &columns;
        let start = block * ROWS;
        let w = Mat { values: &w.values[start * w.col_stride..], cols: ROWS.min(outputs - start), ..w };
        // SAFETY: the whole result was checked just above; blocks share no column.
        unsafe { product_at(columns.0.add(start), outputs, x, w, bias.is_some()) }
    });
}

/// `dst[O, I] = (or +=) g[M, O]^T x[M, I]`: the sum over rows, in an order fixed by the shapes.
pub(crate) fn reduce_rows(dst: &mut [f32], g: Mat<'_>, x: Mat<'_>, accumulate: bool) {
    let (outputs, inputs, rows) = (g.cols, x.cols, g.rows);
    if outputs * inputs >= WIDE {
        return reduce_wide(dst, g, x, accumulate);
    }
    if rows <= ROWS || rows * outputs * inputs < SERIAL {
        return product(dst, inputs, g.t(), x, accumulate);
    }
    let size = ROWS.max(rows.div_ceil(8));
    let part = |block: usize| {
        let start = block * size;
        let count = size.min(rows - start);
        let mut part = vec![0f32; outputs * inputs];
        let g = Mat { values: &g.values[start * g.row_stride..], rows: count, ..g };
        let x = Mat { values: &x.values[start * x.row_stride..], rows: count, ..x };
        product(&mut part, inputs, g.t(), x, false);
        part
    };
    let parts: Vec<Vec<f32>> = (0..rows.div_ceil(size)).into_par_iter().map(part).collect();
    if !accumulate {
        dst.fill(0.0);
    }
    for part in parts {
        dst.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
}

/// A result too large to hold several of: each task owns some rows of it and sums over everything.
fn reduce_wide(dst: &mut [f32], g: Mat<'_>, x: Mat<'_>, accumulate: bool) {
    let size = (g.cols.div_ceil(8)).clamp(32, ROWS);
    dst.par_chunks_mut(size * x.cols).enumerate().for_each(|(block, dst)| {
        let g = Mat { values: &g.values[block * size..], cols: dst.len() / x.cols, ..g };
        product(dst, x.cols, g.t(), x, accumulate);
    });
}

/// Runs `body` on one of the threads that ops share their work with: what it calls shares at once, where a thread outside
/// would hand each op over and sleep until it is done.
pub fn on_workers<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| body())
}

/// Tells the allocator to keep freed memory for the next step instead of giving it back to the system page by page: a
/// step frees and takes the same buffers again, and new pages cost more than most ops. It holds for the whole process;
/// where the allocator is not glibc's, nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // `malloc.h`: the size from which a buffer is mapped on its own, and the free memory that is given back.
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        // SAFETY: glibc declares `int mallopt(int, int)`; it takes the allocator's lock and refuses a value by returning 0.
        unsafe {
            // Older versions take no more than 32 MiB. Where none is taken, a trim threshold of our own would only freeze
            // the mapping threshold at its small start.
            if mallopt(M_MMAP_THRESHOLD, 1 << 30) == 1 || mallopt(M_MMAP_THRESHOLD, 32 << 20) == 1 {
                mallopt(M_TRIM_THRESHOLD, i32::MAX);
            }
        }
    }
}
