//! The curves of a run: `loss.svg`, and what a report shows beside it.

use crate::chart::{Chart, Curve, MAX_POINTS};
use crate::metrics::StepMetrics;

/// The smoothed curve averages this share of the run on either side of a step.
const SMOOTHING_SHARE: f64 = 0.025;
const STROKES: [&str; 6] = ["#1f5fa8", "#c8541e", "#2e8b57", "#8a4fa8", "#b8860b", "#4d4d4d"];

/// The loss curve of a run as an SVG document: every logged step, a moving average over them, and the validation
/// loss where there is one.
pub fn loss_svg(title: &str, lines: &[StepMetrics]) -> String {
    Chart { title, values: "loss (nats)", curves: loss_curves(lines) }.svg()
}

/// Every chart of a run, the loss first.
pub(crate) fn charts(lines: &[StepMetrics]) -> Vec<String> {
    let groups = lines.iter().flat_map(|line| line.lr.keys()).collect::<std::collections::BTreeSet<_>>();
    let rates = groups.into_iter().map(|group| (group.as_str(), series(lines, |line| line.lr.get(group).copied())));
    let gib = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / f64::from(1 << 30));
    let percent = |share: f64| 100.0 * share;
    let charts = [
        ("Learning rate", "per step", rates.collect()),
        ("Gradient norm before clipping", "L2 norm", vec![("norm", series(lines, |line| Some(line.grad_norm)))]),
        (
            "Tokens",
            "per second",
            vec![
                ("all", series(lines, |line| Some(line.tokens_per_second))),
                ("predicted", series(lines, |line| Some(line.label_tokens_per_second))),
            ],
        ),
        ("Samples", "per second", vec![("samples", series(lines, |line| Some(line.samples_per_second)))]),
        (
            "Utilisation and waiting",
            "%",
            vec![
                ("MFU", series(lines, |line| line.mfu.map(percent))),
                ("waiting for data", series(lines, |line| Some(percent(line.data_wait)))),
            ],
        ),
        (
            "Memory of the process",
            "GiB",
            vec![
                ("held", series(lines, |line| gib(line.memory_bytes))),
                ("most", series(lines, |line| gib(line.peak_memory_bytes))),
            ],
        ),
    ];
    let others =
        charts.into_iter().map(|(title, values, curves)| Chart { title, values, curves: coloured(curves) }.svg());
    std::iter::once(loss_svg("Loss per label token", lines)).chain(others).collect()
}

/// A curve for each series; equal ones, which would hide one another, are one curve of several names.
fn coloured(series: Vec<(&str, Vec<(f64, f64)>)>) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for (name, points) in series {
        let points = thin(points);
        match curves.iter_mut().find(|curve| curve.points == points) {
            Some(equal) => equal.name = format!("{}, {name}", equal.name),
            None => {
                let stroke = STROKES[curves.len() % STROKES.len()];
                curves.push(Curve { name: name.to_owned(), stroke, points, dots: false });
            }
        }
    }
    curves
}

/// (step, value) of the lines that have one.
fn series(lines: &[StepMetrics], value: impl Fn(&StepMetrics) -> Option<f64>) -> Vec<(f64, f64)> {
    let points = lines.iter().filter_map(|line| Some((line.step as f64, value(line)?)));
    points.filter(|point| point.1.is_finite()).collect()
}

fn loss_curves(lines: &[StepMetrics]) -> Vec<Curve> {
    let losses = series(lines, |line| Some(line.loss));
    let validation = series(lines, |line| line.validation_loss);
    let smoothed = thin(smooth(&losses));
    let curve = |name: &str, stroke, points, dots| Curve { name: name.to_owned(), stroke, points, dots };
    let mut curves = vec![
        curve("loss per label token", "#9dbfe0", thin(losses), false),
        curve("smoothed", "#1f5fa8", smoothed, false),
    ];
    if !validation.is_empty() {
        curves.push(curve("validation", "#c8541e", validation, true));
    }
    curves
}

/// Centred moving average: it does not lag behind a falling curve, and its window shrinks towards both ends.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let widest = (points.len() as f64 * SMOOTHING_SHARE).ceil() as usize;
    let mut sums = vec![0.0];
    sums.extend(points.iter().scan(0.0, |sum, point| {
        *sum += point.1;
        Some(*sum)
    }));
    let average = |(index, point): (usize, &(f64, f64))| {
        let reach = widest.min(index).min(points.len() - 1 - index);
        (point.0, (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1) as f64)
    };
    points.iter().enumerate().map(average).collect()
}

/// At most `MAX_POINTS`, evenly spread, the last always among them.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let stride = points.len().div_ceil(MAX_POINTS).max(1);
    let last = points.len().wrapping_sub(1);
    let kept = points.into_iter().enumerate().filter(|(index, _)| index % stride == 0 || *index == last);
    kept.map(|(_, point)| point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: u64) -> Vec<StepMetrics> {
        let line = |step: u64| StepMetrics {
            step,
            loss: 5.0 / (1.0 + step as f64 / 40.0) + 0.2 * ((step * 7919 % 13) as f64 / 13.0),
            validation_loss: step.is_multiple_of(50).then_some(5.2 / (1.0 + step as f64 / 45.0)),
            lr: [("projector".to_owned(), 1e-3 / step as f64)].into_iter().collect(),
            mfu: Some(0.4),
            ..StepMetrics::default()
        };
        (1..=steps).map(line).collect()
    }

    #[test]
    fn long_runs_are_thinned_and_keep_their_last_step() {
        let curves = loss_curves(&run(5_000));
        assert_eq!(curves.len(), 3);
        assert!(curves[0].points.len() <= MAX_POINTS + 1);
        assert_eq!(curves[0].points.last().map(|point| point.0), Some(5_000.0));
    }

    #[test]
    fn equal_series_are_one_curve_of_both_names() {
        let line = |height: f64| vec![(1.0, height), (2.0, 2.0 * height)];
        let curves = coloured(vec![("a", line(1.0)), ("b", line(3.0)), ("c", line(1.0))]);
        assert_eq!(curves.iter().map(|curve| curve.name.as_str()).collect::<Vec<_>>(), ["a, c", "b"]);
        assert_ne!(curves[0].stroke, curves[1].stroke);
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_flattens_a_zigzag() {
        let line: Vec<(f64, f64)> = (0..100).map(|step| (f64::from(step), 100.0 - f64::from(step))).collect();
        assert!(smooth(&line).iter().zip(&line).all(|(found, expected)| (found.1 - expected.1).abs() < 1e-9));
        let zigzag: Vec<(f64, f64)> = (0..100).map(|step| (f64::from(step), f64::from(step % 2))).collect();
        assert!(smooth(&zigzag)[5..95].iter().all(|point| (point.1 - 0.5).abs() < 0.1));
    }

    #[test]
    fn short_and_empty_runs_are_drawn_too() {
        assert!(loss_svg("a <b>", &[]).contains("a &lt;b&gt;"));
        let one = loss_svg("one", &run(1));
        assert!(one.contains("<circle") && !one.contains("NaN") && !one.contains("inf"), "{one}");
    }

    #[test]
    fn there_is_a_chart_of_each_thing_that_is_measured() {
        let charts = charts(&run(20));
        assert_eq!(charts.len(), 7);
        assert!(charts.iter().all(|svg| !svg.contains("NaN") && svg.ends_with("</svg>\n")));
        assert!(charts[1].contains(">projector</text>"), "{}", charts[1]);
        assert!(charts[6].contains("no step yet"), "memory was not measured: {}", charts[6]);
    }
}
