//! The `trainer` command: train a recipe, ask a trained model, make and export model folders, report on runs.

mod folders;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use vela_runtime::clap::{self, Args, Parser, Subcommand};
use vela_runtime::{CommandError, ExitStatus, Outcome, Shutdown, run_command};
use vela_train::{
    Chat, EncodeOptions, EncodeReport, FeatureType, Launch, Question, Recipe, Resume, TrainError, TrainReport, encode,
    train_together, write_report,
};
use vela_types::ImageRef;

use crate::folders::{ExportFlags, InitFlags, run_export, run_init};

/// Trains vision-language models from shards or from a loader, and answers with them.
#[derive(Parser)]
#[command(name = "trainer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one stage: a recipe's data, model and schedule, to a run folder with checkpoints.
    #[command(after_help = "Examples:\n  trainer train --recipe trainer/configs/run/stage1.toml\n  \
        trainer train --recipe stage1.toml --set groups.projector.lr=5e-4 --set run.output=runs/b\n  \
        trainer train --recipe stage1.toml --resume auto")]
    Train(TrainFlags),
    /// Answers a question about an image with a trained model.
    #[command(after_help = "Examples:\n  trainer chat --model runs/stage2/checkpoints/step-500 --image cat.jpg \
        --question \"What is this?\"")]
    Chat(ChatFlags),
    /// Joins a published vision tower and a published language model into one model folder with a fresh projector.
    #[command(after_help = "Examples:\n  trainer init --vision chinese-clip-vit-base-patch16 --language \
        Qwen2.5-0.5B-Instruct \\\n    --projector mlp2x_gelu --output models/mllm_ch\n  trainer init --vision \
        clip-vit-large-patch14-336 --language vicuna-7b-v1.5 \\\n    --projector mlp2x_gelu --template llava-v1 \
        --output models/llava")]
    Init(InitFlags),
    /// Writes a trained model as `transformers` opens it, or its adapter as PEFT does.
    #[command(after_help = "Examples:\n  trainer export --model runs/stage2/checkpoints/step-500 --output export \
        --dtype bf16\n  trainer export --model runs/lora/checkpoints/step-500 --output merged --merge")]
    Export(ExportFlags),
    /// Computes the features of a frozen vision tower for a shard set, as a shard set to train from.
    #[command(after_help = "Examples:\n  trainer encode --model models/base --shards data/shards/caption \
        --output data/features/caption\n  trainer train --recipe stage1.toml --set data.shards=data/features/caption")]
    Encode(EncodeFlags),
    /// Writes one page about a run, or about the stages of a model: curves, answers, recipe, data, machine.
    #[command(after_help = "Examples:\n  trainer report --run runs/stage1\n  \
        trainer report --run runs/stage1 --run runs/stage2 --output model.html")]
    Report(ReportFlags),
}

#[derive(Args)]
struct TrainFlags {
    /// The recipe (TOML).
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Overrides a key of the recipe; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Continues from a checkpoint: `auto` takes the newest of the run folder, or starts if there is none.
    #[arg(long, value_name = "auto|PATH")]
    resume: Option<String>,
    /// Prints one JSON object as the last line of stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ChatFlags {
    /// A model folder: a checkpoint, or any LLaVA folder with its processor.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An image; may be repeated, in the order of the question's `<image>` marks.
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// The question; without `<image>` marks the images stand in front.
    #[arg(long, value_name = "TEXT")]
    question: String,
    /// Longest answer, in tokens.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// Prints one JSON object as the last line of stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct EncodeFlags {
    /// A model folder with its processor, or a run folder.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The shard set.
    #[arg(long, value_name = "URL")]
    shards: String,
    /// Where the feature set goes.
    #[arg(long, value_name = "URL")]
    output: String,
    /// How features are stored: `bf16`, or `f32` to train as from pixels bit for bit.
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    dtype: FeatureType,
    /// Images that go through the tower at once.
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    /// Prints one JSON object as the last line of stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ReportFlags {
    /// A run folder; may be repeated, in the order of the stages.
    #[arg(long = "run", value_name = "DIR", required = true)]
    runs: Vec<PathBuf>,
    /// The page; `report.html` in the last run folder if absent.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Prints one JSON object as the last line of stdout.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Train(flags) => run_rank(&flags),
        Command::Chat(flags) => run_command(flags.json, |_| run_chat(&flags)),
        Command::Init(flags) => run_command(flags.json, |shutdown| run_init(&flags, shutdown)),
        Command::Export(flags) => run_command(flags.json, |shutdown| run_export(&flags, shutdown)),
        Command::Encode(flags) => run_command(flags.json, |shutdown| run_encode(&flags, shutdown)),
        Command::Report(flags) => run_command(flags.json, |_| run_report(flags)),
    }
}

