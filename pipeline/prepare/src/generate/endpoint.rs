//! Asking the server: one request after another for the same image, until there is an answer or no hope.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};

use super::GenerateConfig;
use super::answer::Answer;
use super::config::ApiKey;
use super::request::Request;
use crate::PrepareError;
use crate::http::{self, Backoff, HttpTimeouts, USER_AGENT, asked_wait, cause_of, told};

/// No answer is longer.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Characters of a server's complaint that are kept.
const SHOWN_CHARACTERS: usize = 300;

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct NoAnswer {
    /// Stable name under which rejects are counted.
    pub(super) cause: String,
    /// What was expected and found.
    pub(super) detail: String,
    /// No other request would fare better: a wrong key, an unknown model.
    pub(super) is_fatal: bool,
    /// Whether asking again may help: the server is at fault, or the way to it, and not the record.
    pub(super) is_passing: bool,
    /// The server may have worked, and charged, for an answer that was lost on the way.
    may_cost: bool,
    asked_wait: Option<Duration>,
}

/// What asking for one image came to.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) outcome: Result<Answer, NoAnswer>,
    /// Tokens of answers that were lost on the way, by estimate.
    pub(super) lost_tokens: u64,
}

/// The server and how it is asked.
pub(super) struct Endpoint {
    client: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    api_key: Option<ApiKey>,
    backoff: Backoff,
    retries: u32,
    max_tokens: u64,
    pub(super) requests: AtomicU64,
}

impl Endpoint {
    pub(super) fn new(config: &GenerateConfig) -> Result<Self, PrepareError> {
        let timeouts = HttpTimeouts { connect: Duration::from_secs(10), read: config.timeout, total: config.timeout };
        Ok(Self {
            client: http::client(timeouts, 0, USER_AGENT)?,
            url: config.url()?,
            headers: headers(config.api_key.as_ref())?,
            api_key: config.api_key.clone(),
            backoff: Backoff { first: config.first_wait, longest: config.longest_wait },
            retries: config.retries,
            max_tokens: config.max_tokens.into(),
            requests: AtomicU64::new(0),
        })
    }

    /// Asks until there is an answer, the retries are used up, or asking again is of no use.
    pub(super) async fn ask(&self, request: &Request) -> Asked {
        let (mut attempts, mut lost_tokens) = (1, 0);
        let key = request.key.to_string();
        loop {
            let fault = match self.ask_once(request).await {
                Ok(answer) => return Asked { outcome: Ok(answer), lost_tokens },
                Err(fault) => self.without_key(fault),
            };
            if fault.may_cost {
                lost_tokens += request.prompt_tokens + self.max_tokens;
            }
            let wait = self.backoff.wait(attempts, &key, fault.asked_wait);
            match wait.filter(|_| fault.is_passing && attempts <= self.retries) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Asked { outcome: Err(fault), lost_tokens },
            }
            attempts += 1;
        }
    }

    async fn ask_once(&self, request: &Request) -> Result<Answer, NoAnswer> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let sent = self.client.post(self.url.clone()).headers(self.headers.clone()).body(request.body.clone()).send();
        let response = sent.await.map_err(|fault| of_fault(&fault))?;
        let (status, asked) = (response.status(), asked_wait(response.headers(), SystemTime::now()));
        let body = read_body(response).await?;
        if status != StatusCode::OK {
            return Err(of_status(status, &body, asked));
        }
        Answer::of_body(&body, request.prompt_tokens)
            .map_err(|detail| NoAnswer { may_cost: true, ..NoAnswer::passing("bad_response", detail) })
    }

    fn without_key(&self, fault: NoAnswer) -> NoAnswer {
        let detail = self.api_key.as_ref().map(|key| key.hidden_in(&fault.detail));
        NoAnswer { detail: detail.unwrap_or(fault.detail), ..fault }
    }
}

impl NoAnswer {
    fn passing(cause: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            detail: detail.into(),
            is_fatal: false,
            is_passing: true,
            may_cost: false,
            asked_wait: None,
        }
    }
}

fn headers(api_key: Option<&ApiKey>) -> Result<HeaderMap, PrepareError> {
    let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    if let Some(key) = api_key {
        let mut bearer = HeaderValue::try_from(key.bearer()).map_err(|_| PrepareError::Flag {
            flag: "--api-key-env",
            expected: "a variable with a key of printable ASCII".to_owned(),
            found: "other characters".to_owned(),
        })?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
    }
    Ok(headers)
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, NoAnswer> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|fault| NoAnswer { may_cost: true, ..of_fault(&fault) })? {
        if body.len() + piece.len() > MAX_ANSWER_BYTES {
            let detail = format!("expected at most {MAX_ANSWER_BYTES} bytes, found more");
            return Err(NoAnswer { may_cost: true, is_passing: false, ..NoAnswer::passing("bad_response", detail) });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Only a connection that never stood is certain to cost nothing.
fn of_fault(fault: &reqwest::Error) -> NoAnswer {
    let cause = cause_of(fault);
    let may_cost = !fault.is_connect() && !fault.is_builder();
    let is_passing = !matches!(cause, "redirects" | "bad_url");
    NoAnswer { may_cost, is_passing, ..NoAnswer::passing(cause, told(fault)) }
}

/// A wrong key, address or model is no record's fault; a request that the server refuses as such is.
fn of_status(status: StatusCode, body: &[u8], asked_wait: Option<Duration>) -> NoAnswer {
    let said = String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN_CHARACTERS)]);
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN_CHARACTERS).collect();
    let code = status.as_u16();
    let is_passing = matches!(code, 408 | 409 | 425 | 429) || status.is_server_error() && code != 501;
    let detail = format!("expected status 200, found {code}: {said}");
    let is_fatal = matches!(code, 401..=404 | 405 | 501) || status.is_redirection();
    NoAnswer { is_fatal, is_passing, asked_wait, ..NoAnswer::passing(format!("http_{code}"), detail) }
}
