//! Draws a scene, edges smoothed by sampling each pixel 4 x 4 times.

use vela_types::SeedStream;

use super::scene::{Scene, Shape};

/// Plain background.
pub(super) const BACKGROUND: [u8; 3] = [238, 238, 238];
/// Samples per pixel and axis.
const SAMPLES: usize = 4;
/// Half of the extent of a shape, in cells.
const HALF_EXTENT: f64 = 0.42;

/// RGB pixels, row by row, `3 * size * size` bytes. Each object is moved by up to `jitter` of a cell, drawn from `draw`.
pub(super) fn render(scene: &Scene, size: usize, cells_per_side: usize, jitter: f64, draw: &mut SeedStream) -> Vec<u8> {
    let cell = size as f64 / cells_per_side as f64;
    let mut sums = vec![[0u32; 3]; size * size];
    sums.iter_mut().for_each(|sum| *sum = BACKGROUND.map(|value| u32::from(value) * (SAMPLES * SAMPLES) as u32));
    for object in &scene.objects {
        let mut shift = || (draw.unit_f64() * 2.0 - 1.0) * jitter;
        let center_x = ((object.cell % cells_per_side) as f64 + 0.5 + shift()) * cell;
        let center_y = ((object.cell / cells_per_side) as f64 + 0.5 + shift()) * cell;
        let rgb = object.colour.rgb();
        for (at, sum) in sums.iter_mut().enumerate() {
            let num_inside = covered_samples(object.shape, at % size, at / size, [center_x, center_y], cell);
            for (channel, value) in sum.iter_mut().enumerate() {
                *value = *value + num_inside * u32::from(rgb[channel]) - num_inside * u32::from(BACKGROUND[channel]);
            }
        }
    }
    sums.iter().flatten().map(|sum| (sum / (SAMPLES * SAMPLES) as u32) as u8).collect()
}

fn covered_samples(shape: Shape, column: usize, row: usize, center: [f64; 2], cell: f64) -> u32 {
    let reach = cell * 0.5;
    let far = |pixel: usize, center: f64| (pixel as f64 + 0.5 - center).abs() > reach + 1.0;
    if far(column, center[0]) || far(row, center[1]) {
        return 0;
    }
    let at = |pixel: usize, sample: usize, center: f64| {
        (pixel as f64 + (sample as f64 + 0.5) / SAMPLES as f64 - center) / (HALF_EXTENT * cell)
    };
    let samples = (0..SAMPLES * SAMPLES).filter(|sample| {
        is_inside(shape, at(column, sample % SAMPLES, center[0]), at(row, sample / SAMPLES, center[1]))
    });
    samples.count() as u32
}

/// Whether a point of the shape's own square, -1 to 1 from left to right and top to bottom, is filled.
fn is_inside(shape: Shape, x: f64, y: f64) -> bool {
    match shape {
        Shape::Circle => x * x + y * y <= 1.0,
        Shape::Square => x.abs() <= 0.92 && y.abs() <= 0.92,
        Shape::Triangle => y <= 0.9 && x.abs() <= (y + 1.0) * 0.53,
        Shape::Cross => (x.abs() <= 0.3 && y.abs() <= 1.0) || (y.abs() <= 0.3 && x.abs() <= 1.0),
        Shape::Ring => (0.36..=1.0).contains(&(x * x + y * y)),
        Shape::Stripes => x.abs() <= 0.95 && (y.abs() <= 0.18 || (0.6..=0.96).contains(&y.abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Colour, Object};
    use super::*;

    #[test]
    fn a_shape_fills_its_own_cell_in_its_own_colour() {
        for shape in Shape::ALL {
            let scene = Scene { objects: vec![Object { shape, colour: Colour::Blue, cell: 3 }] };
            let pixels = render(&scene, 32, 2, 0.0, &mut SeedStream::new(0));
            let is_background = |row: usize, column: usize| pixels[3 * (row * 32 + column)..][..3] == BACKGROUND;
            let outside = (0..32).flat_map(|row| (0..32).map(move |column| (row, column)));
            assert!(
                outside
                    .clone()
                    .filter(|&(row, column)| row < 16 || column < 16)
                    .all(|(row, column)| is_background(row, column))
            );
            let blue = pixels.chunks(3).filter(|pixel| **pixel == Colour::Blue.rgb()).count();
            assert!(blue >= 40, "{shape:?} fills {blue} pixels");
        }
    }
}
