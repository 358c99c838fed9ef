//! Charts as inline SVG and HTML bars; colours come from the page's style.

use std::fmt::Write as _;

use super::text::{count, escaped};

/// Values from `from` to below `to`, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HistogramBin {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) count: u64,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 150.0;
const LABELS: f64 = 22.0;
/// Room for the label of a mark.
const MARK_WIDTH: f64 = 70.0;
const MARK_HEIGHT: f64 = 13.0;
/// Few columns are no wider than this.
const MAX_COLUMN: f64 = 64.0;

/// Columns over an axis, with marked values: label and value. `class` colours the columns.
pub(crate) fn histogram(bins: &[HistogramBin], marks: &[(&str, u64)], class: &str) -> String {
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else { return String::new() };
    let most = bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(1) as f64;
    let span = (last.to - first.from).max(1) as f64;
    let x = |value: u64| (value.saturating_sub(first.from)) as f64 / span * WIDTH;
    let marks: Vec<(&str, u64)> =
        marks.iter().filter(|(_, value)| (first.from..last.to).contains(value)).copied().collect();
    let rows = label_rows(marks.iter().map(|(_, value)| x(*value)));
    let top = 16.0 + MARK_HEIGHT * rows.iter().max().copied().unwrap_or(0) as f64;
    let mut svg = format!("<svg viewBox=\"0 -{top} {WIDTH} {}\" role=\"img\">", HEIGHT + LABELS + top);
    for bin in bins {
        let (left, height) = (x(bin.from), bin.count as f64 / most * HEIGHT);
        let (slot, top) = ((x(bin.to) - left - 1.0).max(0.75), HEIGHT - height);
        let width = slot.min(MAX_COLUMN);
        let left = left + (slot - width) / 2.0;
        let range =
            if bin.to == bin.from + 1 { count(bin.from) } else { format!("{}-{}", count(bin.from), count(bin.to - 1)) };
        push(
            &mut svg,
            format_args!(
                "<rect class=\"bar {class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
                 rx=\"1.5\"><title>{range}: {}</title></rect>",
                count(bin.count)
            ),
        );
    }
    push(&mut svg, format_args!("<line class=\"axis\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{HEIGHT}\" y2=\"{HEIGHT}\"/>"));
    axis_labels(&mut svg, bins, &x);
    for ((label, value), row) in marks.iter().zip(&rows) {
        let at = x(*value);
        push(&mut svg, format_args!("<line class=\"rule\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"-3\" y2=\"{HEIGHT}\"/>"));
        let (anchor, y) = (if is_last(at) { "end" } else { "start" }, -6.0 - MARK_HEIGHT * *row as f64);
        let (label, value) = (escaped(label), count(*value));
        push(&mut svg, format_args!("<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{label} {value}</text>"));
    }
    svg.push_str("</svg>\n");
    svg
}

/// True where a label has no room to the right of its line.
fn is_last(at: f64) -> bool {
    at > WIDTH - 60.0
}

/// The row of each label, from the lowest: a label that would lie on another goes a row higher.
fn label_rows(places: impl Iterator<Item = f64>) -> Vec<usize> {
    let mut edges: Vec<f64> = Vec::new();
    let row = |at: f64| {
        let left = if is_last(at) { at - MARK_WIDTH } else { at };
        let row = edges.iter().position(|edge| left >= *edge).unwrap_or(edges.len());
        edges.resize(edges.len().max(row + 1), 0.0);
        edges[row] = left + MARK_WIDTH;
        row
    };
    places.map(row).collect()
}

/// Few columns are labelled each in its middle, many at round values along the axis.
fn axis_labels(svg: &mut String, bins: &[HistogramBin], x: &dyn Fn(u64) -> f64) {
    let (first, last) = (bins[0], bins[bins.len() - 1]);
    let y = HEIGHT + 15.0;
    if bins.len() <= 12 && bins.iter().all(|bin| bin.to == bin.from + 1) {
        for bin in bins {
            let at = (x(bin.from) + x(bin.to)) / 2.0;
            push(svg, format_args!("<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", count(bin.from)));
        }
        return;
    }
    let step = round_step((last.to - first.from) / 5);
    let mut value = first.from.div_ceil(step) * step;
    while value <= last.to {
        let at = x(value);
        let anchor = if at > WIDTH - 20.0 {
            "end"
        } else if at < 12.0 {
            "start"
        } else {
            "middle"
        };
        push(svg, format_args!("<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", count(value)));
        value += step;
    }
}

