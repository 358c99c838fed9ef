//! `pipeline generate`.

use std::path::PathBuf;

use vela_runtime::clap::{self, Args};
use vela_runtime::{CommandError, ExitStatus, Outcome, Period, Progress, Shutdown};

use super::command_error;
use crate::{ApiKey, FactInput, FactSource, GenerateConfig, GenerateKind, PrepareError, generate};

/// Dialogues written by a language model from captions and boxes, through any OpenAI-compatible server. Run it again to continue.
#[derive(Args)]
#[command(after_help = "Examples:
  pipeline generate --kind conversation --input caps_boxes.jsonl --output gen/conversation.jsonl \\
      --endpoint http://127.0.0.1:8000/v1 --model qwen2.5-7b-instruct
  pipeline generate --kind complex --source coco --input captions_train2017.json --instances instances_train2017.json \\
      --output gen/complex.jsonl --endpoint https://api.example.com/v1 --model m --api-key-env API_KEY --token-budget 5000000
  pipeline build-shards --source llava --input gen --images train2017 --processor qwen --output shards

Answers are kept in OUTPUT.cache as they arrive and are never paid for twice; what became no dialogue is in OUTPUT.rejects with
its cause and the answer as it came. An output is written again only with the settings it was made with (OUTPUT.settings) and
only if none of its dialogues is lost.

Exit code: 0 done (or budget used up), 2 wrong use, 3 more rejects than --max-reject (the dialogues are written all the same),
1 anything else.")]
pub(super) struct GenerateArgs {
    /// What to make of each image.
    #[arg(long)]
    kind: GenerateKind,
    /// Form of the input.
    #[arg(long, value_enum, default_value_t = FactSource::CapsBoxes)]
    source: FactSource,
    /// File with captions and boxes.
    #[arg(long)]
    input: PathBuf,
    /// COCO's file with the boxes.
    #[arg(long)]
    instances: Option<PathBuf>,
    /// File for the dialogues, JSON lines in LLaVA's format.
    #[arg(long)]
    output: PathBuf,
    /// File that paid answers are kept in [default: OUTPUT.cache].
    #[arg(long)]
    cache: Option<PathBuf>,
    /// File for what became no dialogue [default: OUTPUT.rejects].
    #[arg(long)]
    rejects: Option<PathBuf>,
    /// Root of an OpenAI-compatible API.
    #[arg(long)]
    endpoint: String,
    /// The model's name there.
    #[arg(long)]
    model: String,
    /// Environment variable that holds the API key; the key itself is never shown or written.
    #[arg(long)]
    api_key_env: Option<String>,
    /// Most requests at a time.
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 1024)]
    max_tokens: u32,
    /// Tokens that all answers, the cached ones included, may cost together; stops before it is exceeded.
    #[arg(long)]
    token_budget: Option<u64>,
    /// Requests after the first, where asking again may help.
    #[arg(long, default_value_t = 5)]
    retries: u32,
    /// First wait before asking again; the next are twice as long each.
    #[arg(long, default_value = "1s")]
    first_wait: Period,
    /// Longest wait; a server that asks for more is not asked again.
    #[arg(long, default_value = "60s")]
    max_wait: Period,
    /// Longest time for one request.
    #[arg(long, default_value = "120s")]
    timeout: Period,
    /// Sampling temperature.
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// Seed of drawn questions, also told to the server.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Read only the first records.
    #[arg(long)]
    limit: Option<u64>,
    /// Accepted share of rejected records.
    #[arg(long, default_value_t = 0.05)]
    max_reject: f64,
}

impl TryFrom<GenerateArgs> for GenerateConfig {
    type Error = PrepareError;

    fn try_from(args: GenerateArgs) -> Result<Self, PrepareError> {
        let facts = FactInput { source: args.source, input: args.input, instances: args.instances };
        Ok(Self {
            cache: args.cache,
            rejects: args.rejects,
            api_key: args.api_key_env.map(read_key).transpose()?,
            concurrency: args.concurrency,
            max_tokens: args.max_tokens,
            token_budget: args.token_budget,
            retries: args.retries,
            first_wait: args.first_wait.0,
            longest_wait: args.max_wait.0,
            timeout: args.timeout.0,
            temperature: args.temperature,
            seed: args.seed,
            limit: args.limit,
            max_reject: args.max_reject,
            ..Self::new(args.kind, facts, args.output, args.endpoint, args.model)
        })
    }
}

/// The key in the variable `name`; neither an absent nor an empty one is sent as if it were a key.
fn read_key(name: String) -> Result<ApiKey, PrepareError> {
    let key = std::env::var(&name).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
    let expected = "an environment variable that holds a key".to_owned();
    key.map(ApiKey::new).ok_or(PrepareError::Flag { flag: "--api-key-env", expected, found: name })
}

pub(super) fn run(args: GenerateArgs, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let config = GenerateConfig::try_from(args).map_err(command_error)?;
    let report = generate(&config, &Progress::new("records", None), shutdown).map_err(command_error)?;
    let mut text = report.to_text();
    let (found, accepted) = (report.reject_rate(), config.max_reject);
    if found <= accepted {
        return Ok(Outcome::done(&report, text)?);
    }
    text.push_str(&format!(
        "{found:.2} of the records were rejected, more than --max-reject {accepted}; the dialogues are written\n"
    ));
    Ok(Outcome::done(&report, text)?.with_status(ExitStatus::Quality))
}
