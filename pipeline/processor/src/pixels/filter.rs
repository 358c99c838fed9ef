//! Pillow's resampling kernels and the fixed-point weights made of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// How a resize weighs its inputs. The names and numbers are Pillow's (`PIL.Image.Resampling`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Filter {
    /// 0: the nearest sample.
    Nearest,
    /// 1: sinc windowed by sinc, three lobes.
    Lanczos,
    /// 2: triangle.
    Bilinear,
    /// 3: cubic convolution with a = -0.5.
    Bicubic,
    /// 4: mean of the samples covered.
    Box,
    /// 5: sinc windowed by Hamming's cosine.
    Hamming,
}

impl Filter {
    /// The filter of a `resample` setting.
    pub(crate) fn from_code(code: u64) -> Option<Self> {
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming]
            .get(usize::try_from(code).ok()?)
            .copied()
    }

    /// Half the kernel's width at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The kernel's value at distance `x`.
    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => bicubic(x.abs()),
            Self::Hamming => hamming(x.abs()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn hamming(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle * (0.54 + 0.46 * angle.cos())
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle
}

/// Fractional bits of a weight: what is left of an i32 after a sample's 8 bits and two bits of headroom.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The weights of one axis of one resize: for each wanted output position a window of input positions.
#[derive(Debug)]
pub(super) struct AxisWeights {
    /// First input position of each window.
    pub(super) starts: Vec<u32>,
    /// Weights of all windows, `stride` apart, zero beyond each window's end.
    pub(super) weights: Vec<i32>,
    /// Taps kept per window: the largest count, rounded up to a multiple of four.
    pub(super) stride: usize,
    /// Taps that count, per window.
    pub(super) counts: Vec<u32>,
}

impl AxisWeights {
    /// Weights that bring `input` positions to `output`, of which `wanted` are computed.
    pub(super) fn new(input: u32, output: u32, filter: Filter, wanted: Range<usize>) -> Self {
        let scale = f64::from(input) / f64::from(output);
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let stride = (support.ceil() as usize * 2 + 1).next_multiple_of(4);
        let mut axis = Self { starts: Vec::new(), weights: Vec::new(), stride, counts: Vec::new() };
        for position in wanted {
            let center = (position as f64 + 0.5) * scale;
            // Truncation towards zero, clamped: Pillow's cast to int.
            let start = ((center - support + 0.5) as i64).max(0);
            let end = ((center + support + 0.5) as i64).min(i64::from(input));
            let distance = |tap: i64| ((tap as f64) - center + 0.5) * (1.0 / stretch);
            let window: Vec<f64> = (start..end).map(|tap| filter.weight(distance(tap))).collect();
            axis.push(start as u32, &window);
        }
        axis
    }

    fn push(&mut self, start: u32, window: &[f64]) {
        let total = window.iter().fold(0.0, |sum, weight| sum + weight);
        let normal = |weight: &f64| if total == 0.0 { *weight } else { weight / total };
        self.starts.push(start);
        self.counts.push(window.len() as u32);
        self.weights.extend(window.iter().map(|weight| to_fixed_point(normal(weight))));
        self.weights.resize(self.starts.len() * self.stride, 0);
    }

    /// First input position and weights of each wanted output position, in order.
    pub(super) fn windows(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let windows = self.weights.chunks_exact(self.stride);
        let bounds = self.starts.iter().zip(&self.counts);
        bounds.zip(windows).map(|((&start, &count), window)| (start as usize, &window[..count as usize]))
    }

    /// Input positions that the wanted outputs read.
    pub(super) fn input_range(&self) -> Range<usize> {
        let ends = self.starts.iter().zip(&self.counts).map(|(start, count)| start + count);
        let start = self.starts.first().copied().unwrap_or(0);
        start as usize..ends.max().unwrap_or(start) as usize
    }
}

/// Half away from zero.
fn to_fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION_BITS);
    if scaled < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

/// Weights of recent resizes, per thread: photo collections repeat a few sizes.
pub(super) fn cached(input: u32, output: u32, filter: Filter, wanted: Range<usize>) -> Rc<AxisWeights> {
    /// Beyond this many the cache starts anew.
    const MAX_ENTRIES: usize = 64;
    type Key = (u32, u32, Filter, Range<usize>);
    thread_local! {
        static CACHE: RefCell<HashMap<Key, Rc<AxisWeights>>> = RefCell::default();
    }
    let key = (input, output, filter, wanted.clone());
    CACHE.with_borrow_mut(|cache| {
        if cache.len() >= MAX_ENTRIES && !cache.contains_key(&key) {
            cache.clear();
        }
        cache.entry(key).or_insert_with(|| Rc::new(AxisWeights::new(input, output, filter, wanted))).clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_every_window_sum_to_one() {
        let filters = [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];
        for (input, output) in [(1, 1), (1, 7), (7, 1), (100, 33), (33, 100), (2500, 336)] {
            for filter in filters {
                let axis = AxisWeights::new(input, output, filter, 0..output as usize);
                for (start, window) in axis.windows() {
                    let sum: i64 = window.iter().map(|&weight| i64::from(weight)).sum();
                    assert!((sum - (1 << PRECISION_BITS)).abs() <= window.len() as i64, "{filter:?}: {sum}");
                    assert!(start + window.len() <= input as usize);
                }
            }
        }
    }
}
