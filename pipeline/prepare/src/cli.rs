//! The flags of `pipeline` and what each command does with them.

use std::path::PathBuf;
use std::process::ExitCode;

use vela_processor::{ImageCheck, ImageMode};
use vela_runtime::clap::{self, Args, Parser, Subcommand, ValueEnum};
use vela_runtime::{ByteSize, CommandError, ExitStatus, Outcome, Progress, Shutdown, run_command};

use crate::{
    AuditConfig, BuildConfig, DemoDataConfig, DialogueConfig, DialogueMode, InputConfig, PrepareError, PreviewConfig,
    QuestionKind, Source, audit, build_shards, write_demo_data, write_preview,
};

/// Raw image-text data sets to shards that a trainer reads.
#[derive(Parser)]
#[command(name = "pipeline", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object as the last line of stdout.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    BuildShards(BuildArgs),
    Audit(AuditArgs),
    Preview(PreviewArgs),
    DemoData(DemoArgs),
}

/// What every command that reads raw data asks for.
#[derive(Args)]
struct InputArgs {
    /// Raw format.
    #[arg(long)]
    source: Source,
    /// Raw file, or a folder of them.
    #[arg(long)]
    input: PathBuf,
    /// Folder with the images; URLs and relative names are mapped into it.
    #[arg(long)]
    images: Option<PathBuf>,
}

impl From<InputArgs> for InputConfig {
    fn from(args: InputArgs) -> Self {
        Self { images: args.images, ..Self::new(args.source, args.input) }
    }
}

/// Raw records to shards: reads, makes dialogues, tokenizes, resizes, writes. Run it again to continue.
#[derive(Args)]
#[command(after_help = "Examples:
  pipeline build-shards --source llava --input chat.json --images images --processor qwen --output shards
  pipeline build-shards --source sa1b --input data --images sa1b --processor qwen --output shards --dialogue rules
  pipeline build-shards --source coco --input captions_train2017.json --images train2017 --processor qwen --output shards

Exit code: 0 done, 2 wrong use, 3 more rejects than --max-reject (the shards are written all the same), 1 anything else.")]
struct BuildArgs {
    #[command(flatten)]
    input: InputArgs,
    /// Hugging Face processor folder: tokenizer, chat template, preprocessor_config.json.
    #[arg(long)]
    processor: PathBuf,
    /// Folder (or file:// URL) of the shard set.
    #[arg(long)]
    output: String,
    /// How records become dialogues [default: keep for llava, caption for captions].
    #[arg(long)]
    dialogue: Option<DialogueMode>,
    /// Most questions that `--dialogue rules` cuts from a caption besides the description [default: 5].
    #[arg(long)]
    max_facts: Option<usize>,
    /// Let `--dialogue rules` ask for the description only where a caption holds no fact.
    #[arg(long)]
    no_description: bool,
    /// Seed of drawn prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads [default: all cores]; the bytes written do not depend on it.
    #[arg(long)]
    workers: Option<usize>,
    /// Read only the first records.
    #[arg(long)]
    limit: Option<u64>,
    /// Upper bound of a shard.
    #[arg(long, default_value = "512MiB")]
    shard_size: ByteSize,
    /// Longest dialogue in tokens, an image counted as one.
    #[arg(long, default_value_t = 2048)]
    max_length: usize,
    /// Whose pixels are reproduced.
    #[arg(long, value_enum, default_value_t = ImageModeFlag::Pillow)]
    image_mode: ImageModeFlag,
    /// Accepted share of rejected records.
    #[arg(long, default_value_t = 0.05)]
    max_reject: f64,
}

/// The image modes by their flag names.
#[derive(Clone, Copy, ValueEnum)]
enum ImageModeFlag {
    Pillow,
}

/// Looks at every record and image before anything is built: what would be rejected, by cause. Needs no processor.
#[derive(Args)]
#[command(after_help = "Examples:
  pipeline audit --source llava --input chat.json --images images
  pipeline audit --source sa1b --input data --images sa1b --decode --rejects rejects.jsonl

Exit code: 0 done, 2 wrong use, 3 more rejects than --max-reject, 1 anything else.")]
struct AuditArgs {
    #[command(flatten)]
    input: InputArgs,
    /// Read every pixel, not the headers alone.
    #[arg(long)]
    decode: bool,
    /// File for the list of rejects, one JSON object per line.
    #[arg(long)]
    rejects: Option<PathBuf>,
    /// Threads [default: all cores].
    #[arg(long)]
    workers: Option<usize>,
    /// Read only the first records.
    #[arg(long)]
    limit: Option<u64>,
    /// Accepted share of rejected records.
    #[arg(long, default_value_t = 0.05)]
    max_reject: f64,
}

/// One HTML page of what the model will see: images, dialogues, tokens coloured by label.
#[derive(Args)]
#[command(after_help = "Example:
  pipeline preview --shards shards --html preview.html")]
struct PreviewArgs {
    /// Folder (or file:// URL) of a shard set.
    #[arg(long)]
    shards: String,
    /// Page to write.
    #[arg(long)]
    html: PathBuf,
    /// Processor folder [default: the copy inside the shard set].
    #[arg(long)]
    processor: Option<PathBuf>,
    /// Records to show.
    #[arg(long, default_value_t = 24)]
    limit: u64,
}

