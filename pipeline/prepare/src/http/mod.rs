//! What `fetch` and `generate` share of HTTP: the client, the names of its faults, and when to try again.

mod retry;

use std::error::Error;
use std::time::Duration;

pub(crate) use retry::{Backoff, asked_wait};

use crate::PrepareError;
use crate::sources::chain_text;

/// How long each stage of a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// Until the connection stands, name lookup and TLS included.
    pub connect: Duration,
    /// Between two pieces of an answer.
    pub read: Duration,
    /// From the first byte asked to the last byte read.
    pub total: Duration,
}

/// Who asks, unless the user says otherwise.
pub(crate) const USER_AGENT: &str = concat!("vela-pipeline/", env!("CARGO_PKG_VERSION"));

/// A client that follows up to `max_redirects`; proxies come from the usual environment variables.
pub(crate) fn client(
    timeouts: HttpTimeouts,
    max_redirects: usize,
    user_agent: &str,
) -> Result<reqwest::Client, PrepareError> {
    let builder = reqwest::Client::builder()
        .connect_timeout(timeouts.connect)
        .read_timeout(timeouts.read)
        .timeout(timeouts.total)
        .redirect(reqwest::redirect::Policy::limited(max_redirects))
        .user_agent(user_agent);
    builder.build().map_err(|fault| PrepareError::Http { what: "build an HTTP client".to_owned(), cause: told(&fault) })
}

/// Why an exchange failed, in one word for counting: `timeout`, `dns`, `tls`, `connect`, `redirects`, `bad_url`, `truncated`
/// for an answer that ends early, else `protocol`.
pub(crate) fn cause_of(fault: &reqwest::Error) -> &'static str {
    let told = told(fault);
    match () {
        () if fault.is_timeout() => "timeout",
        () if fault.is_redirect() => "redirects",
        () if fault.is_builder() => "bad_url",
        () if told.contains("dns error") => "dns",
        () if told.contains("certificate") || told.contains("TLS") => "tls",
        () if fault.is_connect() => "connect",
        () if fault.is_body() || fault.is_decode() || fault.is_request() => "truncated",
        () => "protocol",
    }
}

/// A fault with its causes on one line, without the URL, which stands beside it already and may hold a signature.
pub(crate) fn told(fault: &reqwest::Error) -> String {
    let text = chain_text(fault as &dyn Error);
    match fault.url() {
        Some(url) => text.replace(&format!(" for url ({url})"), ""),
        None => text,
    }
}
