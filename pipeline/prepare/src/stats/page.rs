//! The page of `stats`.

use std::collections::BTreeMap;
use std::path::Path;

use vela_types::RecordLengths;

use super::padding::packable;
use super::spread::LengthBin;
use super::{PackingStats, Spread, StatsConfig, StatsReport, shuffled};
use crate::PrepareError;
use crate::page::{Bar, HistogramBin, Page, Strip, bars, count, escaped, histogram, percent, size, strips};

/// Rows of the packing plan that are drawn.
const MAX_STRIPS: usize = 24;
/// Names of languages and sources that are listed; the others are one bar.
const MAX_NAMES: usize = 12;

pub(super) fn write_page(
    path: &Path,
    config: &StatsConfig,
    report: &StatsReport,
    lengths: &[RecordLengths],
) -> Result<(), PrepareError> {
    let mut page = Page::new("Vela: what the shards hold");
    page.push(format_args!(
        "<header><h1><span class=\"flame\"></span>{}</h1><p class=\"soft mono\">{}</p></header>\n",
        escaped(&config.shards),
        report.fingerprint
    ));
    page.figures(&figures(report));
    page.push(format_args!("<div class=\"grid\">\n"));
    lengths_cards(&mut page, report);
    per_sample_cards(&mut page, report);
    page.card("Languages", "", &named_bars(&report.languages, "cool"));
    page.card("Sources", "", &named_bars(&report.sources, ""));
    page.card("What padding costs", &format!("batches of {}", count(report.padding.batch.into())), &padding(report));
    page.card("Packing", &format!("rows of {} tokens", count(report.packing.length.into())), &packing(&report.packing));
    page.push(format_args!("</div>\n"));
    first_rows(&mut page, config, lengths);
    page.push(format_args!("<div class=\"grid\" style=\"margin-top:1rem\">\n"));
    page.card("Repeated", "whatever the id", &repeated(report));
    page.card("Rejected while building", "by cause", &rejected(&report.rejected));
    page.push(format_args!(
        "</div>\n<footer>Lengths count each image as {} tokens. Padding and packing leave out {} samples longer than {}. \
         Made by <code>pipeline stats</code>.</footer>\n",
        report.tokens_per_image,
        count(report.packing.too_long),
        count(report.packing.length.into())
    ));
    page.write(path)
}

fn figures(report: &StatsReport) -> Vec<(String, &'static str)> {
    vec![
        (count(report.samples), "samples"),
        (count(report.images), "images used"),
        (count(report.tokens), "tokens, an image as one"),
        (percent(report.label_share()), "of them predicted"),
        (count(report.text_only), "text-only samples"),
        (count(report.multi_image), "with several images"),
        (size(report.bytes), "on disk"),
        (percent(report.packing.utilisation), "filled when packed"),
    ]
}

fn lengths_cards(page: &mut Page, report: &StatsReport) {
    let cards = [
        ("Length", "tokens, images expanded", &report.lengths, ""),
        ("Predicted tokens", "per sample", &report.label_lengths, "cool"),
    ];
    for (title, remark, spread, class) in cards {
        let marks = [("median", spread.p50), ("95 %", spread.p95), ("99 %", spread.p99)];
        let chart = histogram(&chart_bins(&spread.histogram), &marks, class);
        page.card(title, remark, &format!("{chart}{}", percentiles(spread)));
    }
}

fn chart_bins(bins: &[LengthBin]) -> Vec<HistogramBin> {
    bins.iter().map(|bin| HistogramBin { from: bin.from, to: bin.to, count: bin.count }).collect()
}

fn percentiles(spread: &Spread) -> String {
    let Spread { min, mean, p5, p50, p90, p95, p99, max, .. } = spread;
    let cells = [*min, *p5, *p50, *p90, *p95, *p99, *max].map(|value| format!("<td>{}</td>", count(value))).concat();
    format!(
        "<table class=\"table\"><tr><th>mean</th><th>min</th><th>5 %</th><th>median</th><th>90 %</th><th>95 %</th>\
         <th>99 %</th><th>max</th></tr><tr><td>{mean:.1}</td>{cells}</tr></table>\n"
    )
}

fn per_sample_cards(page: &mut Page, report: &StatsReport) {
    let cards = [
        ("Answers per sample", "", &report.turns_per_sample, ""),
        ("Images per sample", "", &report.images_per_sample, "cool"),
    ];
    for (title, remark, counts, class) in cards {
        page.card(title, remark, &histogram(&whole_bins(counts), &[], class));
    }
}

