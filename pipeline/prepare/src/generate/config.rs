//! What a generation is told to do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::facts::{FactInput, FactSource};
use super::kind::GenerateKind;
use crate::PrepareError;
use crate::build::check_share;

/// An API key; it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key as a server gave it.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// `text` without the key, which some servers repeat in their errors.
    pub(super) fn hidden_in(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "***") }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ApiKey(***)")
    }
}

/// A generation, checked before it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateConfig {
    /// What is made of each image.
    pub kind: GenerateKind,
    /// Captions and boxes.
    pub facts: FactInput,
    /// The dialogues, as JSON lines in LLaVA's format.
    pub output: PathBuf,
    /// Answers that are paid for; `<output>.cache` without it.
    pub cache: Option<PathBuf>,
    /// What became no dialogue; `<output>.rejects` without it.
    pub rejects: Option<PathBuf>,
    /// Root of an OpenAI-compatible API, such as `http://127.0.0.1:8000/v1`.
    pub endpoint: String,
    /// The model's name there.
    pub model: String,
    /// The key, where the server wants one.
    pub api_key: Option<ApiKey>,
    /// Most requests at a time.
    pub concurrency: usize,
    /// Longest answer, in tokens.
    pub max_tokens: u32,
    /// Tokens that all answers of the cache and of this run may cost together.
    pub token_budget: Option<u64>,
    /// Requests after the first, where asking again may help.
    pub retries: u32,
    /// Upper end of the first wait before asking again; it doubles from there.
    pub first_wait: Duration,
    /// No wait is longer, and a server that asks for more is not asked again.
    pub longest_wait: Duration,
    /// Longest time for one request.
    pub timeout: Duration,
    /// Sampling temperature.
    pub temperature: f64,
    /// Seed of drawn questions, also told to the server.
    pub seed: u64,
    /// Records to read, from the first; all without it.
    pub limit: Option<u64>,
    /// Accepted share of rejected records, 0 to 1; the caller compares it.
    pub max_reject: f64,
}

impl GenerateConfig {
    /// With the defaults of the command line.
    pub fn new(
        kind: GenerateKind,
        facts: FactInput,
        output: impl Into<PathBuf>,
        endpoint: impl Into<String>,
        model: impl Into<String>,
    ) -> Self {
        let seconds = Duration::from_secs;
        Self {
            kind,
            facts,
            output: output.into(),
            cache: None,
            rejects: None,
            endpoint: endpoint.into(),
            model: model.into(),
            api_key: None,
            concurrency: 8,
            max_tokens: 1024,
            token_budget: None,
            retries: 5,
            first_wait: seconds(1),
            longest_wait: seconds(60),
            timeout: seconds(120),
            temperature: 0.7,
            seed: 0,
            limit: None,
            max_reject: 0.05,
        }
    }

    /// Where paid answers are kept.
    pub fn cache_path(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| with_suffix(&self.output, ".cache"))
    }

    /// Where rejects are listed.
    pub fn rejects_path(&self) -> PathBuf {
        self.rejects.clone().unwrap_or_else(|| with_suffix(&self.output, ".rejects"))
    }

    /// Where it is noted what the output was made with.
    pub fn settings_path(&self) -> PathBuf {
        with_suffix(&self.output, ".settings")
    }

    /// The URL that is asked.
    pub(super) fn url(&self) -> Result<reqwest::Url, PrepareError> {
        const PATH: &str = "/chat/completions";
        let root = self.endpoint.trim_end_matches('/');
        let text = if root.ends_with(PATH) { root.to_owned() } else { format!("{root}{PATH}") };
        let url = reqwest::Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let expected = "the URL of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1".to_owned();
        url.ok_or_else(|| PrepareError::Flag { flag: "--endpoint", expected, found: self.endpoint.clone() })
    }

    pub(super) fn check(&self) -> Result<(), PrepareError> {
        let wrong = |flag, expected: &str, found: &dyn ToString| {
            Err(PrepareError::Flag { flag, expected: expected.to_owned(), found: found.to_string() })
        };
        let FactInput { source, input, instances } = &self.facts;
        let absent = |path: &Path| !path.is_file();
        match self {
            _ if absent(input) => wrong("--input", "a regular file", &input.display()),
            _ if instances.as_deref().is_some_and(absent) => {
                wrong("--instances", "a file", &instances.clone().unwrap_or_default().display())
            }
            _ if *source == FactSource::CapsBoxes && instances.is_some() => {
                wrong("--instances", "`--source coco` beside it", &"--source caps-boxes")
            }
            _ if *source == FactSource::Coco && self.kind.shows_boxes() && instances.is_none() => {
                wrong("--instances", "COCO's instances file for this kind", &"none")
            }
            Self { model, .. } if model.trim().is_empty() => wrong("--model", "a model's name", model),
            Self { concurrency: 0, .. } => wrong("--concurrency", "at least 1", &0),
            Self { max_tokens: 0, .. } => wrong("--max-tokens", "at least 1", &0),
            Self { limit: Some(0), .. } => wrong("--limit", "at least 1", &0),
            Self { temperature, .. } if !(0.0..=2.0).contains(temperature) => {
                wrong("--temperature", "0 to 2", temperature)
            }
            _ => {
                self.check_files()?;
                self.url()?;
                check_share(self.max_reject)
            }
        }
    }

    /// No file of ours replaces another, nor the input.
    fn check_files(&self) -> Result<(), PrepareError> {
        let named = [
            ("--input", self.facts.input.clone()),
            ("--output", self.output.clone()),
            ("--cache", self.cache_path()),
            ("--rejects", self.rejects_path()),
            ("--output with `.settings`", self.settings_path()),
        ];
        let place = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or(path.to_owned());
        for (at, (flag, path)) in named.iter().enumerate().skip(1) {
            let other = named[..at].iter().find(|(_, other)| place(other) == place(path));
            if let Some((other, _)) = other {
                let expected = format!("a file other than `{other}`");
                return Err(PrepareError::Flag { flag, expected, found: path.display().to_string() });
            }
        }
        Ok(())
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_printed() {
        let key = ApiKey::new("sk-secret");
        assert!(!format!("{key:?}").contains("secret"));
        assert_eq!(key.hidden_in("wrong key sk-secret given"), "wrong key *** given");
        assert_eq!(ApiKey::new("").hidden_in("as it is"), "as it is");
    }

    #[test]
    fn the_endpoint_is_a_root_or_the_whole_url() {
        let facts = FactInput { source: FactSource::CapsBoxes, input: "a".into(), instances: None };
        let url = |endpoint: &str| {
            GenerateConfig::new(GenerateKind::Detail, facts.clone(), "o", endpoint, "m")
                .url()
                .map(|url| url.to_string())
        };
        for endpoint in ["http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"] {
            assert_eq!(url(endpoint).expect(endpoint), "http://h:1/v1/chat/completions");
        }
        for endpoint in ["", "h:1/v1", "ftp://h/v1"] {
            assert!(url(endpoint).expect_err(endpoint).is_usage());
        }
    }
}
