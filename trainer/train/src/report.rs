//! `report.html`: one page about one run, or about the stages of a model one after the other, that needs no other file.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::chart::{escape, label};
use crate::error::TrainError;
use crate::guard::SkippedStep;
use crate::memory::in_mib;
use crate::metrics::{StepMetrics, read_metrics};
use crate::plot::charts;
use crate::recipe::RawRecipe;
use crate::run_card::{RunCard, load_recipe};
use crate::run_folder::write_whole;
use crate::samples::{SampleAnswers, read_answers};
use crate::step_log::read_lines;

/// The largest image file that is put into the page.
const MAX_IMAGE_BYTES: u64 = 1 << 20;
/// Answers shown of a run: the first, the last, and what lies evenly between.
const MAX_ANSWERS: usize = 12;
const STYLE: &str = include_str!("report.css");

/// What a report was made of; the JSON object of `trainer report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReportFile {
    /// The page.
    pub report: PathBuf,
    /// Runs in it.
    pub runs: usize,
    /// Lines of metrics in it.
    pub lines: usize,
}

/// One run folder, read.
struct Stage {
    name: String,
    recipe_text: String,
    recipe: RawRecipe,
    card: RunCard,
    lines: Vec<StepMetrics>,
    answers: Vec<SampleAnswers>,
    skipped: Vec<SkippedStep>,
}

impl Stage {
    fn load(folder: &Path) -> Result<Self, TrainError> {
        let (recipe_text, recipe) = load_recipe(folder)?;
        Ok(Self {
            name: folder.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy()).into_owned(),
            recipe_text,
            recipe: recipe.resolved(),
            card: RunCard::load(folder)?,
            lines: read_metrics(&folder.join("metrics.jsonl"))?,
            answers: read_answers(&folder.join("answers.jsonl"))?,
            skipped: read_lines(&folder.join("skipped.jsonl"))?,
        })
    }
}

/// Writes one page about the runs in `folders`, in that order, to `output`.
///
/// # Errors
/// If a folder holds no run, or the page cannot be written.
pub fn write_report(folders: &[PathBuf], output: &Path) -> Result<ReportFile, TrainError> {
    let stages: Vec<Stage> = folders.iter().map(|folder| Stage::load(folder)).collect::<Result<_, _>>()?;
    write_whole(output, &page(&stages))?;
    let lines = stages.iter().map(|stage| stage.lines.len()).sum();
    Ok(ReportFile { report: output.to_owned(), runs: stages.len(), lines })
}

fn page(stages: &[Stage]) -> String {
    let title = stages.iter().map(|stage| stage.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n\
         <h1>{title}</h1>\n",
        title = escape(&title)
    );
    stages.iter().for_each(|stage| write_stage(&mut html, stage));
    html.push_str("</html>\n");
    html
}

fn write_stage(html: &mut String, stage: &Stage) {
    let _ = writeln!(
        html,
        "<section>\n<h2>{} <small>{}</small></h2>",
        escape(&stage.name),
        escape(&stage.recipe.train_type)
    );
    write_summary(html, stage);
    html.push_str("<div class=\"charts\">\n");
    for svg in charts(&stage.lines) {
        let _ = writeln!(html, "<figure>{svg}</figure>");
    }
    html.push_str("</div>\n");
    write_answers(html, &stage.answers);
    write_skipped(html, &stage.skipped);
    write_facts(html, stage);
    let _ = writeln!(
        html,
        "<details open><summary>Recipe, as resolved</summary><pre>{}</pre></details>\n</section>",
        escape(&stage.recipe_text)
    );
}

/// The numbers that one looks for first.
fn write_summary(html: &mut String, stage: &Stage) {
    let (Some(first), Some(last)) = (stage.lines.first(), stage.lines.last()) else {
        html.push_str("<p>No step has been made yet.</p>\n");
        return;
    };
    let validation = stage.lines.iter().filter_map(|line| line.validation_loss).next_back();
    let tiles = [
        ("steps", format!("{} of {}", last.step, stage.card.total_steps)),
        ("epochs", label(last.epoch)),
        ("loss", format!("{} to {}", label(first.loss), label(last.loss))),
        ("validation loss", validation.map_or_else(|| "not measured".to_owned(), label)),
        ("samples/s", median(&stage.lines, |line| Some(line.samples_per_second))),
        ("tokens/s", median(&stage.lines, |line| Some(line.tokens_per_second))),
        ("MFU", median(&stage.lines, |line| line.mfu.map(percent)) + " %"),
        ("waiting for data", median(&stage.lines, |line| Some(percent(line.data_wait))) + " %"),
        ("time", in_hours(last.seconds)),
    ];
    html.push_str("<dl class=\"tiles\">\n");
    for (name, value) in tiles {
        let _ = writeln!(html, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
    }
    html.push_str("</dl>\n");
}

/// With one digit behind the point.
fn percent(share: f64) -> f64 {
    (1000.0 * share).round() / 10.0
}

/// The median over all lines, for a rate that differs from line to line.
fn median(lines: &[StepMetrics], value: impl Fn(&StepMetrics) -> Option<f64>) -> String {
    let mut values: Vec<f64> = lines.iter().filter_map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).map_or_else(|| "-".to_owned(), |value| label(*value))
}

