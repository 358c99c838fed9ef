//! A loss curve in a terminal.

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `values` as a block chart of `width` columns and `height` lines: each column the mean of its stretch, the axis from
/// 0 to the largest column. Fewer values than columns give as many columns as values.
pub(crate) fn block_chart(values: &[f64], width: usize, height: usize) -> Vec<String> {
    let columns = means(values, width.min(values.len()));
    let top = columns.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let steps = (height * LEVELS.len()) as f64;
    let filled: Vec<usize> = columns.iter().map(|value| (value / top * steps).round() as usize).collect();
    let line = |row: usize| filled.iter().map(|&filled| cell(filled, row)).collect::<String>().trim_end().to_owned();
    (0..height).rev().map(line).collect()
}

/// What stands in line `row` (0 at the bottom) of a column filled up to `filled` eighths.
fn cell(filled: usize, row: usize) -> char {
    match filled.saturating_sub(row * LEVELS.len()) {
        // A loss near zero still shows where the curve is.
        0 if row == 0 => LEVELS[0],
        0 => ' ',
        eighths => LEVELS[eighths.min(LEVELS.len()) - 1],
    }
}

fn means(values: &[f64], columns: usize) -> Vec<f64> {
    let bounds = |column: usize| column * values.len() / columns;
    let stretch = |column: usize| &values[bounds(column)..bounds(column + 1)];
    (0..columns).map(stretch).map(|values| values.iter().sum::<f64>() / values.len() as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_curve_falls_in_every_line() {
        let values: Vec<f64> = (0..100).map(|step| 4.0 - 0.04 * f64::from(step)).collect();
        let chart = block_chart(&values, 4, 2);
        assert_eq!(chart, ["█▃", "██▇▂"]);
    }

    #[test]
    fn short_and_empty_curves_are_drawn() {
        assert_eq!(block_chart(&[1.0, 0.0], 60, 1), ["█▁"]);
        assert_eq!(block_chart(&[], 60, 2), ["", ""]);
    }
}
