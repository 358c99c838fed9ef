//! CPU code: the mask is drawn anew either way.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::cpu::{contiguous, shaped, with_values};
use crate::simd::for_row_blocks;

const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

pub(super) struct Dropout {
    pub(super) keys: Arc<[u64]>,
    pub(super) salt: u64,
    pub(super) rate: f32,
    pub(super) width: usize,
}

/// The output function of SplitMix64.
#[inline(always)]
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

impl Dropout {
    fn masked(&self, x: &[f32]) -> Vec<f32> {
        let threshold = (f64::from(self.rate) * 2f64.powi(32)).round() as u64;
        let (width, scale) = (self.width.max(1), 1.0 / (1.0 - self.rate));
        let mut y = vec![0f32; x.len()];
        for_row_blocks(
            &mut y,
            width,
            #[inline(always)]
            |first, rows| {
                let source = x[first * width..].chunks_exact(width).zip(&self.keys[first..]);
                for (y, (x, &key)) in rows.chunks_exact_mut(width).zip(source) {
                    let mut state = mix(key ^ self.salt);
                    for (y, &x) in y.iter_mut().zip(x) {
                        state = state.wrapping_add(GAMMA);
                        *y = if mix(state) >> 32 >= threshold { x * scale } else { 0.0 };
                    }
                }
            },
        );
        y
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.masked(contiguous(storage, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        with_values(&grad.contiguous()?, |grad| self.masked(grad)).and_then(|dx| shaped(dx, x)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn masked(rate: f32, salt: u64, keys: &[u64], width: usize) -> Vec<f32> {
        let op = Dropout { keys: keys.into(), salt, rate, width };
        op.masked(&vec![1.0; keys.len() * width])
    }

    /// Shares over many rows and widths, within five deviations of a fair draw; what stays makes up for what does not.
    #[test]
    fn the_rate_is_the_asked_one_and_the_mean_stays() {
        let keys: Vec<u64> = (0..2000).collect();
        for rate in [0.0f32, 0.05, 0.1, 0.5, 0.9] {
            let y = masked(rate, 7, &keys, 100);
            let count = y.len() as f64;
            let share = y.iter().filter(|y| **y == 0.0).count() as f64 / count;
            let deviation = (f64::from(rate) * (1.0 - f64::from(rate)) / count).sqrt();
            assert!((share - f64::from(rate)).abs() <= 5.0 * deviation, "{rate}: {share}");
            assert!(y.iter().all(|&y| y == 0.0 || y == 1.0 / (1.0 - rate)));
            let mean = y.iter().map(|&y| f64::from(y)).sum::<f64>() / count;
            assert!((mean - 1.0).abs() <= 5.0 * deviation / (1.0 - f64::from(rate)) + 1e-7, "{rate}: {mean}");
        }
    }

    /// Neighbours of a mask - in a row, in a column, under another salt - agree as often as chance has it.
    #[test]
    fn masks_of_neighbours_have_nothing_to_do_with_one_another() {
        let (keys, width): (Vec<u64>, usize) = ((0..500).collect(), 200);
        let (a, b) = (masked(0.5, 1, &keys, width), masked(0.5, 2, &keys, width));
        let agree =
            |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len().min(b.len()) as f64;
        for (what, share) in [("salt", agree(&a, &b)), ("row", agree(&a, &a[width..])), ("column", agree(&a, &a[1..]))]
        {
            assert!((share - 0.5).abs() < 0.01, "{what}: {share}");
        }
    }

    #[test]
    fn a_rows_mask_does_not_depend_on_its_company() {
        let alone = masked(0.3, 5, &[99], 64);
        assert_eq!(masked(0.3, 5, &[1, 2, 99, 4], 64)[128..192], alone);
    }

    #[test]
    fn the_gradient_goes_where_the_values_went() {
        let keys: Arc<[u64]> = (0..3).collect();
        let x = candle_core::Var::from_slice(&[0.5f32; 15], (3, 5), &Device::Cpu).expect("a tensor");
        let y = crate::dropout(x.as_tensor(), 0.4, &keys, 3).expect("masked");
        let store = y.sum_all().and_then(|sum| sum.backward()).expect("a gradient");
        let flat = |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32") };
        let (y, gradient) = (flat(&y), flat(store.get(x.as_tensor()).expect("one")));
        assert!(y.contains(&0.0) && y.iter().any(|y| *y > 0.0));
        y.iter().zip(gradient).for_each(|(y, gradient)| assert_eq!(*y, 0.5 * gradient));
    }

    #[test]
    fn keys_of_another_number_and_impossible_rates_are_refused() {
        let x = Tensor::zeros((2, 3, 4), candle_core::DType::F32, &Device::Cpu).expect("a tensor");
        let told = |rate, keys: &[u64]| crate::dropout(&x, rate, &keys.into(), 0).expect_err("refused").to_string();
        assert!(told(0.1, &[1; 5]).contains("6 rows"));
        assert!(told(1.0, &[1; 6]).contains("`rate`") && told(-0.1, &[1; 6]).contains("`rate`"));
        assert!(told(f32::NAN, &[1; 6]).contains("`rate`"));
    }
}