/// One process of a run. Rank 0 speaks for all of them.
fn run_rank(flags: &TrainFlags) -> ExitCode {
    let launch = Launch::from_env();
    let speaks = launch.as_ref().is_ok_and(|launch| launch.rank == 0);
    run_command(flags.json && speaks, |shutdown| {
        let launch = launch.map_err(to_command_error)?;
        let outcome = run_train(flags, launch, shutdown)?;
        // The exit code of the run is rank 0's: another's would have it ended before its last words.
        Ok(if speaks { outcome } else { Outcome::done(&(), "")? })
    })
}

fn run_train(flags: &TrainFlags, launch: Launch, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let recipe = Recipe::load(&flags.recipe, &flags.sets).map_err(to_command_error)?;
    let resume = Resume::from_flag(flags.resume.as_deref());
    let fault = |fault| of_rank(launch, fault);
    let mut ranks = launch.join(recipe.deadline()).map_err(fault)?;
    let report = train_together(&recipe, &resume, shutdown, ranks.as_mut()).map_err(fault)?;
    ranks.finish().map_err(fault)?;
    let human = describe(&report, &recipe, &flags.recipe);
    // A supervisor that restarts whatever failed then goes on with `--resume auto`.
    let status = if report.interrupted { ExitStatus::Failure } else { ExitStatus::Done };
    Ok(Outcome::done(&report, human)?.with_status(status))
}

fn describe(report: &TrainReport, recipe: &Recipe, file: &Path) -> String {
    let loss = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
    let folder = recipe.output().display();
    let done = format!(
        "{} of {} steps, loss {} to {}, {:.1} samples/s, {:.0} tokens/s, {:.1} % waiting for data; run folder `{folder}`",
        report.steps,
        report.total_steps,
        loss(report.loss_first),
        loss(report.loss_last),
        report.samples_per_second,
        report.tokens_per_second,
        100.0 * report.data_wait,
    );
    match report.interrupted {
        false => done,
        true => {
            let file = file.display();
            format!("stopped after {done}\nto go on: trainer train --recipe {file} --resume auto (and the same --set)")
        }
    }
}

fn run_chat(flags: &ChatFlags) -> Result<Outcome, CommandError> {
    let chat = Chat::load(&flags.model).map_err(to_command_error)?;
    let images = flags.images.iter().map(|path| ImageRef::Path(path.display().to_string())).collect();
    let question = Question::new(images, &flags.question);
    let answer = chat.answer(&question, flags.max_new_tokens).map_err(to_command_error)?;
    Ok(Outcome::done(&answer, answer.answer.clone())?)
}

fn run_encode(flags: &EncodeFlags, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let EncodeFlags { model, shards, output, dtype, batch, .. } = flags;
    let (model, shards, output) = (model.clone(), shards.clone(), output.clone());
    let options = EncodeOptions { model, shards, output, dtype: *dtype, batch: (*batch).max(1) };
    let report = encode(&options, shutdown).map_err(to_command_error)?;
    let images_per_second = report.images as f64 / report.seconds.max(1e-9);
    let EncodeReport { samples, images, bytes, seconds, .. } = &report;
    let human = format!(
        "{images} images of {samples} samples in {seconds:.1} s ({images_per_second:.1}/s), {bytes} bytes in `{}`",
        options.output
    );
    Ok(Outcome::done(&report, human)?)
}

fn run_report(flags: ReportFlags) -> Result<Outcome, CommandError> {
    let last = flags.runs.last().cloned().unwrap_or_default();
    let output = flags.output.unwrap_or_else(|| last.join("report.html"));
    let written = write_report(&flags.runs, &output).map_err(to_command_error)?;
    let human = format!("{} lines of {} runs in `{}`", written.lines, written.runs, written.report.display());
    Ok(Outcome::done(&written, human)?)
}

/// An error of one of several processes that write to one terminal.
#[derive(Debug, thiserror::Error)]
#[error("rank {rank} of {world} stops")]
struct RankError {
    rank: usize,
    world: usize,
    source: TrainError,
}

fn of_rank(launch: Launch, error: TrainError) -> CommandError {
    let Launch { rank, world } = launch;
    let is_usage = error.is_usage();
    match world {
        1 => to_command_error(error),
        _ if is_usage => CommandError::usage(RankError { rank, world, source: error }),
        _ => CommandError::failure(RankError { rank, world, source: error }),
    }
}

fn to_command_error(error: TrainError) -> CommandError {
    match error.is_usage() {
        true => CommandError::usage(error),
        false => CommandError::failure(error),
    }
}
