//! `pipeline task`: a build taken apart for an engine that runs commands, one shard each.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;
use vela_runtime::clap::{self, Args, Subcommand};
use vela_runtime::{CommandError, Outcome, Progress, Shutdown};
use vela_shard::ShardEntry;

use super::{BuildArgs, build_outcome, command_error};
use crate::{BuildConfig, BuildTask, BuildWorker, PrepareError};

/// A build in parts: plan once, run each task at least once wherever its inputs and output can be reached, commit once.
#[derive(Args)]
#[command(after_help = "Example:
  pipeline task plan --source llava --input chat.json --processor qwen --output s3://bucket/set --tasks tasks.jsonl
  pipeline task run --tasks tasks.jsonl --index 0
  pipeline task commit --tasks tasks.jsonl")]
pub(super) struct TaskArgs {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Divides a build into tasks, one JSON object per line.
    Plan(Box<PlanArgs>),
    /// Makes the shards of some tasks; shards that are complete stay.
    Run(RunArgs),
    /// Makes a shard set of all shards; refuses while one is missing.
    Commit(CommitArgs),
}

#[derive(Args)]
struct PlanArgs {
    #[command(flatten)]
    build: BuildArgs,
    /// File for the tasks.
    #[arg(long)]
    tasks: PathBuf,
}

#[derive(Args)]
struct RunArgs {
    /// File of tasks.
    #[arg(long)]
    tasks: PathBuf,
    /// Lines to run, from 0, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    index: Vec<usize>,
}

#[derive(Args)]
struct CommitArgs {
    /// File of tasks.
    #[arg(long)]
    tasks: PathBuf,
    /// Accepted share of rejected records [default: the plan's].
    #[arg(long)]
    max_reject: Option<f64>,
}

/// The JSON object of `pipeline task run`.
#[derive(Serialize)]
struct RunReport {
    shards: Vec<ShardEntry>,
}

pub(super) fn task(args: TaskArgs, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    match args.step {
        Step::Plan(args) => plan(*args),
        Step::Run(args) => run(&args, shutdown),
        Step::Commit(args) => commit(&args),
    }
}

fn plan(args: PlanArgs) -> Result<Outcome, CommandError> {
    let config = BuildConfig::try_from(args.build).map_err(command_error)?;
    let worker = BuildWorker::open(&config).map_err(command_error)?;
    let tasks = worker.tasks();
    let mut lines = String::new();
    for task in &tasks {
        lines.push_str(&serde_json::to_string(task)?);
        lines.push('\n');
    }
    fs::write(&args.tasks, lines).map_err(PrepareError::io("write", &args.tasks))?;
    let report = json!({ "tasks": tasks.len(), "records": worker.plan().num_records(), "plan": worker.plan().name });
    Ok(Outcome::done(&report, format!("{} tasks: {}", tasks.len(), args.tasks.display()))?)
}

fn run(args: &RunArgs, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let tasks = read_tasks(&args.tasks).map_err(command_error)?;
    let wanted =
        args.index.iter().map(|&index| tasks.get(index).ok_or_else(|| no_line(&args.tasks, index, tasks.len())));
    let wanted: Vec<&BuildTask> = wanted.collect::<Result<_, _>>().map_err(command_error)?;
    let worker = BuildWorker::open(&wanted[0].config).map_err(command_error)?;
    let build = |task: &&BuildTask| worker.build_shard(task, &Progress::new("records", None), shutdown);
    let shards: Vec<ShardEntry> = wanted.iter().map(build).collect::<Result<_, _>>().map_err(command_error)?;
    let text = shards.iter().map(|shard| format!("{}: {} samples\n", shard.file, shard.rows)).collect::<String>();
    Ok(Outcome::done(&RunReport { shards }, text)?)
}

fn commit(args: &CommitArgs) -> Result<Outcome, CommandError> {
    let tasks = read_tasks(&args.tasks).map_err(command_error)?;
    let first = tasks.first().ok_or_else(|| no_line(&args.tasks, 0, 0)).map_err(command_error)?;
    let max_reject = args.max_reject.unwrap_or(first.config.max_reject);
    let report = BuildWorker::open(&first.config).and_then(|worker| worker.commit()).map_err(command_error)?;
    build_outcome(&report, max_reject)
}

fn read_tasks(path: &Path) -> Result<Vec<BuildTask>, PrepareError> {
    let lines = fs::read_to_string(path).map_err(PrepareError::io("read", path))?;
    let tasks = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>();
    tasks.map_err(|source| PrepareError::DamagedState { path: path.to_owned(), source })
}

fn no_line(path: &Path, index: usize, num_tasks: usize) -> PrepareError {
    let expected = format!("a line from 0 to {} of `{}`", num_tasks.saturating_sub(1), path.display());
    PrepareError::Flag { flag: "--index", expected, found: index.to_string() }
}
