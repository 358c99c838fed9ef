//! The commands that make model folders: their flags, and what they say when they are done.

use std::path::PathBuf;

use vela_models::{ProjectorKind, ProjectorPreset, WeightDtype};
use vela_runtime::{ByteSize, CommandError, Outcome, Shutdown, clap};
use vela_train::{ExportForm, ExportPlan, InitPlan, export, init};

use crate::to_command_error;

/// Flags of `trainer init`.
#[derive(clap::Args)]
pub(crate) struct InitFlags {
    /// A vision tower's folder, or that of a whole CLIP, Chinese-CLIP or SigLIP model.
    #[arg(long, value_name = "DIR")]
    vision: PathBuf,
    /// A language model's folder, with its tokenizer.
    #[arg(long, value_name = "DIR")]
    language: PathBuf,
    /// The projector: `linear`, `mlp2x_gelu` or `ln_mlp`.
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    projector: ProjectorKind,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The projector's layers have no biases.
    #[arg(long)]
    no_projector_bias: bool,
    /// Hidden state of the tower that becomes the image features, counted from the end if negative.
    #[arg(long, value_name = "N", default_value_t = -2, allow_negative_numbers = true)]
    feature_layer: i64,
    /// The features are the last state (`--feature-layer -1`) after the tower's last norm.
    #[arg(long)]
    feature_norm: bool,
    /// Chat template by name, where the language model's folder has none or another is wanted.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Seed of the projector's weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Element type of every weight: `f32`, `bf16` or `f16`; each file's own by default.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightDtype>,
    /// Prints one JSON object as the last line of stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `trainer export`.
#[derive(clap::Args)]
pub(crate) struct ExportFlags {
    /// A model folder: a checkpoint, or what `trainer init` made.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Element type of every weight: `f32`, `bf16` or `f16`; as in the folder by default.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightDtype>,
    /// Writes a larger model as shards of at most this size, with an index: `5GB`.
    #[arg(long, value_name = "SIZE")]
    max_shard_size: Option<ByteSize>,
    /// Merges adapters into the weights they adapt; without it they are written alone, in PEFT's layout.
    #[arg(long)]
    merge: bool,
    /// Prints one JSON object as the last line of stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_kind(text: &str) -> Result<ProjectorKind, String> {
    match text {
        "linear" => Ok(ProjectorKind::Linear),
        "mlp2x_gelu" => Ok(ProjectorKind::Mlp2xGelu),
        "ln_mlp" => Ok(ProjectorKind::LnMlp),
        _ => Err("expected `linear`, `mlp2x_gelu` or `ln_mlp`".to_owned()),
    }
}

/// `trainer init`.
pub(crate) fn run_init(flags: &InitFlags, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let plan = InitPlan {
        vision: flags.vision.clone(),
        language: flags.language.clone(),
        output: flags.output.clone(),
        projector: ProjectorPreset { kind: flags.projector, bias: !flags.no_projector_bias },
        feature_layer: flags.feature_layer,
        feature_norm: flags.feature_norm,
        template: flags.template.clone(),
        seed: flags.seed,
        dtype: flags.dtype,
    };
    let report = init(&plan, shutdown).map_err(to_command_error)?;
    let rows = match report.rows_added {
        0 => String::new(),
        rows => format!(", {rows} embedding rows added"),
    };
    let human = format!(
        "`{}`: {} weights, {} of them a fresh projector; {} tokens per image, `<image>` is id {}{rows}",
        report.output.display(),
        report.parameters,
        report.projector_parameters,
        report.image_tokens,
        report.image_token_id,
    );
    Ok(Outcome::done(&report, human)?)
}

/// `trainer export`.
pub(crate) fn run_export(flags: &ExportFlags, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let plan = ExportPlan {
        model: flags.model.clone(),
        output: flags.output.clone(),
        dtype: flags.dtype,
        max_shard_bytes: flags.max_shard_size.map(|size| size.0),
        merge: flags.merge,
    };
    let report = export(&plan, shutdown).map_err(to_command_error)?;
    let form = match report.form {
        ExportForm::Model => "a model for `LlavaForConditionalGeneration`",
        ExportForm::Adapter => "an adapter for PEFT (`--merge` writes a whole model)",
    };
    Ok(Outcome::done(&report, format!("`{}`: {form}, {} bytes of weights", report.output.display(), report.bytes))?)
}
