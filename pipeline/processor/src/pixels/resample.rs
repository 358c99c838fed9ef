//! Resizing RGB rows in fixed point: two passes with a rounded u8 picture between, across and then down, as Pillow and
//! torchvision both do; see [`Plan::goes_down_first`] for Pillow's exception.
//!
//! Only the window of the result that a crop keeps is computed; its pixels are those of the whole result. Rows are
//! taken as a decoder makes them, so that a large photo is never held whole.
//! Described in Pillow's documentation of filters and measured against Pillow 13 and torchvision 0.29: bit-exact.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use super::filter::Filter;
#[cfg(target_arch = "x86_64")]
use super::resample_avx2;
use super::weights::{Axis, AxisWeights, cached};
use super::{ImageMode, RgbImage};

/// Samples per pixel.
pub(super) const CHANNELS: usize = 3;

/// The part of a result that is wanted: columns and rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// A resize of one picture and the part of its result that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Width and height of the picture.
    pub(super) from: (u32, u32),
    /// Width and height after the resize.
    pub(super) to: (u32, u32),
    pub(super) filter: Filter,
    pub(super) mode: ImageMode,
    pub(super) window: Window,
}

impl Plan {
    /// Whether rows can be taken one after another: [`RowResizer`] takes them so, [`Plan::resize`] does the rest.
    pub(super) fn takes_rows(&self) -> bool {
        self.from == self.to || (self.filter != Filter::Nearest && !self.goes_down_first())
    }

    /// Pillow 13 goes down before across where the height shrinks by more than twice what the width shrinks by, in
    /// pixels (its pull request 9549; the rule here fits 11,742 of 11,742 random extents at which the order shows).
    fn goes_down_first(&self) -> bool {
        let shrinks_by = |from: u32, to: u32| i64::from(from) - i64::from(to);
        let lost_rows = shrinks_by(self.from.1, self.to.1);
        self.mode == ImageMode::Pillow && lost_rows > 0 && lost_rows > 2 * shrinks_by(self.from.0, self.to.0)
    }

    /// The wanted part of the result, handed out row by row from the top.
    pub(super) fn resize(&self, image: &RgbImage, take: &mut dyn FnMut(usize, &[u8])) {
        if self.takes_rows() {
            let mut resizer = RowResizer::new(self);
            resizer.push(&image.data);
            return resizer.finish(take);
        }
        if self.filter == Filter::Nearest {
            return self.nearest(image, take);
        }
        let down = self.down().expect("only a height that shrinks is brought down first");
        let lowered = pass_down_whole(image, &down);
        let (width, height) = (lowered.width, lowered.height);
        let window = Window { columns: self.window.columns.clone(), rows: 0..height as usize };
        Plan { from: (width, height), to: (self.to.0, height), window, ..self.clone() }.resize(&lowered, take);
    }

    fn across(&self) -> Option<Rc<AxisWeights>> {
        self.axis(self.from.0, self.to.0, &self.window.columns)
    }

    fn down(&self) -> Option<Rc<AxisWeights>> {
        self.axis(self.from.1, self.to.1, &self.window.rows)
    }

    /// A pass is skipped where its side does not change.
    fn axis(&self, input: u32, output: u32, wanted: &Range<usize>) -> Option<Rc<AxisWeights>> {
        let axis = Axis { input, output, filter: self.filter, mode: self.mode, wanted: wanted.clone() };
        (input != output).then(|| cached(axis))
    }

    fn nearest(&self, image: &RgbImage, take: &mut dyn FnMut(usize, &[u8])) {
        let positions = match self.mode {
            ImageMode::Pillow => nearest_by_pillow,
            ImageMode::Torchvision => nearest_by_torchvision,
        };
        let (from_x, from_y) = (positions(self.from.0, self.to.0), positions(self.from.1, self.to.1));
        for (row, &y) in from_y[self.window.rows.clone()].iter().enumerate() {
            let pixel = |&x: &usize| &image.data[(y * image.width as usize + x) * CHANNELS..][..CHANNELS];
            let samples: Vec<u8> = from_x[self.window.columns.clone()].iter().flat_map(pixel).copied().collect();
            take(row, &samples);
        }
    }
}

/// Each output sample's source is found by adding up the scale from half of it.
fn nearest_by_pillow(input: u32, output: u32) -> Vec<usize> {
    let scale = f64::from(input) / f64::from(output);
    let sources = std::iter::successors(Some(scale * 0.5), |at| Some(at + scale));
    sources.take(output as usize).map(|at| (at as usize).min(input as usize - 1)).collect()
}

/// `nearest-exact` of PyTorch: the middle of each output sample, in f32.
fn nearest_by_torchvision(input: u32, output: u32) -> Vec<usize> {
    let scale = input as f32 / output as f32;
    (0..output).map(|at| (((at as f32 + 0.5) * scale) as usize).min(input as usize - 1)).collect()
}

