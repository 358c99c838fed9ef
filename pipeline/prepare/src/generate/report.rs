//! What a generation did.

use std::collections::BTreeMap;

use serde::Serialize;

use super::output::{Counts, RejectedAnswer};
use super::prompts::PROMPT_VERSION;
use super::run::Spending;
use super::{GenerateConfig, GenerateKind};

/// The JSON object of `pipeline generate`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerateReport {
    /// Records read; `samples`, the rejected and the left ones make up this number.
    pub records: u64,
    /// Dialogues written.
    pub samples: u64,
    /// Records that became no dialogue, by cause.
    pub rejected: BTreeMap<String, u64>,
    /// Records that were not asked for, because the budget was used up.
    pub left: u64,
    /// Requests made in this run.
    pub requests: u64,
    /// Records answered from the cache.
    pub cached: u64,
    /// Tokens of prompts in this run, as the server counted them.
    pub prompt_tokens: u64,
    /// Tokens of answers in this run, as the server counted them.
    pub completion_tokens: u64,
    /// Of these, tokens counted by estimate, where the server did not say.
    pub estimated_tokens: u64,
    /// Tokens, by estimate, of answers that were lost on the way and may have been charged.
    pub lost_tokens: u64,
    /// Lines of the cache that could not be read; their answers were asked for again.
    pub damaged_lines: u64,
    /// The kind of dialogue.
    pub kind: GenerateKind,
    /// The model's name.
    pub model: String,
    /// The version of the prompts.
    pub prompt_version: u32,
    /// Time of this run.
    pub seconds: f64,
    /// The first rejects.
    #[serde(skip)]
    pub examples: Vec<RejectedAnswer>,
}

impl GenerateReport {
    pub(super) fn new(
        config: &GenerateConfig,
        counts: Counts,
        spending: Spending,
        requests: u64,
        damaged_lines: u64,
        seconds: f64,
    ) -> Self {
        let Counts { samples, left, rejected, examples } = counts;
        Self {
            records: samples + left + rejected.values().sum::<u64>(),
            samples,
            rejected,
            left,
            requests,
            cached: spending.cached,
            prompt_tokens: spending.prompt_tokens,
            completion_tokens: spending.completion_tokens,
            estimated_tokens: spending.estimated_tokens,
            lost_tokens: spending.lost_tokens,
            damaged_lines,
            kind: config.kind,
            model: config.model.clone(),
            prompt_version: PROMPT_VERSION,
            seconds,
            examples,
        }
    }

    /// Share of rejected records among those that were tried.
    pub fn reject_rate(&self) -> f64 {
        self.rejected.values().sum::<u64>() as f64 / (self.records - self.left).max(1) as f64
    }

    /// A few lines for people.
    pub fn to_text(&self) -> String {
        let Self { records, samples, requests, cached, prompt_tokens, completion_tokens, seconds, .. } = self;
        let mut text = format!(
            "{records} records: {samples} dialogues, {cached} answers from the cache, {requests} requests in {seconds:.1} s \
             ({prompt_tokens} + {completion_tokens} tokens)"
        );
        if self.left > 0 {
            text.push_str(&format!(
                "\n  {} left: --token-budget is used up; raise it and run again to continue",
                self.left
            ));
        }
        for (cause, count) in &self.rejected {
            text.push_str(&format!("\n  {count} {cause}"));
        }
        for RejectedAnswer { record, detail, .. } in &self.examples {
            text.push_str(&format!("\nrecord {record}: {detail}"));
        }
        text + "\n"
    }
}
