//! The flags of `pipeline` and what each command does with them.

mod fetch;
mod generate;
mod task;

use std::path::PathBuf;
use std::process::ExitCode;

use vela_processor::{ImageCheck, ImageMode, TemplateDate, template_names};
use vela_runtime::clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use vela_runtime::clap::{self, Args, Parser, Subcommand, ValueEnum};
use vela_runtime::{ByteSize, CommandError, ExitStatus, Outcome, Progress, Shutdown, run_command};
use vela_types::PackLimits;

use crate::{
    AuditConfig, BuildConfig, BuildReport, CleanConfig, DemoDataConfig, DialogueConfig, DialogueMode, InputConfig, Mix,
    PrepareError, PreviewConfig, QuestionKind, Source, SourceOptions, StatsConfig, audit, build_shards, shard_stats,
    write_demo_data, write_preview,
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
    Stats(StatsArgs),
    Fetch(fetch::FetchArgs),
    Generate(generate::GenerateArgs),
    DemoData(DemoArgs),
    #[command(hide = true)]
    Task(task::TaskArgs),
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
    #[command(flatten)]
    options: SourceOptions,
}

impl From<InputArgs> for InputConfig {
    fn from(args: InputArgs) -> Self {
        Self { images: args.images, options: args.options, ..Self::new(args.source, args.input) }
    }
}

/// Raw records to shards: reads, makes dialogues, tokenizes, resizes, writes. Run it again to continue.
#[derive(Args)]
#[command(after_help = "Examples:
  pipeline build-shards --source llava --input chat.json --images images --processor qwen --output shards
  pipeline build-shards --source sa1b --input data --images sa1b --processor qwen --output shards --dialogue rules
  pipeline build-shards --source coco --input captions_train2017.json --images train2017 --processor qwen --output s3://bucket/coco
  pipeline build-shards --mix mix.toml --processor qwen --output shards/validation --validation 0.01 --part validation

Exit code: 0 done, 2 wrong use, 3 more rejects than --max-reject (the shards are written all the same) or nothing but rejects (the
reject list alone is left), 1 anything else.")]
struct BuildArgs {
    /// Raw format.
    #[arg(long, required_unless_present = "mix", requires = "input")]
    source: Option<Source>,
    /// Raw file, or a folder of them.
    #[arg(long, required_unless_present = "mix", requires = "source")]
    input: Option<PathBuf>,
    /// Folder with the images; URLs and relative names are mapped into it.
    #[arg(long, requires = "source")]
    images: Option<PathBuf>,
    /// TOML file of several inputs with weights, instead of --source and --input; flags of cleaning replace its keys one by one.
    #[arg(long, conflicts_with_all = ["source", "dialogue"])]
    mix: Option<PathBuf>,
    #[command(flatten)]
    options: SourceOptions,
    /// Hugging Face processor folder: tokenizer, chat template, preprocessor_config.json.
    #[arg(long)]
    processor: PathBuf,
    /// Where the shard set goes: a folder, or a URL (file://, s3://, gs://, az://).
    #[arg(long)]
    output: String,
    /// How records become dialogues [default: keep for llava, caption for captions]. Those of a language model are made by
    /// `pipeline generate` and read by `--source llava`.
    #[arg(long, value_parser = dialogue_mode())]
    dialogue: Option<DialogueMode>,
    /// Most questions that `--dialogue rules` cuts from a caption besides the description [default: 5].
    #[arg(long)]
    max_facts: Option<usize>,
    /// Let `--dialogue rules` ask for the description only where a caption holds no fact.
    #[arg(long)]
    no_description: bool,
    /// Let `--dialogue rules` put each kind of question in one wording and answer by the fewest words.
    #[arg(long)]
    short_answers: bool,
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
    /// Built-in chat template [default: what the processor folder says].
    #[arg(long, value_parser = PossibleValuesParser::new(template_names()))]
    template: Option<String>,
    /// Day that the chat template may tell, `YYYY-MM-DD` [default: what the processor folder says].
    #[arg(long)]
    template_date: Option<TemplateDate>,
    /// System turn of dialogues that bring none [default: what the processor folder says].
    #[arg(long)]
    system: Option<String>,
    /// Accepted share of rejected records.
    #[arg(long, default_value_t = 0.05)]
    max_reject: f64,
    #[command(flatten)]
    clean: CleanConfig,
}