/// `42 s`, `12 min 5 s`, `3 h 20 min`.
fn in_hours(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

fn write_answers(html: &mut String, answers: &[SampleAnswers]) {
    if !answers.is_empty() {
        html.push_str("<h3>Sample answers over time</h3>\n");
    }
    // A run that is resumed may ask something else.
    answers.chunk_by(SampleAnswers::asks_as).for_each(|lines| write_answer_table(html, lines));
}

/// Answers to the same questions.
fn write_answer_table(html: &mut String, answers: &[SampleAnswers]) {
    html.push_str("<table class=\"answers\">\n<tr><th>step</th>");
    for asked in answers.iter().take(1).flat_map(|line| &line.answers) {
        html.push_str("<th>");
        asked.images.iter().for_each(|path| write_image(html, Path::new(path)));
        let _ = write!(html, "{}</th>", escape(&asked.question));
    }
    html.push_str("</tr>\n");
    for line in evenly(answers, MAX_ANSWERS) {
        let _ = write!(html, "<tr><td>{}</td>", line.step);
        for said in &line.answers {
            let _ = write!(html, "<td>{}</td>", escape(&said.answer));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table>\n");
}

/// At most `most` of `lines`, the first and the last among them.
fn evenly<L>(lines: &[L], most: usize) -> impl Iterator<Item = &L> {
    let shown = lines.len().min(most);
    (0..shown).map(move |index| &lines[index * (lines.len() - 1) / (shown - 1).max(1)])
}

/// Puts an image file into the page; one that is gone, large or of a kind that browsers do not show is named instead.
fn write_image(html: &mut String, path: &Path) {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let is_small = path.metadata().is_ok_and(|file| file.len() <= MAX_IMAGE_BYTES);
    let bytes = if is_small { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    let _ = match kind_of(&bytes) {
        Some(kind) => {
            let (name, data) = (escape(&name), STANDARD.encode(&bytes));
            write!(html, "<img alt=\"{name}\" src=\"data:image/{kind};base64,{data}\">")
        }
        None => write!(html, "<code>{}</code> ", escape(&name)),
    };
}

fn kind_of(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("png"),
        [0xff, 0xd8, 0xff, ..] => Some("jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("webp"),
        _ => None,
    }
}

fn write_skipped(html: &mut String, skipped: &[SkippedStep]) {
    if skipped.is_empty() {
        return;
    }
    html.push_str("<h3>Steps left out</h3>\n<table>\n<tr><th>step</th><th>why</th><th>samples</th></tr>\n");
    for SkippedStep { step, what, value, samples, .. } in skipped {
        let (what, samples) = (escape(what), escape(&samples.join(", ")));
        let _ = writeln!(html, "<tr><td>{step}</td><td>{what} is {value}</td><td>{samples}</td></tr>");
    }
    html.push_str("</table>\n");
}

/// Data, model and machine.
fn write_facts(html: &mut String, stage: &Stage) {
    let (card, data) = (&stage.card, &stage.recipe.data);
    let place = data.shards.as_ref().or(data.loader.as_ref()).map_or("", String::as_str);
    let model = &stage.recipe.model;
    let weights = model.path.as_ref().or(model.init.as_ref()).map_or("", String::as_str);
    let facts = [
        ("data", place.to_owned()),
        ("data fingerprint", card.data.clone()),
        ("samples, images, tokens", format!("{}, {}, {}", card.samples, card.images, card.tokens)),
        ("steps per epoch", card.steps_per_epoch.to_string()),
        ("processor fingerprint", card.processor.clone()),
        ("image mode", card.image_mode.clone()),
        ("weights from", weights.to_owned()),
        ("weights, trained", format!("{}, {}", card.weights, card.trained)),
        ("tokens per image", card.image_tokens.to_string()),
        ("processor of the machine", format!("{}, {} threads", card.machine.cpu, card.machine.cores)),
        ("memory of the machine", card.machine.memory.map_or_else(|| "unknown".to_owned(), in_mib)),
        ("estimated memory", in_mib(card.estimated_memory)),
        ("system", card.machine.system.clone()),
        ("utilisation against", card.peak.describe()),
        ("version", card.version.clone()),
    ];
    html.push_str("<h3>Data, model, machine</h3>\n<table class=\"facts\">\n");
    for (name, value) in facts {
        let _ = writeln!(html, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
    }
    html.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_lines_are_all_shown_and_many_evenly() {
        let lines: Vec<usize> = (0..100).collect();
        assert_eq!(evenly(&lines[..3], 12).copied().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(evenly(&lines[..1], 12).copied().collect::<Vec<_>>(), [0]);
        let some: Vec<usize> = evenly(&lines, 12).copied().collect();
        assert_eq!((some.len(), some[0], some[11]), (12, 0, 99));
    }

    #[test]
    fn times_are_told_in_two_units() {
        assert_eq!([42.4, 725.0, 12_000.0].map(in_hours), ["42 s", "12 min 5 s", "3 h 20 min"]);
    }

    #[test]
    fn images_are_known_by_their_first_bytes() {
        assert_eq!(kind_of(b"\x89PNG\r\n"), Some("png"));
        assert_eq!(kind_of(b"RIFF1234WEBP"), Some("webp"));
        assert_eq!(kind_of(b"BM"), None);
    }
}
