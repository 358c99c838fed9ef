//! Why a URL gave no image.

use serde::{Deserialize, Serialize};

/// A URL's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Stable name under which failures are counted.
    pub(super) cause: String,
    /// What was expected and found.
    pub(super) detail: String,
    /// Whether asking again may help, now or in a later run.
    pub(super) passing: bool,
}

impl Failure {
    /// One that asking again does not help.
    pub(super) fn lasting(cause: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { cause: cause.into(), detail: detail.into(), passing: false }
    }

    /// One that may pass.
    pub(super) fn passing(cause: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { cause: cause.into(), detail: detail.into(), passing: true }
    }

    /// An answer without an image. Servers that are busy or broken for a while say 408, 425, 429 or 5xx; what they say of the
    /// URL itself (401, 403, 404, 410, 451, ...) does not change by asking again.
    pub(super) fn of_status(status: u16) -> Self {
        let passing = matches!(status, 408 | 425 | 429 | 500..=599) && !matches!(status, 501 | 505);
        Self { cause: format!("http_{status}"), detail: format!("expected status 200, found {status}"), passing }
    }
}

/// A line of the failed list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedUrl {
    /// The URL as the input has it.
    pub url: String,
    /// Where its image would be below the output folder, if it has a name.
    pub path: Option<String>,
    /// Stable name under which failures are counted.
    pub cause: String,
    /// What was expected and found.
    pub detail: String,
    /// Requests made in this run; 0 if it failed before one, or in an earlier run.
    pub attempts: u32,
}