/// Reads a dialogue mode. `llm` is a command of its own, as it asks a server, costs money and is resumed by itself.
fn dialogue_mode() -> impl TypedValueParser<Value = DialogueMode> {
    let modes = DialogueMode::value_variants().iter().filter_map(DialogueMode::to_possible_value);
    PossibleValuesParser::new(modes.chain([PossibleValue::new("llm").hide(true)])).try_map(|mode| match &*mode {
        "llm" => Err("make such dialogues by `pipeline generate` and read its output with `--source llava`".to_owned()),
        mode => DialogueMode::from_str(mode, false),
    })
}

/// The image modes by their flag names.
#[derive(Clone, Copy, ValueEnum)]
enum ImageModeFlag {
    /// Pillow's pixels: Hugging Face's slow image processors.
    Pillow,
    /// torchvision's pixels: Hugging Face's fast image processors.
    Torchvision,
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
#[command(after_help = "Examples:
  pipeline preview --shards shards --html preview.html
  pipeline preview --shards shards --html preview.html --limit 50 --seed 7 --tokens-per-image 576
  pipeline preview --shards shards --html one.html --sample llava/chat/000000033471")]
struct PreviewArgs {
    /// Folder or URL (file://, s3://, gs://, az://) of a shard set.
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
    /// Draw the records by this seed [default: spread evenly over the set].
    #[arg(long)]
    seed: Option<u64>,
    /// Show the record with this id; may be given several times.
    #[arg(long, conflicts_with_all = ["limit", "seed"])]
    sample: Vec<String>,
    /// Tokens that an image takes once a tower expands it.
    #[arg(long)]
    tokens_per_image: Option<u32>,
}

/// Counts a shard set: lengths, languages, sources, duplicates, and what padding and packing cost. Reads no pixels.
#[derive(Args)]
#[command(after_help = "Examples:
  pipeline stats --shards shards
  pipeline stats --shards shards --html stats.html --tokens-per-image 256 --pack-length 4096 --json

Exit code: 0 done, 2 wrong use, 1 anything else.")]
struct StatsArgs {
    /// Folder or URL (file://, s3://, gs://, az://) of a shard set.
    #[arg(long)]
    shards: String,
    /// Page to write.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Tokens that an image takes once a tower expands it.
    #[arg(long, default_value_t = 576)]
    tokens_per_image: u32,
    /// Samples of a batch.
    #[arg(long, default_value_t = 32)]
    batch: u32,
    /// Tokens of a packed row.
    #[arg(long, default_value_t = 2048)]
    pack_length: u32,
    /// Most images of a packed row.
    #[arg(long, default_value_t = 64)]
    pack_images: u32,
    /// Samples packed together.
    #[arg(long, default_value_t = 4096)]
    pack_window: u32,
    /// Threads [default: all cores].
    #[arg(long)]
    workers: Option<usize>,
}

/// Renders a small bilingual data set of coloured shapes in the raw layouts of sa1b and llava. A finished one is left as it is.
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
        Command::Stats(args) => stats(args),
        Command::Fetch(args) => fetch::run(args, shutdown),
        Command::Generate(args) => generate::run(args, shutdown),
        Command::DemoData(args) => demo_data(args),
        Command::Task(args) => task::task(args, shutdown),
    })
}

impl BuildArgs {
    /// The inputs and what is kept of them, from the flags or from the mix file.
    fn inputs(&mut self) -> Result<(Vec<InputConfig>, CleanConfig), PrepareError> {
        let clean = std::mem::take(&mut self.clean);
        if let Some(path) = &self.mix {
            if let Some(flag) = self.options.given().chain(self.rule_flags()).next() {
                let (expected, found) = ("it as a key of the mix's `[[input]]`".to_owned(), "--mix".to_owned());
                return Err(PrepareError::Flag { flag, expected, found });
            }
            let mix = Mix::read(path)?;
            return Ok((mix.inputs, clean.or(mix.clean)));
        }
        let (Some(source), Some(input)) = (self.source, self.input.take()) else {
            let (expected, found) = ("`--source` and `--input`, or `--mix`".to_owned(), "none".to_owned());
            return Err(PrepareError::Flag { flag: "--input", expected, found });
        };
        let defaults = InputConfig::new(source, input);
        let (images, options) = (self.images.take(), std::mem::take(&mut self.options));
        let dialogue = self.dialogue(defaults.dialogue.mode)?;
        Ok((vec![InputConfig { images, options, dialogue, ..defaults }], clean))
    }

