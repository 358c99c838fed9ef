//! What the demo prints: the JSON object, the table, the curves and some answers.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use vela_loader::LoaderReport;
use vela_prepare::{BuildReport, DemoDataReport, QuestionKind};
use vela_runtime::ExitStatus;
use vela_types::Language;

use crate::chart::block_chart;
use crate::plan::{EXACT_MATCH_BAR, Plan, SHUFFLED_MARGIN};
use crate::score::{Answered, Score, Scores};
use crate::stages::Stage;

const LANGUAGES: [Language; 2] = [Language::Zh, Language::En];
const CHART_WIDTH: usize = 64;
const CHART_HEIGHT: usize = 4;

/// Everything a run found out.
pub(crate) struct DemoReport {
    pub(crate) raw: DemoDataReport,
    pub(crate) shards: BuildReport,
    pub(crate) served: LoaderReport,
    pub(crate) stages: Vec<Stage>,
    pub(crate) scores: Scores,
    pub(crate) seconds: f64,
    pub(crate) workplace: PathBuf,
}

impl DemoReport {
    /// The object of `--json`.
    pub(crate) fn to_json(&self) -> Value {
        let overall = self.scores.overall();
        let stage = |stage: &Stage| {
            json!({
                "name": stage.plan.name, "loss_first": stage.report.loss_first, "loss_last": stage.report.loss_last,
                "steps": stage.report.steps, "seconds": stage.seconds,
            })
        };
        let language = |language: &Language| {
            let Score { questions, exact_match, exact_match_shuffled, chance } = self.scores.of_language(*language);
            let score = json!({
                "questions": questions, "exact_match": exact_match, "exact_match_shuffled": exact_match_shuffled,
                "chance": chance,
            });
            (language.as_str().to_owned(), score)
        };
        json!({
            "exact_match": overall.exact_match,
            "exact_match_shuffled": overall.exact_match_shuffled,
            "chance": overall.chance,
            "seconds": self.seconds,
            "stages": self.stages.iter().map(stage).collect::<Vec<_>>(),
            "exact_match_after_stage1": self.scores.after_stage_1,
            "languages": LANGUAGES.iter().map(language).collect::<serde_json::Map<_, _>>(),
        })
    }

    /// The text for people.
    pub(crate) fn to_text(&self) -> String {
        let parts =
            [self.path_text(), self.curves_text(), self.scores_text(), self.answers_text(), self.verdict_text()];
        parts.join("\n")
    }

    /// Exit code 3 when a judged run misses a bar.
    pub(crate) fn status(&self, plan: &Plan) -> ExitStatus {
        match plan.judged && !self.missed_bars().is_empty() {
            true => ExitStatus::Quality,
            false => ExitStatus::Done,
        }
    }

    fn path_text(&self) -> String {
        let Self { raw, shards, served, .. } = self;
        let mut text = format!(
            "{} raw records -> {} samples, {} tokens, {} MiB in {} shard(s), {:.1} s\n",
            raw.samples,
            shards.samples,
            shards.tokens,
            shards.bytes >> 20,
            shards.shards,
            shards.seconds
        );
        let _ = writeln!(text, "loader: {} batches, {} MiB over gRPC", served.batches, served.bytes >> 20);
        text
    }

    fn curves_text(&self) -> String {
        let mut text = String::new();
        for Stage { plan, report, curve, seconds, folder, .. } in &self.stages {
            let losses: Vec<f64> = curve.iter().map(|line| line.loss).collect();
            let (first, last) = (report.loss_first.unwrap_or(f64::NAN), report.loss_last.unwrap_or(f64::NAN));
            let _ = writeln!(
                text,
                "{} ({}): {} steps, {seconds:.0} s, loss {first:.3} -> {last:.3}, {:.0} tokens/s",
                plan.name, plan.purpose, report.steps, report.tokens_per_second
            );
            for line in block_chart(&losses, CHART_WIDTH, CHART_HEIGHT) {
                let _ = writeln!(text, "  {line}");
            }
            let _ = writeln!(text, "  {}\n", folder.join("loss.svg").display());
        }
        text.trim_end().to_owned() + "\n"
    }

    fn scores_text(&self) -> String {
        let mut text =
            format!("{:<16}{:>10}{:>12}{:>12}{:>10}\n", "exact match", "questions", "own image", "shuffled", "chance");
        let mut row = |name: String, score: Score| {
            let Score { questions, exact_match, exact_match_shuffled, chance } = score;
            let _ = writeln!(
                text,
                "{name:<16}{questions:>10}{exact_match:>12.3}{exact_match_shuffled:>12.3}{chance:>10.3}"
            );
        };
        for language in LANGUAGES {
            for kind in self.scores.kinds() {
                row(format!("{} {}", language.as_str(), kind_name(kind)), self.scores.of_kind(language, kind));
            }
            row(format!("{} all", language.as_str()), self.scores.of_language(language));
        }
        row("all".to_owned(), self.scores.overall());
        let _ = writeln!(text, "after stage 1, own image: {:.3}", self.scores.after_stage_1);
        text
    }

    /// One answer per language and kind, and up to three wrong ones.
    fn answers_text(&self) -> String {
        let mut text = String::from("answers about images never seen (own image | another image)\n");
        let mut shown: Vec<(Language, QuestionKind)> = Vec::new();
        let first_of_kind = self.scores.answers.iter().filter(|answered| {
            let key = (answered.question.language, answered.question.kind);
            let is_new = !shown.contains(&key);
            shown.extend(is_new.then_some(key));
            is_new
        });
        first_of_kind.for_each(|answered| write_answer(&mut text, answered));
        let wrong = self.scores.answers.iter().filter(|answered| answered.said != answered.question.answer);
        wrong.take(3).for_each(|answered| write_answer(&mut text, answered));
        text
    }

    fn verdict_text(&self) -> String {
        let mut text = format!("{:.0} s in all; files in {}\n", self.seconds, self.workplace.display());
        for missed in self.missed_bars() {
            let _ = writeln!(text, "not reached: {missed}");
        }
        text
    }

    fn missed_bars(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for language in LANGUAGES {
            let score = self.scores.of_language(language);
            if score.exact_match < EXACT_MATCH_BAR {
                let (name, found) = (language.as_str(), score.exact_match);
                missed.push(format!("exact match, {name}: expected at least {EXACT_MATCH_BAR:.2}, found {found:.3}"));
            }
        }
        let Score { exact_match_shuffled: found, chance, .. } = self.scores.overall();
        if found > chance + SHUFFLED_MARGIN {
            let most = chance + SHUFFLED_MARGIN;
            missed.push(format!("exact match with shuffled images: expected at most {most:.3}, found {found:.3}"));
        }
        missed
    }
}

fn write_answer(text: &mut String, answered: &Answered) {
    let Answered { question, said, said_shuffled } = answered;
    let mark = if *said == question.answer { "ok" } else { "no" };
    let asked = &question.question;
    let _ = writeln!(text, "  {mark}  {asked}  {said} | {said_shuffled}   (true: {})", question.answer);
}

fn kind_name(kind: QuestionKind) -> String {
    format!("{kind:?}").to_lowercase()
}
