//! The fixed-point weights of one axis of a resize.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use super::ImageMode;
use super::filter::Filter;

/// Fractional bits of Pillow's weights: what is left of an i32 after a sample's 8 bits and two bits of headroom.
const PILLOW_PRECISION: u32 = 32 - 8 - 2;

/// The weights of one axis of one resize: for each wanted output position a window of input positions.
#[derive(Debug)]
pub(super) struct AxisWeights {
    /// First input position of each window.
    pub(super) starts: Vec<u32>,
    /// Taps that count, per window.
    pub(super) counts: Vec<u32>,
    /// Weights of all windows, `stride` apart, zero beyond each window's end. In mode `torchvision` each fits 16 bits.
    pub(super) weights: Vec<i32>,
    /// Taps kept per window: the largest count, rounded up to a multiple of four.
    pub(super) stride: usize,
    /// Fractional bits of the weights.
    pub(super) precision: u32,
    /// Whether weights may need more than 16 bits: in mode `pillow`.
    pub(super) wide: bool,
    /// The weights again, as vector code takes them; see [`pairs_of`].
    pub(super) pairs: Vec<i32>,
}

/// One resize of one axis: what weights are a function of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Axis {
    pub(super) input: u32,
    pub(super) output: u32,
    pub(super) filter: Filter,
    pub(super) mode: ImageMode,
    /// The output positions that are computed.
    pub(super) wanted: Range<usize>,
}

impl AxisWeights {
    pub(super) fn new(axis: &Axis) -> Self {
        let kernel = Kernel::new(axis);
        let precision = match axis.mode {
            ImageMode::Pillow => PILLOW_PRECISION,
            ImageMode::Torchvision => torchvision_precision(kernel.largest_weight(axis)),
        };
        let stride = kernel.max_taps().next_multiple_of(4);
        let (starts, counts, weights, pairs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let wide = axis.mode == ImageMode::Pillow;
        let mut made = Self { starts, counts, weights, stride, precision, wide, pairs };
        axis.wanted.clone().for_each(|position| made.push(&kernel.window(position)));
        made.pairs = pairs_of(&made.weights, wide);
        made
    }

    fn push(&mut self, window: &FloatWindow) {
        self.starts.push(window.start);
        self.counts.push(window.weights.len() as u32);
        self.weights.extend(window.weights.iter().map(|&weight| to_fixed_point(weight, self.precision)));
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

    /// Half of the last kept bit: sums start here so that the shift rounds.
    pub(super) fn rounding(&self) -> i32 {
        1 << (self.precision - 1)
    }
}

/// Bits of a wide weight's low half.
pub(super) const LOW_BITS: u32 = 15;

/// Neighbouring taps' weights as 16-bit halves of an i32, the first tap's in the low half: of each four taps
/// `[01, 23]`. Wide weights are split as `weight = high * 2^15 + low` with `0 <= low < 2^15`, and each four taps are
/// `[low 01, low 23, high 01, high 23]`.
fn pairs_of(weights: &[i32], wide: bool) -> Vec<i32> {
    let pair = |taps: &[i32], half: fn(i32) -> i32| (half(taps[0]) & 0xFFFF) | (half(taps[1]) << 16);
    let low: fn(i32) -> i32 = |weight| weight & ((1 << LOW_BITS) - 1);
    let high: fn(i32) -> i32 = |weight| weight >> LOW_BITS;
    let halves: &[fn(i32) -> i32] = if wide { &[low, high] } else { &[|weight| weight] };
    let quads = weights.chunks_exact(4);
    quads.flat_map(|quad| halves.iter().flat_map(|&half| [pair(&quad[..2], half), pair(&quad[2..], half)])).collect()
}

/// A kernel stretched to an axis' scale.
struct Kernel {
    filter: Filter,
    input: u32,
    scale: f64,
    stretch: f64,
    support: f64,
}

struct FloatWindow {
    start: u32,
    weights: Vec<f64>,
}

impl Kernel {
    fn new(axis: &Axis) -> Self {
        let scale = f64::from(axis.input) / f64::from(axis.output);
        let stretch = scale.max(1.0);
        Self { filter: axis.filter, input: axis.input, scale, stretch, support: axis.filter.support() * stretch }
    }

    fn max_taps(&self) -> usize {
        self.support.ceil() as usize * 2 + 1
    }

    /// The weights of an output position, which sum to one.
    fn window(&self, position: usize) -> FloatWindow {
        let center = (position as f64 + 0.5) * self.scale;
        // Truncation towards zero, clamped: a cast to int in both references.
        let start = ((center - self.support + 0.5) as i64).max(0);
        let end = ((center + self.support + 0.5) as i64).min(i64::from(self.input));
        let distance = |tap: i64| ((tap as f64) - center + 0.5) * (1.0 / self.stretch);
        let mut weights: Vec<f64> = (start..end).map(|tap| self.filter.weight(distance(tap))).collect();
        let total = weights.iter().fold(0.0, |sum, weight| sum + weight);
        if total != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= total);
        }
        FloatWindow { start: start as u32, weights }
    }

    /// Over all output positions, wanted or not.
    fn largest_weight(&self, axis: &Axis) -> f64 {
        let windows = (0..axis.output as usize).map(|position| self.window(position));
        windows.flat_map(|window| window.weights).fold(0.0, f64::max)
    }
}

/// The most fractional bits, up to 22, at which the largest weight fits a signed 16-bit integer: ATen's rule for u8
/// images, found equal on 300 random extents per filter.
fn torchvision_precision(largest: f64) -> u32 {
    let fits = |bits: &u32| (0.5 + largest * f64::from(1u32 << bits)) < f64::from(1u32 << 15);
    (1..=22).take_while(fits).last().unwrap_or(1)
}

/// Half away from zero.
fn to_fixed_point(weight: f64, precision: u32) -> i32 {
    let scaled = weight * f64::from(1u32 << precision);
    if scaled < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

/// Weights of recent resizes, per thread: photo collections repeat a few sizes.
pub(super) fn cached(axis: Axis) -> Rc<AxisWeights> {
    /// Beyond this many the cache starts anew.
    const MAX_ENTRIES: usize = 64;
    thread_local! {
        static CACHE: RefCell<HashMap<Axis, Rc<AxisWeights>>> = RefCell::default();
    }
    CACHE.with_borrow_mut(|cache| {
        if let Some(known) = cache.get(&axis) {
            return known.clone();
        }
        if cache.len() >= MAX_ENTRIES {
            cache.clear();
        }
        let weights = Rc::new(AxisWeights::new(&axis));
        cache.insert(axis, weights.clone());
        weights
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_every_window_sum_to_one() {
        let filters = [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];
        let modes = [ImageMode::Pillow, ImageMode::Torchvision];
        for (input, output) in [(1, 1), (1, 7), (7, 1), (100, 33), (33, 100), (2500, 336)] {
            for (filter, mode) in filters.iter().flat_map(|&filter| modes.map(|mode| (filter, mode))) {
                let axis = AxisWeights::new(&Axis { input, output, filter, mode, wanted: 0..output as usize });
                for (start, window) in axis.windows() {
                    let sum: i64 = window.iter().map(|&weight| i64::from(weight)).sum();
                    assert!((sum - (1 << axis.precision)).abs() <= window.len() as i64, "{filter:?}: {sum}");
                    assert!(start + window.len() <= input as usize);
                    assert!(mode == ImageMode::Pillow || window.iter().all(|&weight| i16::try_from(weight).is_ok()));
                }
            }
        }
    }
}