    /// The flags of rule dialogues that are given.
    fn rule_flags(&self) -> impl Iterator<Item = &'static str> {
        let flags = [
            ("--max-facts", self.max_facts.is_some()),
            ("--no-description", self.no_description),
            ("--short-answers", self.short_answers),
        ];
        flags.into_iter().filter(|(_, is_given)| *is_given).map(|(flag, _)| flag)
    }

    /// How records become dialogues; the flags of rule dialogues are refused without them.
    fn dialogue(&self, default: DialogueMode) -> Result<DialogueConfig, PrepareError> {
        let mode = self.dialogue.unwrap_or(default);
        if let Some(flag) = self.rule_flags().find(|_| mode != DialogueMode::Rules) {
            let found = format!("--dialogue {}", format!("{mode:?}").to_lowercase());
            return Err(PrepareError::Flag { flag, expected: "`--dialogue rules` beside it".to_owned(), found });
        }
        let defaults = DialogueConfig::from(mode);
        let max_facts = self.max_facts.unwrap_or(defaults.max_facts);
        let (description, short_answers) = (!self.no_description, self.short_answers);
        Ok(DialogueConfig { max_facts, description, short_answers, ..defaults })
    }
}

impl TryFrom<BuildArgs> for BuildConfig {
    type Error = PrepareError;

    fn try_from(mut args: BuildArgs) -> Result<Self, PrepareError> {
        let (inputs, clean) = args.inputs()?;
        let defaults = Self::new(inputs, args.processor, args.output);
        Ok(Self {
            seed: args.seed,
            workers: args.workers.unwrap_or(defaults.workers),
            limit: args.limit,
            shard_size_bytes: args.shard_size.0,
            max_length: args.max_length,
            image_mode: match args.image_mode {
                ImageModeFlag::Pillow => ImageMode::Pillow,
                ImageModeFlag::Torchvision => ImageMode::Torchvision,
            },
            template: args.template,
            template_date: args.template_date,
            system: args.system,
            max_reject: args.max_reject,
            clean,
            ..defaults
        })
    }
}

fn build(args: BuildArgs, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let config = BuildConfig::try_from(args).map_err(command_error)?;
    let progress = Progress::new("records", None);
    let report = build_shards(&config, &progress, shutdown).map_err(command_error)?;
    build_outcome(&report, config.max_reject)
}

fn build_outcome(report: &BuildReport, max_reject: f64) -> Result<Outcome, CommandError> {
    let mut text = report.to_text();
    if report.reject_rate() <= max_reject {
        return Ok(Outcome::done(report, text)?);
    }
    text.push_str(&format!(
        "{:.2} of the records were rejected, more than --max-reject {max_reject}; the shards were written all the same\n",
        report.reject_rate()
    ));
    Ok(Outcome::done(report, text)?.with_status(ExitStatus::Quality))
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
    let config = PreviewConfig {
        processor: args.processor,
        num_records: args.limit,
        seed: args.seed,
        ids: args.sample,
        tokens_per_image: args.tokens_per_image,
        ..PreviewConfig::new(args.shards, args.html)
    };
    let report = write_preview(&config).map_err(command_error)?;
    let mut text = format!("{} samples: {}\n", report.samples, report.html.display());
    if report.left_out > 0 {
        text.push_str(&format!("{} more were asked for, but the page is full\n", report.left_out));
    }
    Ok(Outcome::done(&report, text)?)
}

