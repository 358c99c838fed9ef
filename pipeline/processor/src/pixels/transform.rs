//! Padding, resize and centre crop as a Hugging Face image processor does them, ending in the tower's planes.

use crate::ProcessorError;

use super::config::Resize;
use super::decode::check_extent;
use super::resample::{CHANNELS, Plan, RowResizer, Window};
#[cfg(target_arch = "x86_64")]
use super::resample_avx2;
use super::{ImageMode, PreprocessorConfig, RgbImage};

/// Makes the tower's input of one picture, before rescaling: u8, channel-height-width. Rows are taken from the top, as
/// a decoder makes them.
pub(super) struct TensorBuilder {
    canvas: Canvas,
    plan: Plan,
    taken: Taken,
    planes: Planes,
}

/// What is kept of the rows so far.
enum Taken {
    /// What a resize that goes across first keeps.
    Narrowed(RowResizer),
    /// All of them.
    Whole(Vec<u8>),
}

impl TensorBuilder {
    /// For a picture of `width` and `height`.
    ///
    /// # Errors
    /// If the padded or the resized picture would have too many pixels.
    pub(super) fn new(
        (width, height): (u32, u32),
        config: &PreprocessorConfig,
        name: &str,
    ) -> Result<Self, ProcessorError> {
        let canvas = Canvas::new(width, height, config.canvas);
        check_extent(canvas.width, canvas.height, name)?;
        let (to_height, to_width) = resized_extent((canvas.width, canvas.height), config.resize);
        check_extent(to_width, to_height, name)?;
        let (out_height, out_width) = config.crop.unwrap_or((to_height, to_width));
        let rows = Cut::new(to_height, out_height, config.mode);
        let columns = Cut::new(to_width, out_width, config.mode);
        let plan = Plan {
            from: (canvas.width, canvas.height),
            to: (to_width, to_height),
            filter: config.filter,
            mode: config.mode,
            window: Window { columns: columns.kept(), rows: rows.kept() },
        };
        let taken = match plan.takes_rows() {
            true => Taken::Narrowed(RowResizer::new(&plan)),
            false => Taken::Whole(Vec::with_capacity(canvas.width as usize * canvas.height as usize * CHANNELS)),
        };
        let top = canvas.top;
        let mut builder = Self { canvas, plan, taken, planes: Planes::new(rows, columns) };
        builder.fill(top);
        Ok(builder)
    }

    /// Takes the picture's next whole RGB rows.
    pub(super) fn push(&mut self, rows: &[u8]) {
        match self.canvas.widened(rows) {
            Some(rows) => self.taken.push(&rows),
            None => self.taken.push(rows),
        }
    }

    /// The planes, once every row is taken.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.fill(self.canvas.bottom);
        let Self { plan, taken, mut planes, .. } = self;
        match taken {
            Taken::Narrowed(resizer) => resizer.finish(&mut |row, samples| planes.write(row, samples)),
            Taken::Whole(data) => {
                let image = RgbImage { width: plan.from.0, height: plan.from.1, data };
                plan.resize(&image, &mut |row, samples| planes.write(row, samples));
            }
        }
        planes.data
    }

    fn fill(&mut self, num_rows: u32) {
        let row = self.canvas.color.repeat(if num_rows > 0 { self.canvas.width as usize } else { 0 });
        (0..num_rows).for_each(|_| self.taken.push(&row));
    }
}

impl Taken {
    fn push(&mut self, rows: &[u8]) {
        match self {
            Self::Narrowed(resizer) => resizer.push(rows),
            Self::Whole(data) => data.extend_from_slice(rows),
        }
    }
}

/// The picture's place on a square of one colour, or a canvas of its own extent where nothing is padded.
struct Canvas {
    width: u32,
    height: u32,
    /// Rows above and below the picture.
    top: u32,
    bottom: u32,
    /// Columns to the left and right of the picture.
    left: u32,
    right: u32,
    color: [u8; CHANNELS],
}

impl Canvas {
    /// A square as wide as the longer side, the picture in its middle, an odd pixel of padding after it: LLaVA's
    /// `expand2square`.
    fn new(width: u32, height: u32, color: Option<[u8; CHANNELS]>) -> Self {
        let Some(color) = color else {
            return Self { width, height, top: 0, bottom: 0, left: 0, right: 0, color: [0; CHANNELS] };
        };
        let side = width.max(height);
        let (top, left) = ((side - height) / 2, (side - width) / 2);
        Self { width: side, height: side, top, bottom: side - height - top, left, right: side - width - left, color }
    }

    /// Rows of the picture with the columns beside them; `None` if there are none.
    fn widened(&self, rows: &[u8]) -> Option<Vec<u8>> {
        if self.left + self.right == 0 {
            return None;
        }
        let row_bytes = (self.width - self.left - self.right) as usize * CHANNELS;
        let (left, right) = (self.color.repeat(self.left as usize), self.color.repeat(self.right as usize));
        let widened = rows.chunks_exact(row_bytes).flat_map(|row| [&left, row, &right]);
        Some(widened.collect::<Vec<_>>().concat())
    }
}