/// One column per value from the smallest to the largest, or wider ones where there are many.
fn whole_bins(counts: &BTreeMap<u64, u64>) -> Vec<HistogramBin> {
    let (Some((&first, _)), Some((&last, _))) = (counts.first_key_value(), counts.last_key_value()) else {
        return Vec::new();
    };
    let width = (last - first + 1).div_ceil(40);
    let bin = |at: u64| {
        let (from, to) = (first + at * width, first + (at + 1) * width);
        HistogramBin { from, to, count: counts.range(from..to).map(|(_, count)| count).sum() }
    };
    (0..(last - first) / width + 1).map(bin).collect()
}

fn named_bars(counts: &BTreeMap<String, u64>, class: &str) -> String {
    let total: u64 = counts.values().sum();
    let mut named: Vec<(&str, u64)> = counts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    named.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let others: u64 = named.iter().skip(MAX_NAMES).map(|(_, count)| count).sum();
    named.truncate(MAX_NAMES);
    if others > 0 {
        named.push(("others", others));
    }
    let share = |number: u64| number as f64 / total.max(1) as f64;
    let all: Vec<Bar<'_>> = named
        .into_iter()
        .map(|(name, number)| Bar {
            name,
            share: share(number),
            value: format!("{} · {}", count(number), percent(share(number))),
            class,
        })
        .collect();
    bars(&all)
}

fn padding(report: &StatsReport) -> String {
    let padding = &report.padding;
    let bar = |name, share, class| Bar { name, share, value: percent(share), class };
    let fixed = format!("all to {}", count(padding.length.into()));
    let chart = bars(&[
        bar(&fixed, padding.fixed, ""),
        bar("to the longest of a batch", padding.in_order, ""),
        bar("the same, grouped by length", padding.by_length, "cool"),
        bar("packed", report.packing.padding, "good"),
    ]);
    format!("<p class=\"soft\">Share of positions that hold no token.</p>{chart}")
}

fn packing(packing: &PackingStats) -> String {
    let rows = [
        ("filled", percent(packing.utilisation)),
        ("the most any plan could fill", percent(packing.utilisation_bound)),
        ("rows", format!("{} (any plan: {} or more)", count(packing.packs), count(packing.packs_at_least))),
        ("samples in the fullest row", count(packing.most_samples)),
        ("images in a row at most", count(packing.most_images)),
        ("samples too long for a row", count(packing.too_long)),
    ];
    table(&rows.map(|(name, value)| (name.to_owned(), value)))
}

fn table(rows: &[(String, String)]) -> String {
    let cells =
        rows.iter().map(|(name, value)| format!("<tr><td>{}</td><td>{}</td></tr>\n", escaped(name), escaped(value)));
    format!("<table class=\"table\">\n{}</table>\n", cells.collect::<String>())
}

/// The first rows of the plan as an epoch might have them.
fn first_rows(page: &mut Page, config: &StatsConfig, lengths: &[RecordLengths]) {
    let limits = config.packing;
    let (mut items, _) = packable(&shuffled(lengths), config.tokens_per_image, limits);
    items.truncate(limits.window as usize);
    let Ok(plan) = limits.pack(0, &items) else { return };
    if plan.rows.is_empty() {
        return;
    }
    let strip = |row: &Vec<u64>| -> Strip {
        let parts = row.iter().map(|&place| {
            let item = items[place as usize];
            let image = u64::from(item.images) * u64::from(config.tokens_per_image);
            (image, u64::from(item.tokens) - image)
        });
        parts.collect()
    };
    let rows: Vec<Strip> = plan.rows.iter().take(MAX_STRIPS).map(strip).collect();
    let key = "<p><span class=\"key\"><i class=\"image\"></i>image</span><span class=\"key\"><i class=\"text\"></i>text</span>\
               <span class=\"key\"><i class=\"none\"></i>empty</span></p>";
    page.push(format_args!("<div style=\"margin-top:1rem\">\n"));
    let remark = format!("{} of {} rows of a window", count(rows.len() as u64), count(plan.rows.len() as u64));
    page.card("How rows are filled", &remark, &format!("{key}{}", strips(&rows, limits.tokens.into())));
    page.push(format_args!("</div>\n"));
}

fn repeated(report: &StatsReport) -> String {
    let of = |number: u64, total: u64| format!("{} · {}", count(number), percent(number as f64 / total.max(1) as f64));
    table(&[
        ("samples, text and images".to_owned(), of(report.duplicates.samples, report.samples)),
        ("texts, whatever the images".to_owned(), of(report.duplicates.texts, report.samples)),
        ("uses of an image seen before".to_owned(), of(report.duplicates.images, report.images)),
        ("images stored".to_owned(), format!("{} · {}", count(report.images_stored), size(report.pixel_bytes))),
    ])
}

fn rejected(rejects: &BTreeMap<String, u64>) -> String {
    if rejects.is_empty() {
        return "<p class=\"soft\">None: every record became a sample.</p>\n".to_owned();
    }
    table(&rejects.iter().map(|(cause, number)| (cause.clone(), count(*number))).collect::<Vec<_>>())
}
