//! `cargo demo`: the whole path in one run, on data it makes itself.
//!
//! Raw data in two public layouts -> shards -> a loader on loopback -> a tiny tower and language model trained in full
//! (standing in for published weights) -> stage 1 with a fresh projector -> stage 2 -> questions about held-out images,
//! scored beside a control with shuffled images. It calls the library entries behind `pipeline`, `loader` and `trainer`
//! and adds nothing to them but the plan and the score; every number it prints was computed in the run.

mod chart;
mod data;
mod plan;
mod report;
mod score;
mod server;
mod stages;
mod workplace;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use vela_runtime::{CommandError, Outcome, Progress, Shutdown, run_command};

use plan::Plan;
use report::DemoReport;
use server::Loader;
use workplace::Workplace;

/// Generates a small bilingual data set, trains on it in three runs, and scores answers about images never seen.
#[derive(Parser)]
#[command(
    name = "vela-demo",
    version,
    after_help = "Examples:
  cargo demo
  cargo demo --output demo-run --seed 7
  cargo demo --json

Exit code: 0 done, 2 wrong use, 3 the answers are worse than the demo promises, 1 anything else."
)]
struct Cli {
    /// Folder to fill and keep; without it, a temporary folder that keeps the three runs alone.
    #[arg(long, value_name = "DIR")]
    output: Option<std::path::PathBuf>,
    /// Seed of scenes, weights and orders.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object as the last line of stdout.
    #[arg(long)]
    json: bool,
    /// Every part once, with too few steps to learn anything; the scores are printed and not judged.
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    run_command(cli.json, |shutdown| {
        let workplace = Workplace::open(cli.output.as_deref()).map_err(CommandError::usage)?;
        let plan = if cli.quick { Plan::quick(cli.seed) } else { Plan::full(cli.seed) };
        let report = run_demo(&plan, &workplace, shutdown).map_err(CommandError::failure)?;
        workplace.close().map_err(CommandError::failure)?;
        let outcome = Outcome::done(&report.to_json(), report.to_text())?;
        Ok(outcome.with_status(report.status(&plan)))
    })
}

fn run_demo(plan: &Plan, workplace: &Workplace, shutdown: &Shutdown) -> Result<DemoReport> {
    let started = Instant::now();
    let raw = data::write_raw(plan, workplace)?;
    let shards = data::build(plan, workplace, &raw, shutdown)?;
    let loader = Loader::start(&shards.output)?;
    let stages = stages::train_all(plan, workplace, &raw, &loader.url(), shutdown)?;
    let served = loader.stop()?;
    let questions = data::read_heldout(&raw)?;
    Progress::new("", None)
        .note(&format!("asking {} questions: after stage 1, after stage 2, with shuffled images", questions.len()));
    let scores = score::ask_all(&stages, &raw.heldout, &questions, plan.seed)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(DemoReport { raw, shards, served, stages, scores, seconds, workplace: workplace.path().to_owned() })
}