/// Height and width after the resize: a fixed pair, or the shorter side given and the longer one in proportion,
/// rounded down.
fn resized_extent((width, height): (u32, u32), resize: Option<Resize>) -> (u32, u32) {
    let long = |edge: u32, long: u32, short: u32| (f64::from(edge) * f64::from(long) / f64::from(short)) as u32;
    match resize {
        None => (height, width),
        Some(Resize::Exact { height, width }) => (height, width),
        Some(Resize::ShortestEdge(edge)) if width <= height => (long(edge, height, width), edge),
        Some(Resize::ShortestEdge(edge)) => (edge, long(edge, width, height)),
    }
}

/// A centre crop along one axis: how many positions to skip, or to pad with zeros where the picture is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Positions there are.
    input: i64,
    /// Positions wanted.
    output: i64,
    /// First input position of the result; negative if zeros come first.
    offset: i64,
}

impl Cut {
    /// A picture that is too small by an odd number gets the odd zero before it in mode `pillow`, after it in mode
    /// `torchvision`.
    fn new(input: u32, output: u32, mode: ImageMode) -> Self {
        let (input, output) = (i64::from(input), i64::from(output));
        let offset = match mode {
            ImageMode::Pillow => (input - output).div_euclid(2),
            ImageMode::Torchvision => (input - output) / 2,
        };
        Self { input, output, offset }
    }

    /// Input positions that are visible in the result.
    fn kept(self) -> std::ops::Range<usize> {
        self.offset.max(0) as usize..(self.offset + self.output).min(self.input) as usize
    }

    /// Zeros before the visible part.
    fn padding(self) -> usize {
        (-self.offset).max(0) as usize
    }
}

/// Channel-height-width, zeros where the resized picture does not reach.
struct Planes {
    data: Vec<u8>,
    height: usize,
    width: usize,
    /// Rows above and columns before the visible part.
    top: usize,
    left: usize,
}

impl Planes {
    fn new(rows: Cut, columns: Cut) -> Self {
        let (height, width) = (rows.output as usize, columns.output as usize);
        let data = vec![0; CHANNELS * height * width];
        Self { data, height, width, top: rows.padding(), left: columns.padding() }
    }

    /// Takes RGB row `row` of the visible part.
    fn write(&mut self, row: usize, rgb: &[u8]) {
        let at = (self.top + row) * self.width + self.left;
        let columns = at..at + rgb.len() / CHANNELS;
        let (red, rest) = self.data.split_at_mut(self.height * self.width);
        let (green, blue) = rest.split_at_mut(self.height * self.width);
        part(rgb, [&mut red[columns.clone()], &mut green[columns.clone()], &mut blue[columns]]);
    }
}

/// Parts interleaved RGB samples into three rows.
fn part(rgb: &[u8], planes: [&mut [u8]; CHANNELS]) {
    #[cfg(target_arch = "x86_64")]
    if resample_avx2::is_available() {
        return resample_avx2::part(rgb, planes);
    }
    for (channel, plane) in planes.into_iter().enumerate() {
        let samples = rgb.iter().skip(channel).step_by(CHANNELS);
        plane.iter_mut().zip(samples).for_each(|(to, &sample)| *to = sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_is_centred_and_the_odd_zero_stands_where_the_reference_puts_it() {
        let cut = |input, output, mode| (Cut::new(input, output, mode).kept(), Cut::new(input, output, mode).padding());
        for mode in [ImageMode::Pillow, ImageMode::Torchvision] {
            assert_eq!(cut(10, 4, mode), (3..7, 0));
            assert_eq!(cut(11, 4, mode), (3..7, 0));
            assert_eq!(cut(4, 4, mode), (0..4, 0));
        }
        assert_eq!(cut(4, 9, ImageMode::Pillow), (0..4, 3));
        assert_eq!(cut(4, 9, ImageMode::Torchvision), (0..4, 2));
    }

    #[test]
    fn the_longer_side_is_rounded_down() {
        assert_eq!(resized_extent((500, 333), Some(Resize::ShortestEdge(224))), (224, 336));
    }

    #[test]
    fn an_odd_pixel_of_a_square_canvas_stands_after_the_picture() {
        let canvas = Canvas::new(2, 5, Some([1, 2, 3]));
        assert_eq!((canvas.width, canvas.height, canvas.left, canvas.right), (5, 5, 1, 2));
        let widened = canvas.widened(&[9; 6]).expect("columns beside");
        assert_eq!(widened, [1, 2, 3, 9, 9, 9, 9, 9, 9, 1, 2, 3, 1, 2, 3]);
    }
}
