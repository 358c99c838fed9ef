//! The `trainer` command: train a recipe, ask a trained model, make and export model folders.

mod folders;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use vela_runtime::clap::{self, Args, Parser, Subcommand};
use vela_runtime::{CommandError, ExitStatus, Outcome, Shutdown, run_command};
use vela_train::{Chat, Question, Recipe, Resume, TrainError, TrainReport, train};
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

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Train(flags) => run_command(flags.json, |shutdown| run_train(&flags, shutdown)),
        Command::Chat(flags) => run_command(flags.json, |_| run_chat(&flags)),
        Command::Init(flags) => run_command(flags.json, |_| run_init(&flags)),
        Command::Export(flags) => run_command(flags.json, |_| run_export(&flags)),
    }
}

fn run_train(flags: &TrainFlags, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let recipe = Recipe::load(&flags.recipe, &flags.sets).map_err(to_command_error)?;
    let resume = Resume::from_flag(flags.resume.as_deref());
    let report = train(&recipe, &resume, shutdown).map_err(to_command_error)?;
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

fn to_command_error(error: TrainError) -> CommandError {
    match error.is_usage() {
        true => CommandError::usage(error),
        false => CommandError::failure(error),
    }
}
