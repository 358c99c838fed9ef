//! Both kernels of a product, and the ways to cut one, against a plain sum in f64.

use super::*;

/// `rows * cols` values between -1 and 1 that follow no pattern of the shapes.
fn values(rows: usize, cols: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..rows * cols).map(|_| next()).collect()
}

/// A factor stored as it is used, or as its transpose.
struct Factor {
    values: Vec<f32>,
    rows: usize,
    cols: usize,
    turned: bool,
}

impl Factor {
    fn new(rows: usize, cols: usize, turned: bool, seed: u32) -> Self {
        Self { values: values(rows, cols, seed), rows, cols, turned }
    }

    fn mat(&self) -> Mat<'_> {
        match self.turned {
            true => Mat::strided(&self.values, self.cols, self.rows, self.rows).t(),
            false => Mat::strided(&self.values, self.rows, self.cols, self.cols),
        }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        f64::from(if self.turned { self.values[col * self.rows + row] } else { self.values[row * self.cols + col] })
    }
}

fn plain(a: &Factor, b: &Factor, start: &[f32]) -> Vec<f64> {
    let sum = |at: usize| {
        let (row, col) = (at / b.cols, at % b.cols);
        f64::from(start[at]) + (0..a.cols).map(|k| a.at(row, k) * b.at(k, col)).sum::<f64>()
    };
    (0..a.rows * b.cols).map(sum).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f64], inner: usize) {
    let bound = 1e-6 * (inner as f64).sqrt().max(1.0) * 4.0;
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= bound, "{what}, value {at}: {found}, not {expected}");
    }
}

fn check_product(rows: usize, inner: usize, cols: usize, (turned_a, turned_b, accumulate): (bool, bool, bool)) {
    let (a, b) = (Factor::new(rows, inner, turned_a, 3), Factor::new(inner, cols, turned_b, 5));
    let start = if accumulate { values(rows, cols, 7) } else { vec![0.0; rows * cols] };
    let expected = plain(&a, &b, &start);
    let what = format!("{rows} x {inner} x {cols}, {turned_a} {turned_b} {accumulate}");
    // Garbage must not count unless it is asked for.
    let first = if accumulate { start } else { vec![f32::MAX; rows * cols] };
    let (mut own, mut portable) = (first.clone(), first);
    product(&mut own, cols, a.mat(), b.mat(), accumulate);
    assert_close(&what, &own, &expected, inner);
    // SAFETY: `portable` holds `rows` rows of `cols` values and nothing else refers to it.
    unsafe { portable_product_at(portable.as_mut_ptr(), cols, a.mat(), b.mat(), accumulate) }
    assert_close(&format!("portable {what}"), &portable, &expected, inner);
}

const WAYS: [(bool, bool, bool); 8] = [
    (false, false, false),
    (false, false, true),
    (false, true, false),
    (false, true, true),
    (true, false, false),
    (true, false, true),
    (true, true, false),
    (true, true, true),
];

#[test]
fn products_equal_plain_sums_at_every_edge_of_a_tile() {
    for way in WAYS {
        for rows in 1..=25 {
            check_product(rows, 9, 33, way);
        }
        for cols in [1, 15, 16, 17, 31, 32, 33, 47, 64, 65] {
            check_product(13, 17, cols, way);
        }
        for inner in [1, 255, 256, 257, 511, 600] {
            check_product(5, inner, 35, way);
        }
    }
}

#[test]
fn rows_mapped_in_blocks_equal_plain_sums() {
    for (rows, inner, outputs) in [(1, 300, 1500), (40, 20, 2000), (700, 40, 30), (1300, 64, 96), (3, 4, 5)] {
        for turned in [false, true] {
            let (x, w) = (Factor::new(rows, inner, false, 11), Factor::new(inner, outputs, turned, 13));
            let bias = values(1, outputs, 17);
            let start: Vec<f32> = (0..rows).flat_map(|_| bias.iter().copied()).collect();
            let mut found = vec![f32::MAX; rows * outputs];
            map_rows(&mut found, &x.values, w.mat(), Some(&bias));
            assert_close(&format!("{rows} x {inner} x {outputs}"), &found, &plain(&x, &w, &start), inner);
        }
    }
}

#[test]
fn sums_over_rows_equal_plain_sums_whether_rows_or_results_are_split() {
    for (rows, outputs, inputs) in [(7, 5, 3), (600, 40, 24), (5000, 16, 8), (90, 300, 260), (20, 1100, 64)] {
        for accumulate in [false, true] {
            let (g, x) = (values(rows, outputs, 19), Factor::new(rows, inputs, false, 23));
            let turned = Factor { values: g.clone(), rows: outputs, cols: rows, turned: true };
            let start = if accumulate { values(outputs, inputs, 29) } else { vec![0.0; outputs * inputs] };
            let mut found = if accumulate { start.clone() } else { vec![f32::MAX; outputs * inputs] };
            reduce_rows(&mut found, Mat::rows(&g, outputs), x.mat(), accumulate);
            assert_close(&format!("{rows}: {outputs} x {inputs}"), &found, &plain(&turned, &x, &start), rows);
        }
    }
}

#[test]
fn one_row_is_multiplied_as_many_are() {
    for (inner, outputs) in [(1, 1), (70, 3), (64, 130), (515, 900)] {
        let (x, w) = (Factor::new(1, inner, false, 11), Factor::new(inner, outputs, true, 13));
        let bias = values(1, outputs, 17);
        let mut dst = vec![9.0; outputs];
        map_rows(&mut dst, &x.values, w.mat(), Some(&bias));
        assert_close("one row", &dst, &plain(&x, &w, &bias), inner);
        map_rows(&mut dst, &x.values, w.mat(), None);
        assert_close("one row without bias", &dst, &plain(&x, &w, &vec![0.0; outputs]), inner);
    }
}
