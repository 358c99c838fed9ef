//! Resize and centre crop as a Hugging Face image processor does them, ending in the tower's planes.

use super::resample::{CHANNELS, Window, resize};
use super::{PreprocessorConfig, RgbImage, config::Resize};

/// The tower's input before rescaling: u8, channel-height-width, `config.output_extent()` in height and width.
pub(crate) fn to_tensor(image: &RgbImage, config: &PreprocessorConfig) -> Vec<u8> {
    let (height, width) = resized_extent(image, config.resize);
    let crop = config.crop.map(|(rows, columns)| (Cut::new(height, rows), Cut::new(width, columns)));
    let (rows, columns) = crop.unwrap_or((Cut::new(height, height), Cut::new(width, width)));
    let window = Window { columns: columns.kept(), rows: rows.kept() };
    let visible = resize(image, width, height, config.filter, &window);
    to_planes(&visible, rows, columns)
}

/// Height and width after the resize: a fixed pair, or the shorter side given and the longer one in proportion,
/// rounded down.
fn resized_extent(image: &RgbImage, resize: Option<Resize>) -> (u32, u32) {
    let (height, width) = (image.height, image.width);
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
}

impl Cut {
    fn new(input: u32, output: u32) -> Self {
        Self { input: i64::from(input), output: i64::from(output) }
    }

    /// First input position of the result; negative if zeros come first.
    ///
    /// A picture that is too small is set into a larger one with its odd pixel of padding before it.
    fn offset(self) -> i64 {
        (self.input - self.output).div_euclid(2)
    }

    /// Input positions that are visible in the result.
    fn kept(self) -> std::ops::Range<usize> {
        self.offset().max(0) as usize..(self.offset() + self.output).min(self.input) as usize
    }

    /// Zeros before the visible part.
    fn padding(self) -> usize {
        (-self.offset()).max(0) as usize
    }
}

fn to_planes(visible: &RgbImage, rows: Cut, columns: Cut) -> Vec<u8> {
    let (out_height, out_width) = (rows.output as usize, columns.output as usize);
    let mut planes = vec![0u8; CHANNELS * out_height * out_width];
    let row_bytes = visible.width as usize * CHANNELS;
    for (channel, plane) in planes.chunks_exact_mut(out_height * out_width).enumerate() {
        let lines = plane.chunks_exact_mut(out_width).skip(rows.padding());
        for (line, row) in lines.zip(visible.data.chunks_exact(row_bytes)) {
            let samples = row.iter().skip(channel).step_by(CHANNELS);
            line[columns.padding()..].iter_mut().zip(samples).for_each(|(to, &sample)| *to = sample);
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_is_centred_and_padding_leads_by_the_odd_pixel() {
        assert_eq!((Cut::new(10, 4).kept(), Cut::new(10, 4).padding()), (3..7, 0));
        assert_eq!((Cut::new(11, 4).kept(), Cut::new(11, 4).padding()), (3..7, 0));
        assert_eq!((Cut::new(4, 9).kept(), Cut::new(4, 9).padding()), (0..4, 3));
        assert_eq!((Cut::new(4, 4).kept(), Cut::new(4, 4).padding()), (0..4, 0));
    }

    #[test]
    fn the_longer_side_is_rounded_down() {
        let image = RgbImage { width: 500, height: 333, data: Vec::new() };
        assert_eq!(resized_extent(&image, Some(Resize::ShortestEdge(224))), (224, 336));
    }
}
