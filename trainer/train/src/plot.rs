//! `loss.svg`: loss over steps with readable axes, and no library behind it.

use std::fmt::Write;

use crate::metrics::StepMetrics;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 54.0;
/// More points than pixels say nothing more.
const MAX_POINTS: usize = 1_600;
/// The smoothed curve averages this share of the run on either side of a step.
const SMOOTHING_SHARE: f64 = 0.025;

/// One line of the plot: a name for the legend, a colour, and (step, loss) points.
struct Curve {
    name: &'static str,
    stroke: &'static str,
    points: Vec<(f64, f64)>,
    dots: bool,
}

/// Maps data to the page.
struct Frame {
    steps: (f64, f64),
    losses: (f64, f64),
}

impl Frame {
    fn around(curves: &[Curve]) -> Self {
        let points = || curves.iter().flat_map(|curve| curve.points.iter());
        let (first, last) = bounds(points().map(|point| point.0));
        let (low, high) = bounds(points().map(|point| point.1));
        let margin = ((high - low) * 0.05).max(1e-6 * high.abs()).max(1e-9);
        let floor = if low >= 0.0 { (low - margin).max(0.0) } else { low - margin };
        Self { steps: (first, if last > first { last } else { first + 1.0 }), losses: (floor, high + margin) }
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + (step - self.steps.0) / (self.steps.1 - self.steps.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, loss: f64) -> f64 {
        TOP + (self.losses.1 - loss) / (self.losses.1 - self.losses.0) * (HEIGHT - TOP - BOTTOM)
    }
}

/// The loss curve of a run as an SVG document: every logged step, a moving average over them, and the validation
/// loss where there is one.
pub fn loss_svg(title: &str, lines: &[StepMetrics]) -> String {
    let curves = curves(lines);
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\">{}</text>\n",
        escape(title)
    );
    if curves.iter().all(|curve| curve.points.is_empty()) {
        svg.push_str("<text x=\"70\" y=\"230\">no step yet</text>\n</svg>\n");
        return svg;
    }
    let frame = Frame::around(&curves);
    write_axes(&mut svg, &frame);
    curves.iter().for_each(|curve| write_curve(&mut svg, &frame, curve));
    write_legend(&mut svg, &curves);
    svg.push_str("</svg>\n");
    svg
}

fn curves(lines: &[StepMetrics]) -> Vec<Curve> {
    let losses: Vec<(f64, f64)> = lines.iter().map(|line| (line.step as f64, line.loss)).collect();
    let losses: Vec<(f64, f64)> = losses.into_iter().filter(|point| point.1.is_finite()).collect();
    let validation: Vec<(f64, f64)> =
        lines.iter().filter_map(|line| Some((line.step as f64, line.validation_loss?))).collect();
    let smoothed = thin(smooth(&losses));
    let mut curves = vec![
        Curve { name: "loss per label token", stroke: "#9dbfe0", points: thin(losses), dots: false },
        Curve { name: "smoothed", stroke: "#1f5fa8", points: smoothed, dots: false },
    ];
    if !validation.is_empty() {
        curves.push(Curve { name: "validation", stroke: "#c8541e", points: validation, dots: true });
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

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

fn write_axes(svg: &mut String, frame: &Frame) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for tick in ticks(frame.losses, 6, 0.0) {
        let y = frame.y(tick);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e4e4e4\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LEFT - 8.0,
            y + 4.5,
            label(tick)
        );
    }
    for tick in ticks(frame.steps, 8, 1.0) {
        let x = frame.x(tick);
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{}\" stroke=\"#888\"/>\n\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            bottom + 5.0,
            bottom + 20.0,
            label(tick)
        );
    }
    let _ = write!(
        svg,
        "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">optimizer step</text>\n\
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">loss (nats)</text>\n",
        (LEFT + right) / 2.0,
        HEIGHT - 12.0,
        (TOP + bottom) / 2.0
    );
}

fn write_curve(svg: &mut String, frame: &Frame, curve: &Curve) {
    let place = |&(step, loss): &(f64, f64)| format!("{:.1},{:.1}", frame.x(step), frame.y(loss));
    let path: Vec<String> = curve.points.iter().map(place).collect();
    let stroke = curve.stroke;
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.6\" stroke-linejoin=\"round\"/>",
        path.join(" ")
    );
    // A single point would make an invisible line.
    if curve.dots || curve.points.len() == 1 {
        for &(step, loss) in &curve.points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{stroke}\"/>",
                frame.x(step),
                frame.y(loss)
            );
        }
    }
}

fn write_legend(svg: &mut String, curves: &[Curve]) {
    let mut x = WIDTH - RIGHT - 170.0 * curves.len() as f64;
    for curve in curves {
        let _ = write!(
            svg,
            "<line x1=\"{x}\" y1=\"22\" x2=\"{}\" y2=\"22\" stroke=\"{}\" stroke-width=\"3\"/>\n\
             <text x=\"{}\" y=\"26\">{}</text>\n",
            x + 22.0,
            curve.stroke,
            x + 28.0,
            curve.name
        );
        x += 170.0;
    }
}

/// Round values (1, 2 or 5 times a power of ten apart, `least` at least) inside `range`, about `target` of them.
fn ticks(range: (f64, f64), target: usize, least: f64) -> Vec<f64> {
    let raw = (range.1 - range.0) / target as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&step| step >= raw);
    let step = step.unwrap_or(10.0 * power).max(least);
    let first = (range.0 / step).ceil() as i64;
    let last = (range.1 / step + 1e-9).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

/// Up to four significant digits, no trailing zeros.
fn label(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = (3 - value.abs().log10().floor() as i64).clamp(0, 9) as usize;
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Rates;

    fn run(steps: u64) -> Vec<StepMetrics> {
        let line = |step: u64| StepMetrics {
            step,
            epoch: 0.0,
            loss: 5.0 / (1.0 + step as f64 / 40.0) + 0.2 * ((step * 7919 % 13) as f64 / 13.0),
            validation_loss: step.is_multiple_of(50).then_some(5.2 / (1.0 + step as f64 / 45.0)),
            lr: Rates::default(),
            grad_norm: 1.0,
            samples_per_second: 1.0,
            tokens_per_second: 1.0,
            label_tokens_per_second: 1.0,
            data_wait: 0.0,
            seconds: step as f64,
        };
        (1..=steps).map(line).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 1.0), 5, 0.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks((1.0, 4.0), 8, 1.0), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(label(0.6000000000000001), "0.6");
        assert_eq!([label(12_000.0), label(2.5), label(0.00123)], ["12000", "2.5", "0.00123"]);
    }

    #[test]
    fn every_point_lies_inside_the_frame() {
        let lines = run(5_000);
        let curves = curves(&lines);
        let frame = Frame::around(&curves);
        assert_eq!(curves.len(), 3);
        assert!(curves[0].points.len() <= MAX_POINTS + 1);
        for &(step, loss) in curves.iter().flat_map(|curve| &curve.points) {
            assert!((LEFT..=WIDTH - RIGHT).contains(&frame.x(step)), "{step}");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&frame.y(loss)), "{loss}");
        }
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
}