fn stats(args: StatsArgs) -> Result<Outcome, CommandError> {
    let defaults = StatsConfig::new(args.shards);
    let config = StatsConfig {
        html: args.html,
        tokens_per_image: args.tokens_per_image,
        batch: args.batch,
        packing: PackLimits { tokens: args.pack_length, images: args.pack_images, window: args.pack_window },
        workers: args.workers.unwrap_or(defaults.workers),
        ..defaults
    };
    let report = shard_stats(&config, &Progress::new("records", None)).map_err(command_error)?;
    let mut text = report.to_text();
    if let Some(html) = &config.html {
        text.push_str(&format!("page: {}\n", html.display()));
    }
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
    match () {
        () if fault.is_usage() => CommandError::usage(fault),
        () if fault.is_quality() => CommandError::quality(fault),
        () => CommandError::failure(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeptLanguage, Likeness, Part};

    const MIX: &str = "[clean]\nlanguages = [\"zh\"]\nmin_chars = 20\ndedupe = [\"text\"]\n\
                       [[input]]\nsource = \"llava\"\npath = \"a.json\"\n";

    fn config(mix: &str, flags: &[&str]) -> Result<BuildConfig, PrepareError> {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("mix.toml");
        std::fs::write(&path, mix).expect("file");
        let path = path.to_string_lossy().into_owned();
        let fixed = ["pipeline", "build-shards", "--mix", path.as_str(), "--processor", "p", "--output", "o"];
        let cli = Cli::try_parse_from(fixed.iter().chain(flags)).expect("known flags");
        let Command::BuildShards(args) = cli.command else { panic!("another command") };
        BuildConfig::try_from(args)
    }

    #[test]
    fn a_cleaning_flag_replaces_its_own_key_of_a_mix_and_no_other() {
        let of_mix = CleanConfig {
            languages: vec![KeptLanguage::Zh],
            min_chars: Some(20),
            dedupe: vec![Likeness::Text],
            ..CleanConfig::default()
        };
        assert_eq!(config(MIX, &[]).expect("a build").clean, of_mix);
        let flags = ["--min-chars", "5", "--validation", "0.1", "--part", "train"];
        let expected =
            CleanConfig { min_chars: Some(5), validation: Some(0.1), part: Some(Part::Train), ..of_mix.clone() };
        assert_eq!(config(MIX, &flags).expect("a build").clean, expected);
        let flags = ["--languages", "en", "--dedupe", "image", "--max-chars", "900"];
        let (languages, dedupe) = (vec![KeptLanguage::En], vec![Likeness::Image]);
        let expected = CleanConfig { languages, dedupe, max_chars: Some(900), ..of_mix };
        assert_eq!(config(MIX, &flags).expect("a build").clean, expected);
    }

    #[test]
    fn flags_that_a_mix_has_keys_for_are_refused_by_name() {
        let cases: [&[&str]; 8] = [
            &["--captions", "one"],
            &["--split", "train"],
            &["--answer", "a"],
            &["--dataset", "mllm_demo"],
            &["--min-rating", "relevance=4"],
            &["--max-facts", "3"],
            &["--no-description"],
            &["--short-answers"],
        ];
        for flags in cases {
            let fault = config(MIX, flags).expect_err(flags[0]);
            assert!(fault.is_usage() && fault.to_string().contains(flags[0]), "{fault}");
        }
    }

    #[test]
    fn what_the_template_is_told_comes_from_the_flags_and_unknown_ones_are_refused() {
        let flags = ["--template", "llama3.2", "--template-date", "2025-02-28", "--system", "Be brief."];
        let config = config(MIX, &flags).expect("a build");
        assert_eq!((config.template.as_deref(), config.system.as_deref()), (Some("llama3.2"), Some("Be brief.")));
        assert_eq!(config.template_date, Some("2025-02-28".parse().expect("a day")));
        let line = ["pipeline", "build-shards", "--mix", "m", "--processor", "p", "--output", "o"];
        for (flag, value, said) in
            [("--template", "llama4", "qwen2.5"), ("--template-date", "2025-02-30", "2025-02-30")]
        {
            let fault = Cli::try_parse_from(line.iter().chain(&[flag, value])).err().expect("refused").to_string();
            assert!(fault.contains(said), "{fault}");
        }
    }

    #[test]
    fn dialogues_of_a_language_model_lead_to_the_command_that_makes_them() {
        let line =
            ["pipeline", "build-shards", "--source", "sa1b", "--input", "i", "--processor", "p", "--output", "o"];
        let said = |mode: &str| {
            Cli::try_parse_from(line.iter().chain(&["--dialogue", mode])).err().map(|fault| fault.to_string())
        };
        let fault = said("llm").expect("refused");
        assert!(fault.contains("pipeline generate") && fault.contains("--source llava"), "{fault}");
        assert_eq!(said("rules"), None);
        let fault = said("rule").expect("refused");
        assert!(fault.contains("keep") && fault.contains("caption") && !fault.contains("llm"), "{fault}");
    }
}