/// A larger buffer is given back when its picture is done.
const MAX_KEPT_BYTES: usize = 8 << 20;

thread_local! {
    /// Kept from picture to picture: fresh memory costs a fault per page. Its content means nothing.
    static NARROWED: RefCell<Vec<u8>> = RefCell::default();
}

/// Takes a picture's rows from the top and keeps what the second pass needs of them.
pub(super) struct RowResizer {
    across: Option<Rc<AxisWeights>>,
    down: Option<Rc<AxisWeights>>,
    window: Window,
    /// Bytes of an input row.
    from_bytes: usize,
    /// Input rows that matter.
    source_rows: Range<usize>,
    /// Input rows taken so far.
    taken: usize,
    /// The rows that matter, narrowed.
    narrowed: Vec<u8>,
}

impl RowResizer {
    pub(super) fn new(plan: &Plan) -> Self {
        debug_assert!(plan.takes_rows());
        let (across, down, window) = (plan.across(), plan.down(), plan.window.clone());
        let source_rows = down.as_ref().map_or(window.rows.clone(), |axis| axis.input_range());
        let mut narrowed = NARROWED.take();
        narrowed.resize(source_rows.len() * window.columns.len() * CHANNELS, 0);
        let from_bytes = plan.from.0 as usize * CHANNELS;
        Self { across, down, window, from_bytes, source_rows, taken: 0, narrowed }
    }

    /// Takes the next whole rows.
    pub(super) fn push(&mut self, rows: &[u8]) {
        let num_rows = rows.len() / self.from_bytes;
        let first = self.source_rows.start.clamp(self.taken, self.taken + num_rows);
        let end = self.source_rows.end.clamp(first, self.taken + num_rows);
        let to_bytes = self.window.columns.len() * CHANNELS;
        let from = &rows[(first - self.taken) * self.from_bytes..(end - self.taken) * self.from_bytes];
        self.taken += num_rows;
        if from.is_empty() {
            return;
        }
        let at = (first - self.source_rows.start) * to_bytes;
        let to = &mut self.narrowed[at..at + (end - first) * to_bytes];
        match &self.across {
            Some(axis) => rows_across(from, self.from_bytes, axis, to),
            None => {
                let columns = self.window.columns.start * CHANNELS..self.window.columns.end * CHANNELS;
                let pairs = from.chunks_exact(self.from_bytes).zip(to.chunks_exact_mut(to_bytes));
                pairs.for_each(|(from, to)| to.copy_from_slice(&from[columns.clone()]));
            }
        }
    }

    /// Hands out the rows of the window, from the top.
    pub(super) fn finish(self, take: &mut dyn FnMut(usize, &[u8])) {
        let row_bytes = self.window.columns.len() * CHANNELS;
        match &self.down {
            Some(axis) => rows_down(&self.narrowed, row_bytes, axis, self.source_rows.start, take),
            None => self.narrowed.chunks_exact(row_bytes).enumerate().for_each(|(row, samples)| take(row, samples)),
        }
        if self.narrowed.capacity() <= MAX_KEPT_BYTES {
            NARROWED.set(self.narrowed);
        }
    }
}

/// The second pass over a whole picture.
fn pass_down_whole(image: &RgbImage, axis: &AxisWeights) -> RgbImage {
    let mut data = Vec::with_capacity(axis.starts.len() * image.width as usize * CHANNELS);
    rows_down(&image.data, image.width as usize * CHANNELS, axis, 0, &mut |_, row| data.extend_from_slice(row));
    RgbImage { width: image.width, height: axis.starts.len() as u32, data }
}

/// The first pass over whole rows, with the fastest code that this machine runs.
fn rows_across(from: &[u8], from_bytes: usize, axis: &AxisWeights, to: &mut [u8]) {
    let to_bytes = axis.starts.len() * CHANNELS;
    #[cfg(target_arch = "x86_64")]
    if resample_avx2::is_available() {
        return resample_avx2::rows_across(from, from_bytes, axis, to);
    }
    let rows = from.chunks_exact(from_bytes).zip(to.chunks_exact_mut(to_bytes));
    rows.for_each(|(from, to)| row_across(from, axis, to));
}

/// One row of the first pass, in portable code.
fn row_across(from: &[u8], axis: &AxisWeights, to: &mut [u8]) {
    for ((start, weights), pixel) in axis.windows().zip(to.chunks_exact_mut(CHANNELS)) {
        let taps = from[start * CHANNELS..].chunks_exact(CHANNELS);
        let mut sums = [axis.rounding(); CHANNELS];
        for (tap, &weight) in taps.zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(tap) {
                *sum = sum.wrapping_add(i32::from(sample).wrapping_mul(weight));
            }
        }
        for (sample, sum) in pixel.iter_mut().zip(sums) {
            *sample = to_sample(sum, axis.precision);
        }
    }
}