/// Renders a small bilingual data set of coloured shapes in the raw layouts of sa1b and llava.
#[derive(Args)]
#[command(after_help = "Example:
  pipeline demo-data --output demo --samples 2000 --seed 1")]
struct DemoArgs {
    /// Folder to fill.
    #[arg(long)]
    output: PathBuf,
    /// Training images per language.
    #[arg(long, default_value_t = 4000)]
    samples: usize,
    /// Held-out images per language.
    #[arg(long, default_value_t = 100)]
    heldout: usize,
    /// Seed of the scenes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pixels per side.
    #[arg(long, default_value_t = 32)]
    image_size: usize,
    /// Most shapes in a scene.
    #[arg(long, default_value_t = 3)]
    max_shapes: usize,
    /// Kinds of question to ask [default: all].
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<QuestionKind>,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let Cli { command, json } = Cli::parse();
    run_command(json, |shutdown| match command {
        Command::BuildShards(args) => build(args, shutdown),
        Command::Audit(args) => audit_input(args, shutdown),
        Command::Preview(args) => preview(args),
        Command::DemoData(args) => demo_data(args),
    })
}

impl BuildArgs {
    /// How records become dialogues; the flags of rule dialogues are refused without them.
    fn dialogue(&self) -> Result<DialogueConfig, PrepareError> {
        let mode = self.dialogue.unwrap_or(InputConfig::new(self.input.source, "").dialogue.mode);
        let given = [("--max-facts", self.max_facts.is_some()), ("--no-description", self.no_description)];
        if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given && mode != DialogueMode::Rules) {
            let found = format!("--dialogue {}", format!("{mode:?}").to_lowercase());
            return Err(PrepareError::Flag { flag, expected: "`--dialogue rules` beside it".to_owned(), found });
        }
        let defaults = DialogueConfig::from(mode);
        let max_facts = self.max_facts.unwrap_or(defaults.max_facts);
        Ok(DialogueConfig { max_facts, description: !self.no_description, ..defaults })
    }
}

impl TryFrom<BuildArgs> for BuildConfig {
    type Error = PrepareError;

    fn try_from(args: BuildArgs) -> Result<Self, PrepareError> {
        let dialogue = args.dialogue()?;
        let input = InputConfig { dialogue, ..args.input.into() };
        let defaults = Self::new(vec![input], args.processor, args.output);
        Ok(Self {
            seed: args.seed,
            workers: args.workers.unwrap_or(defaults.workers),
            limit: args.limit,
            shard_size_bytes: args.shard_size.0,
            max_length: args.max_length,
            image_mode: match args.image_mode {
                ImageModeFlag::Pillow => ImageMode::Pillow,
            },
            max_reject: args.max_reject,
            ..defaults
        })
    }
}

fn build(args: BuildArgs, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let config = BuildConfig::try_from(args).map_err(command_error)?;
    let progress = Progress::new("records", None);
    let report = build_shards(&config, &progress, shutdown).map_err(command_error)?;
    let mut text = report.to_text();
    if report.reject_rate() <= config.max_reject {
        return Ok(Outcome::done(&report, text)?);
    }
    text.push_str(&format!(
        "{:.2} of the records were rejected, more than --max-reject {}; the shards were written all the same\n",
        report.reject_rate(),
        config.max_reject
    ));
    Ok(Outcome::done(&report, text)?.with_status(ExitStatus::Quality))
}

fn audit_input(args: AuditArgs, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let defaults = AuditConfig::new(args.input.into());
    let config = AuditConfig {
        images: if args.decode { ImageCheck::Pixels } else { ImageCheck::Header },
        workers: args.workers.unwrap_or(defaults.workers),
        limit: args.limit,
        rejects: args.rejects,
        max_reject: args.max_reject,
        ..defaults
    };
    let report = audit(&config, &Progress::new("records", None), shutdown).map_err(command_error)?;
    let mut text = report.to_text();
    let (found, accepted) = (report.reject_rate(), config.max_reject);
    if found <= accepted {
        return Ok(Outcome::done(&report, text)?);
    }
    text.push_str(&format!("{found:.2} of the records would be rejected, more than --max-reject {accepted}\n"));
    Ok(Outcome::done(&report, text)?.with_status(ExitStatus::Quality))
}

fn preview(args: PreviewArgs) -> Result<Outcome, CommandError> {
    let config =
        PreviewConfig { shards: args.shards, html: args.html, processor: args.processor, num_records: args.limit };
    let report = write_preview(&config).map_err(command_error)?;
    let text = format!("{} samples: {}", report.samples, report.html.display());
    Ok(Outcome::done(&report, text)?)
}

fn demo_data(args: DemoArgs) -> Result<Outcome, CommandError> {
    let defaults = DemoDataConfig::new(args.output);
    let config = DemoDataConfig {
        seed: args.seed,
        num_train: args.samples,
        num_heldout: args.heldout,
        image_size: args.image_size,
        max_shapes: args.max_shapes,
        kinds: if args.kinds.is_empty() { defaults.kinds } else { args.kinds },
        ..defaults
    };
    let report = write_demo_data(&config).map_err(command_error)?;
    let text = format!(
        "{} training records, {} held-out questions: {}",
        report.samples,
        report.questions,
        config.output.display()
    );
    Ok(Outcome::done(&report, text)?)
}

fn command_error(fault: PrepareError) -> CommandError {
    if fault.is_usage() { CommandError::usage(fault) } else { CommandError::failure(fault) }
}
