//! Matrix products with 512-bit vectors: the right factor is packed into panels of columns, the left one is read where
//! it lies, so small products, of which a small model has many, pay little beyond their arithmetic.
//!
//! Every element is one chain of fused multiply-adds over `INNER` terms at a time; how a caller splits rows or columns
//! changes no bit.

use std::arch::x86_64::{
    __m512, __mmask16, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};
use std::cell::RefCell;

use super::Mat;

/// Terms summed in registers before they are added to the result; a panel of them stays in the first-level cache.
const INNER: usize = 256;
/// Values of one vector.
const LANES: usize = 16;
/// Vectors side by side in a panel.
const VECTORS: usize = 2;

thread_local! {
    static PANEL: RefCell<Vec<f32>> = RefCell::new(vec![0.0; INNER * VECTORS * LANES]);
}

/// Whether the processor has the instructions.
pub(super) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

/// `dst = a b`, or `dst += a b`.
///
/// # Safety
/// The processor must have AVX-512F; the matrices must lie within their slices, `dst` must span
/// `(a.rows - 1) * dst_stride + b.cols` values.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn product(dst: *mut f32, dst_stride: usize, a: Mat<'_>, b: Mat<'_>, accumulate: bool) {
    if a.rows == 0 {
        return;
    }
    PANEL.with_borrow_mut(|panel| {
        for first in (0..a.cols).step_by(INNER) {
            let depth = INNER.min(a.cols - first);
            let add = accumulate || first > 0;
            let mut column = 0;
            while column < b.cols {
                let columns = (b.cols - column).min(VECTORS * LANES);
                let width = if columns > LANES { VECTORS * LANES } else { LANES };
                pack(panel, width, b, (first, depth), (column, columns));
                // SAFETY: the rows and columns of `dst` and `a` that the block reads and writes are within the spans
                // the caller vouches for; the panel holds `depth` rows of `width` values.
                unsafe {
                    let block = Block {
                        depth,
                        a: a.values.as_ptr().add(first * a.col_stride),
                        a_strides: (a.row_stride, a.col_stride),
                        panel: panel.as_ptr(),
                        dst: dst.add(column),
                        dst_stride,
                        last: mask(columns - (width - LANES)),
                        add,
                    };
                    if width > LANES { block.rows::<VECTORS>(a.rows) } else { block.rows::<1>(a.rows) }
                }
                column += columns;
            }
        }
    });
}

fn mask(lanes: usize) -> __mmask16 {
    if lanes >= LANES { !0 } else { (1 << lanes) - 1 }
}

/// Copies `depth` rows of some columns of `b` into rows of `width` values, the missing ones zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn pack(
    panel: &mut [f32],
    width: usize,
    b: Mat<'_>,
    (first, depth): (usize, usize),
    (column, columns): (usize, usize),
) {
    assert!(b.col_stride == 1 || b.row_stride == 1, "a matrix or its transpose must have rows of neighbours");
    let values = &b.values[first * b.row_stride + column * b.col_stride..];
    if b.col_stride == 1 {
        for (k, row) in panel.chunks_exact_mut(width).take(depth).enumerate() {
            row[..columns].copy_from_slice(&values[k * b.row_stride..][..columns]);
            row[columns..].fill(0.0);
        }
        return;
    }
    let mut tile = [[0f32; LANES]; LANES];
    for (side, k) in (0..width).step_by(LANES).flat_map(|side| (0..depth).step_by(LANES).map(move |k| (side, k))) {
        let (count, terms) = (columns.saturating_sub(side).min(LANES), LANES.min(depth - k));
        for (j, row) in tile.iter_mut().enumerate() {
            match j < count {
                true => row[..terms].copy_from_slice(&values[(side + j) * b.col_stride + k..][..terms]),
                false => row.fill(0.0),
            }
        }
        turn(&mut tile);
        for (row, turned) in panel[k * width..].chunks_exact_mut(width).zip(&tile).take(terms) {
            row[side..side + LANES].copy_from_slice(turned);
        }
    }
}