/// The second pass: `from` holds rows of `row_bytes` from input row `first_row` on.
fn rows_down(from: &[u8], row_bytes: usize, axis: &AxisWeights, first_row: usize, take: &mut dyn FnMut(usize, &[u8])) {
    let mut row = vec![0u8; row_bytes];
    for (position, (start, weights)) in axis.windows().enumerate() {
        let from = &from[(start - first_row) * row_bytes..];
        #[cfg(target_arch = "x86_64")]
        let done = resample_avx2::is_available() && resample_avx2::row_down(from, axis, position, &mut row);
        #[cfg(not(target_arch = "x86_64"))]
        let done = false;
        if !done {
            row_down(from, axis, weights, &mut row);
        }
        take(position, &row);
    }
}

/// One row of the second pass, in portable code.
fn row_down(from: &[u8], axis: &AxisWeights, weights: &[i32], to: &mut [u8]) {
    /// Columns at a time, so that the sums stay in registers.
    const BLOCK: usize = 16;
    let row_bytes = to.len();
    for (block, to) in to.chunks_mut(BLOCK).enumerate() {
        let mut sums = [axis.rounding(); BLOCK];
        for (row, &weight) in weights.iter().enumerate() {
            let samples = &from[row * row_bytes + block * BLOCK..][..to.len()];
            for (sum, &sample) in sums.iter_mut().zip(samples) {
                *sum = sum.wrapping_add(i32::from(sample).wrapping_mul(weight));
            }
        }
        to.iter_mut().zip(sums).for_each(|(sample, sum)| *sample = to_sample(sum, axis.precision));
    }
}

/// Back to 8 bits, clipped.
fn to_sample(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples(count: usize, seed: u64) -> Vec<u8> {
        let mut draws = vela_types::SeedStream::new(seed);
        // Mostly extremes: they reach the clips and the largest sums.
        let mut sample = || [0, 255, draws.next_u64() as u8][draws.below(3) as usize];
        (0..count).map(|_| sample()).collect()
    }

    proptest! {
        #[test]
        fn vector_code_gives_the_portable_codes_bytes(
            (width, height) in (1u32..200, 1u32..60),
            (out_width, out_height) in (1usize..120, 1usize..120),
            code in 1u64..6,
            torchvision: bool,
            without_vnni: bool,
            seed: u64,
        ) {
            if !resample_avx2::is_available() {
                return Ok(());
            }
            crate::pixels::machine::WITHOUT_VNNI.set(without_vnni);
            let filter = Filter::from_code(code).expect("a filter with weights");
            let mode = if torchvision { ImageMode::Torchvision } else { ImageMode::Pillow };
            let rows = samples((width * height) as usize * CHANNELS, seed);
            let row_bytes = width as usize * CHANNELS;
            let axis = Axis { input: width, output: out_width as u32, filter, mode, wanted: 0..out_width };
            let axis = AxisWeights::new(&axis);
            let to_bytes = out_width * CHANNELS;
            let (mut vector, mut portable) = (vec![0; to_bytes * height as usize], vec![0; to_bytes * height as usize]);
            resample_avx2::rows_across(&rows, row_bytes, &axis, &mut vector);
            for (from, to) in rows.chunks_exact(row_bytes).zip(portable.chunks_exact_mut(to_bytes)) {
                row_across(from, &axis, to);
            }
            prop_assert_eq!(vector, portable);

            let axis = Axis { input: height, output: out_height as u32, filter, mode, wanted: 0..out_height };
            let axis = AxisWeights::new(&axis);
            for (position, (start, weights)) in axis.windows().enumerate() {
                let from = &rows[start * row_bytes..];
                let (mut vector, mut portable) = (vec![0; row_bytes], vec![0; row_bytes]);
                if resample_avx2::row_down(from, &axis, position, &mut vector) {
                    row_down(from, &axis, weights, &mut portable);
                    prop_assert_eq!(vector, portable);
                }
            }
        }

        #[test]
        fn vector_code_parts_planes_as_portable_code_does(width in 1usize..100, seed: u64) {
            let row = samples(width * CHANNELS, seed);
            let mut planes = vec![vec![0; width]; CHANNELS];
            let [red, green, blue] = &mut planes[..] else { unreachable!("three planes") };
            resample_avx2::part(&row, [red, green, blue]);
            for (channel, plane) in planes.iter().enumerate() {
                let expected: Vec<u8> = row.iter().skip(channel).step_by(CHANNELS).copied().collect();
                prop_assert_eq!(plane, &expected);
            }
        }
    }
}
