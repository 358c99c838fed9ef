//! Line charts as SVG, with readable axes and no library behind them.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 54.0;
/// More points than pixels say nothing more.
pub(crate) const MAX_POINTS: usize = 1_600;
/// Room of a legend's entry: the stroke, and each letter.
const LEGEND_STROKE: f64 = 42.0;
const LEGEND_LETTER: f64 = 7.2;

/// One line of a chart: a name for the legend, a colour, and (step, value) points.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) stroke: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
    /// Points are marked: there are few.
    pub(crate) dots: bool,
}

/// Curves over optimizer steps.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    /// What the values are, with their unit.
    pub(crate) values: &'a str,
    pub(crate) curves: Vec<Curve>,
}

/// Maps data to the page.
struct Frame {
    steps: (f64, f64),
    values: (f64, f64),
}

impl Frame {
    fn around(curves: &[Curve]) -> Self {
        let points = || curves.iter().flat_map(|curve| curve.points.iter());
        let (first, last) = bounds(points().map(|point| point.0));
        let (low, high) = bounds(points().map(|point| point.1));
        let margin = ((high - low) * 0.05).max(1e-6 * high.abs()).max(1e-9);
        let floor = if low >= 0.0 { (low - margin).max(0.0) } else { low - margin };
        Self { steps: (first, if last > first { last } else { first + 1.0 }), values: (floor, high + margin) }
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + (step - self.steps.0) / (self.steps.1 - self.steps.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + (self.values.1 - value) / (self.values.1 - self.values.0) * (HEIGHT - TOP - BOTTOM)
    }
}

impl Chart<'_> {
    /// An SVG document.
    pub(crate) fn svg(&self) -> String {
        let mut svg = String::new();
        let _ = write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"26\" font-size=\"16\">{}</text>\n",
            escape(self.title)
        );
        if self.curves.iter().all(|curve| curve.points.is_empty()) {
            svg.push_str("<text x=\"78\" y=\"230\">no step yet</text>\n</svg>\n");
            return svg;
        }
        let frame = Frame::around(&self.curves);
        write_axes(&mut svg, &frame, self.values);
        self.curves.iter().for_each(|curve| write_curve(&mut svg, &frame, curve));
        write_legend(&mut svg, &self.curves);
        svg.push_str("</svg>\n");
        svg
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

fn write_axes(svg: &mut String, frame: &Frame, values: &str) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for tick in ticks(frame.values, 6, 0.0) {
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
         <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
        (LEFT + right) / 2.0,
        HEIGHT - 12.0,
        (TOP + bottom) / 2.0,
        escape(values)
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
    let width = |curve: &Curve| LEGEND_STROKE + LEGEND_LETTER * curve.name.chars().count() as f64;
    let mut x = WIDTH - RIGHT - curves.iter().map(width).sum::<f64>();
    for curve in curves {
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"22\" x2=\"{:.1}\" y2=\"22\" stroke=\"{}\" stroke-width=\"3\"/>\n\
             <text x=\"{:.1}\" y=\"26\">{}</text>\n",
            x + 22.0,
            curve.stroke,
            x + 28.0,
            escape(&curve.name)
        );
        x += width(curve);
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

/// Up to four significant digits, no trailing zeros; small and large values with their power of ten.
pub(crate) fn label(value: f64) -> String {
    let power = value.abs().log10().floor();
    if value != 0.0 && !(-4.0..7.0).contains(&power) {
        return format!("{}e{power}", label(value / 10f64.powf(power)));
    }
    let digits = if value == 0.0 { 0 } else { (3 - power as i64).clamp(0, 9) as usize };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 1.0), 5, 0.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks((1.0, 4.0), 8, 1.0), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(
            [0.6000000000000001, 12_000.0, 2.5, 0.00123, 0.0].map(label),
            ["0.6", "12000", "2.5", "0.00123", "0"]
        );
        assert_eq!([2e-5, 1.5e-6, 3e9].map(label), ["2e-5", "1.5e-6", "3e9"]);
    }

    #[test]
    fn every_point_lies_inside_the_frame() {
        let points: Vec<(f64, f64)> =
            (1..=500).map(|step| (f64::from(step), f64::from(step * 7919 % 501) - 250.0)).collect();
        let curves = [Curve { name: "a".into(), stroke: "#000", points, dots: false }];
        let frame = Frame::around(&curves);
        for &(step, value) in &curves[0].points {
            assert!((LEFT..=WIDTH - RIGHT).contains(&frame.x(step)), "{step}");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&frame.y(value)), "{value}");
        }
    }
}
