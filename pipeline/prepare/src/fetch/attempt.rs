//! One request: from a URL to bytes in an unfinished file.

use std::path::Path;
use std::time::{Duration, SystemTime};

use reqwest::{Response, StatusCode};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::Failure;
use crate::PrepareError;
use crate::http::{asked_wait, cause_of, told};

/// Why an attempt gave no file.
pub(super) enum Trouble {
    /// The URL's fault, and how long the server asked to be left alone.
    Url(Failure, Option<Duration>),
    /// Ours: a disk, say.
    Ours(PrepareError),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Url(failure, None)
    }
}

/// A body on disk, not yet looked at.
pub(super) struct Body {
    pub(super) bytes: u64,
    pub(super) hash: blake3::Hash,
}

/// Asks for `url` once and streams its body into the file at `partial`, which is written over.
///
/// Status 200 alone is an answer; a body is cut off as soon as it is known to be larger than `max_bytes`.
pub(super) async fn attempt(
    client: &reqwest::Client,
    url: &str,
    partial: &Path,
    max_bytes: u64,
) -> Result<Body, Trouble> {
    let response = client.get(url).send().await.map_err(|fault| of_fault(&fault))?;
    if response.status() != StatusCode::OK {
        let asked = asked_wait(response.headers(), SystemTime::now());
        return Err(Trouble::Url(Failure::of_status(response.status().as_u16()), asked));
    }
    if let Some(said) = response.content_length().filter(|said| *said > max_bytes) {
        return Err(too_large(said, max_bytes).into());
    }
    save(response, partial, max_bytes).await
}

async fn save(mut response: Response, partial: &Path, max_bytes: u64) -> Result<Body, Trouble> {
    let io = |action, fault| Trouble::Ours(PrepareError::io(action, partial)(fault));
    let mut file = File::create(partial).await.map_err(|fault| io("create", fault))?;
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    while let Some(piece) = response.chunk().await.map_err(|fault| of_fault(&fault))? {
        bytes += piece.len() as u64;
        if bytes > max_bytes {
            return Err(too_large(bytes, max_bytes).into());
        }
        hasher.update(&piece);
        file.write_all(&piece).await.map_err(|fault| io("write", fault))?;
    }
    file.flush().await.map_err(|fault| io("write", fault))?;
    Ok(Body { bytes, hash: hasher.finalize() })
}

fn too_large(found: u64, max_bytes: u64) -> Failure {
    Failure::lasting("too_large", format!("expected at most {max_bytes} bytes, found {found} or more"))
}

/// Nothing is wrong with a URL for good whose server could not be reached or stopped in the middle.
fn of_fault(fault: &reqwest::Error) -> Failure {
    match cause_of(fault) {
        cause @ ("redirects" | "bad_url") => Failure::lasting(cause, told(fault)),
        cause => Failure::passing(cause, told(fault)),
    }
}
