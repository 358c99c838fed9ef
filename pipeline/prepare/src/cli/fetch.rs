//! `pipeline fetch`.

use std::path::PathBuf;

use vela_runtime::clap::{self, Args};
use vela_runtime::{ByteSize, CommandError, ExitStatus, Outcome, Period, Progress, Shutdown};

use super::command_error;
use crate::{FetchConfig, HttpTimeouts, UrlList, UrlSource, fetch};

/// Downloads the images that a data set names by URL, each verified by decoding. Run it again to continue.
#[derive(Args)]
#[command(after_help = "Examples:
  pipeline fetch --source sa1b --input data --output sa1b
  pipeline fetch --source coco --input instances_train2017.json --output train2017 --per-host 4
  pipeline fetch --source urls --input laion.parquet --column URL --output laion --max-reject 0.4

An image is kept under its name in the data set, or the URL's path below the host: `build-shards --images DIR` finds it there.
URLs without an image are listed with their causes in failed.jsonl below --output.

Exit code: 0 done, 2 wrong use, 3 more failures than --max-reject (the images are kept all the same), 1 anything else.")]
pub(super) struct FetchArgs {
    /// Where the URLs stand.
    #[arg(long)]
    source: UrlSource,
    /// File with the URLs, or a folder of them.
    #[arg(long)]
    input: PathBuf,
    /// Folder of the images.
    #[arg(long)]
    output: PathBuf,
    /// Field with the URLs [default: the source's].
    #[arg(long)]
    column: Option<String>,
    /// Field with the files' names [default: the source's, or none: the URL names the file].
    #[arg(long)]
    name_column: Option<String>,
    /// Most requests at a time.
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// Most requests at a time to one host.
    #[arg(long, default_value_t = 8)]
    per_host: usize,
    /// Longest time to connect.
    #[arg(long, default_value = "10s")]
    connect_timeout: Period,
    /// Longest silence of a server.
    #[arg(long, default_value = "30s")]
    read_timeout: Period,
    /// Longest time for one request as a whole.
    #[arg(long, default_value = "120s")]
    timeout: Period,
    /// Requests after the first, where asking again may help.
    #[arg(long, default_value_t = 4)]
    retries: u32,
    /// First wait before asking again; the next are twice as long each.
    #[arg(long, default_value = "1s")]
    first_wait: Period,
    /// Longest wait; a server that asks for more is not asked again.
    #[arg(long, default_value = "60s")]
    max_wait: Period,
    /// Most redirects to follow.
    #[arg(long, default_value_t = 5)]
    max_redirects: usize,
    /// Largest image file.
    #[arg(long, default_value = "64MiB")]
    max_size: ByteSize,
    /// Encoded images held in memory at a time.
    #[arg(long, default_value = "256MiB")]
    memory: ByteSize,
    /// Threads that decode [default: all cores].
    #[arg(long)]
    workers: Option<usize>,
    /// How to introduce oneself to servers [default: vela-pipeline/VERSION].
    #[arg(long)]
    user_agent: Option<String>,
    /// Ask again for what failed for good in an earlier run.
    #[arg(long)]
    retry_failed: bool,
    /// Take URLs that differ only behind `?` for one image, as signed URLs do.
    #[arg(long)]
    ignore_query: bool,
    /// Read only the first URLs.
    #[arg(long)]
    limit: Option<u64>,
    /// Accepted share of failed URLs.
    #[arg(long, default_value_t = 0.05)]
    max_reject: f64,
}

impl From<FetchArgs> for FetchConfig {
    fn from(args: FetchArgs) -> Self {
        let defaults = Self::new(args.output);
        Self {
            concurrency: args.concurrency,
            per_host: args.per_host,
            timeouts: HttpTimeouts {
                connect: args.connect_timeout.0,
                read: args.read_timeout.0,
                total: args.timeout.0,
            },
            retries: args.retries,
            first_wait: args.first_wait.0,
            longest_wait: args.max_wait.0,
            max_redirects: args.max_redirects,
            max_image_bytes: args.max_size.0,
            memory_bytes: args.memory.0,
            workers: args.workers.unwrap_or(defaults.workers),
            user_agent: args.user_agent.unwrap_or(defaults.user_agent),
            retry_failed: args.retry_failed,
            ignore_query: args.ignore_query,
            limit: args.limit,
            max_reject: args.max_reject,
            ..defaults
        }
    }
}

pub(super) fn run(mut args: FetchArgs, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let (column, name_column) = (args.column.take(), args.name_column.take());
    let urls = UrlList::open(args.source, &args.input, column, name_column).map_err(command_error)?;
    let config = FetchConfig::from(args);
    let report = fetch(&urls, &config, &Progress::new("images", None), shutdown).map_err(command_error)?;
    let mut text = report.to_text();
    let (found, accepted) = (report.fail_rate(), config.max_reject);
    if found <= accepted {
        return Ok(Outcome::done(&report, text)?);
    }
    text.push_str(&format!(
        "{found:.2} of the URLs gave no image, more than --max-reject {accepted}; the others are kept\n"
    ));
    Ok(Outcome::done(&report, text)?.with_status(ExitStatus::Quality))
}
