//! What a fetch is told to do.

use std::path::PathBuf;
use std::time::Duration;

use crate::PrepareError;
use crate::build::check_share;
use crate::http::{HttpTimeouts, USER_AGENT};

/// The largest file that the processor reads.
const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// A fetch, checked before it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchConfig {
    /// Folder of the images; unfinished files and the ledger are in `.fetch` below it.
    pub output: PathBuf,
    /// Most requests at a time.
    pub concurrency: usize,
    /// Most requests at a time to one host.
    pub per_host: usize,
    /// Bounds of each request.
    pub timeouts: HttpTimeouts,
    /// Requests after the first, for a URL that may yet answer.
    pub retries: u32,
    /// Upper end of the first wait before asking again; it doubles from there.
    pub first_wait: Duration,
    /// No wait is longer, and a server that asks for more is not asked again.
    pub longest_wait: Duration,
    /// Redirects followed.
    pub max_redirects: usize,
    /// Largest image file, in bytes.
    pub max_image_bytes: u64,
    /// Encoded bytes held in memory at a time for verification.
    pub memory_bytes: u64,
    /// Images decoded at a time.
    pub workers: usize,
    /// Who asks.
    pub user_agent: String,
    /// Ask again for what failed for good in an earlier run.
    pub retry_failed: bool,
    /// Take URLs that differ only behind `?` for the same image, as signed URLs do.
    pub ignore_query: bool,
    /// URLs to read, from the first; all without it.
    pub limit: Option<u64>,
    /// Accepted share of failed URLs, 0 to 1; the caller compares it.
    pub max_reject: f64,
}

impl FetchConfig {
    /// Into `output`, with the defaults of the command line.
    pub fn new(output: impl Into<PathBuf>) -> Self {
        let seconds = Duration::from_secs;
        Self {
            output: output.into(),
            concurrency: 64,
            per_host: 8,
            timeouts: HttpTimeouts { connect: seconds(10), read: seconds(30), total: seconds(120) },
            retries: 4,
            first_wait: seconds(1),
            longest_wait: seconds(60),
            max_redirects: 5,
            max_image_bytes: 64 << 20,
            memory_bytes: 256 << 20,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            user_agent: USER_AGENT.to_owned(),
            retry_failed: false,
            ignore_query: false,
            limit: None,
            max_reject: 0.05,
        }
    }

    pub(super) fn check(&self) -> Result<(), PrepareError> {
        let wrong = |flag, expected: &str, found: &dyn ToString| {
            Err(PrepareError::Flag { flag, expected: expected.to_owned(), found: found.to_string() })
        };
        let agent_is_sound = self.user_agent.bytes().all(|byte| (b' '..0x7F).contains(&byte));
        let is_file = self.output.exists() && !self.output.is_dir();
        match self {
            _ if is_file => wrong("--output", "a folder", &self.output.display()),
            Self { concurrency: 0, .. } => wrong("--concurrency", "at least 1", &0),
            Self { per_host: 0, .. } => wrong("--per-host", "at least 1", &0),
            Self { limit: Some(0), .. } => wrong("--limit", "at least 1", &0),
            Self { memory_bytes: 0, .. } => wrong("--memory", "at least 1B", &0),
            Self { workers: 0, .. } => wrong("--workers", "at least 1", &0),
            Self { max_image_bytes, .. } if !(1..=MAX_IMAGE_BYTES).contains(max_image_bytes) => {
                wrong("--max-size", "1B to 256MiB, the largest image that is read later", max_image_bytes)
            }
            _ if !agent_is_sound || self.user_agent.is_empty() => {
                wrong("--user-agent", "printable ASCII", &self.user_agent)
            }
            _ => check_share(self.max_reject),
        }
    }
}