/// Transposes a tile in registers: pairs, then quads, then the four quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn turn(tile: &mut [[f32; LANES]; LANES]) {
    // SAFETY: each row holds 16 values.
    let rows = tile.each_ref().map(|row| unsafe { _mm512_loadu_ps(row.as_ptr()) });
    let mut quads = [_mm512_setzero_ps(); LANES];
    for g in (0..LANES).step_by(4) {
        let low = [_mm512_unpacklo_ps(rows[g], rows[g + 1]), _mm512_unpacklo_ps(rows[g + 2], rows[g + 3])];
        let high = [_mm512_unpackhi_ps(rows[g], rows[g + 1]), _mm512_unpackhi_ps(rows[g + 2], rows[g + 3])];
        for (c, [a, b]) in [low, high].into_iter().enumerate() {
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            quads[g + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            quads[g + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    for c in 0..4 {
        let [a, b, d, e] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let even = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(d, e));
        let odd = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(d, e));
        let turned = [
            (c, _mm512_shuffle_f32x4::<0x88>(even.0, even.1)),
            (4 + c, _mm512_shuffle_f32x4::<0x88>(odd.0, odd.1)),
            (8 + c, _mm512_shuffle_f32x4::<0xdd>(even.0, even.1)),
            (12 + c, _mm512_shuffle_f32x4::<0xdd>(odd.0, odd.1)),
        ];
        for (row, values) in turned {
            // SAFETY: the row holds 16 values.
            unsafe { _mm512_storeu_ps(tile[row].as_mut_ptr(), values) }
        }
    }
}

/// One panel of columns and everything it is multiplied with.
#[derive(Clone, Copy)]
struct Block {
    depth: usize,
    a: *const f32,
    /// Between rows, between columns.
    a_strides: (usize, usize),
    panel: *const f32,
    dst: *mut f32,
    dst_stride: usize,
    /// The lanes of the last vector that `dst` has.
    last: __mmask16,
    add: bool,
}

impl Block {
    /// All rows, as many at a time as registers hold.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn rows<const N: usize>(self, rows: usize) {
        let mut row = 0;
        // SAFETY: as for the product; each call covers rows below `rows`.
        unsafe {
            while rows - row >= 12 {
                self.tile::<12, N>(row);
                row += 12;
            }
            if rows - row >= 8 {
                self.tile::<8, N>(row);
                row += 8;
            }
            if rows - row >= 4 {
                self.tile::<4, N>(row);
                row += 4;
            }
            if rows - row >= 2 {
                self.tile::<2, N>(row);
                row += 2;
            }
            if rows - row >= 1 {
                self.tile::<1, N>(row);
            }
        }
    }

    /// `M` rows by `N` vectors of columns, from `row` on.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const M: usize, const N: usize>(self, row: usize) {
        // SAFETY: as for the product.
        unsafe {
            let mut sums: [[__m512; N]; M] = [[_mm512_setzero_ps(); N]; M];
            let (row_stride, col_stride) = self.a_strides;
            let (mut a, mut panel) = (self.a.add(row * row_stride), self.panel);
            for _ in 0..self.depth {
                let mut b = [_mm512_setzero_ps(); N];
                for (n, b) in b.iter_mut().enumerate() {
                    *b = _mm512_loadu_ps(panel.add(n * LANES));
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*a.add(m * row_stride));
                    for (sum, &b) in sums.iter_mut().zip(&b) {
                        *sum = _mm512_fmadd_ps(a, b, *sum);
                    }
                }
                // After the last term they may stand beyond their slices; they are not read there.
                a = a.wrapping_add(col_stride);
                panel = panel.wrapping_add(N * LANES);
            }
            for (m, sums) in sums.iter().enumerate() {
                let dst = self.dst.add((row + m) * self.dst_stride);
                for (n, &sum) in sums.iter().enumerate() {
                    let (dst, mask) = (dst.add(n * LANES), if n + 1 == N { self.last } else { !0 });
                    let whole = if self.add { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, dst), sum) } else { sum };
                    _mm512_mask_storeu_ps(dst, mask, whole);
                }
            }
        }
    }
}