/// The first of 1, 2, 5, 10, 20, 50, ... that is at least `step`.
fn round_step(step: u64) -> u64 {
    let mut power = 1;
    loop {
        if let Some(round) = [1, 2, 5].into_iter().map(|digit| digit * power).find(|&round| round >= step) {
            return round;
        }
        power *= 10;
    }
}

/// One horizontal bar.
pub(crate) struct Bar<'a> {
    pub(crate) name: &'a str,
    /// 0 to 1.
    pub(crate) share: f64,
    pub(crate) value: String,
    /// `cool`, `good` or nothing.
    pub(crate) class: &'a str,
}

/// Named bars below one another.
pub(crate) fn bars(bars: &[Bar<'_>]) -> String {
    let mut html = String::from("<dl class=\"bars\">\n");
    for Bar { name, share, value, class } in bars {
        let width = 100.0 * share.clamp(0.0, 1.0);
        let (name, value) = (escaped(name), escaped(value));
        push(
            &mut html,
            format_args!(
                "<dt>{name}</dt><dd class=\"track\"><i class=\"{class}\" style=\"width:{width:.2}%\"></i></dd>\
                 <dd class=\"value\">{value}</dd>\n"
            ),
        );
    }
    html.push_str("</dl>\n");
    html
}

/// One packed row: per sample the tokens of its images and of its text.
pub(crate) type Strip = Vec<(u64, u64)>;

/// Rows as strips, `capacity` tokens wide: images, text, and what stays empty.
pub(crate) fn strips(rows: &[Strip], capacity: u64) -> String {
    const PITCH: f64 = 11.0;
    let width = 2.0 * WIDTH;
    let scale = width / capacity.max(1) as f64;
    let mut svg = format!("<svg viewBox=\"0 0 {width} {}\" role=\"img\">", PITCH * rows.len() as f64);
    for (at, row) in rows.iter().enumerate() {
        let y = PITCH * at as f64;
        push(
            &mut svg,
            format_args!("<rect class=\"none\" x=\"0\" y=\"{y}\" width=\"{width}\" height=\"8\" rx=\"2\"/>"),
        );
        let mut tokens = 0;
        for (image, text) in row {
            for (class, length) in [("image", *image), ("text", *text)] {
                let (left, wide) = (tokens as f64 * scale, (length as f64 * scale - 0.8).max(0.0));
                if length > 0 {
                    push(
                        &mut svg,
                        format_args!(
                            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y}\" width=\"{wide:.1}\" height=\"8\"><title>{} \
                             {class} tokens</title></rect>",
                            count(length)
                        ),
                    );
                }
                tokens += length;
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn push(out: &mut String, markup: std::fmt::Arguments<'_>) {
    out.write_fmt(markup).expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_column_fills_the_chart_and_says_its_range() {
        let bins = [HistogramBin { from: 0, to: 10, count: 4 }, HistogramBin { from: 10, to: 20, count: 8 }];
        let svg = histogram(&bins, &[("median", 12)], "cool");
        assert!(svg.contains("height=\"150.0\"") && svg.contains("height=\"75.0\""), "{svg}");
        assert!(svg.contains("<title>10-19: 8</title>") && svg.contains(">median 12</text>"), "{svg}");
    }

    #[test]
    fn every_mark_has_its_label_and_none_lies_on_another() {
        let bins = [HistogramBin { from: 0, to: 560, count: 4 }];
        let svg = histogram(&bins, &[("median", 100), ("95 %", 120), ("99 %", 130), ("most", 550)], "");
        for label in [
            "y=\"-6\" text-anchor=\"start\">median 100",
            "y=\"-19\" text-anchor=\"start\">95 % 120",
            ">99 % 130",
            "\"end\">most 550",
        ] {
            assert!(svg.contains(label), "{label}: {svg}");
        }
        assert_eq!(label_rows([100.0, 120.0, 130.0, 180.0, 550.0].into_iter()), [0, 1, 2, 0, 0]);
    }

    #[test]
    fn names_of_bars_are_text_and_their_width_is_their_share() {
        let html = bars(&[Bar { name: "<b>", share: 0.25, value: "1".to_owned(), class: "" }]);
        assert!(html.contains("&lt;b&gt;") && html.contains("width:25.00%"), "{html}");
    }

    #[test]
    fn steps_of_an_axis_are_round() {
        assert_eq!([0, 1, 3, 17, 180, 2001].map(round_step), [1, 1, 5, 20, 200, 5000]);
    }
}
