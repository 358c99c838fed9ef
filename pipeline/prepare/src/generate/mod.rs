//! Dialogues written by a language model from what is known of an image: LLaVA's three kinds, any OpenAI-compatible server.
//!
//! A reader thread goes through the records; each becomes one request, whose answer is looked up in the cache, or asked for
//! and kept there before anything else happens to it. Answers are judged and written in the order of the records.

mod answer;
mod budget;
mod cache;
mod config;
mod endpoint;
mod facts;
mod finished;
mod grammar;
mod judge;
mod kind;
mod output;
mod prompts;
mod report;
mod request;
mod run;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, Sender};
use vela_runtime::{Progress, Shutdown};

pub use config::{ApiKey, GenerateConfig};
pub use facts::{FactInput, FactSource, ImageFacts, LabelledBox};
pub use grammar::{GrammarFault, Pair, parse_pairs, render_pairs};
pub use kind::GenerateKind;
pub use output::RejectedAnswer;
pub use prompts::PROMPT_VERSION;
pub use report::GenerateReport;

use crate::PrepareError;
use crate::sources::Fault;
use cache::Cache;
use endpoint::Endpoint;
use finished::{admit, check_output, make_folders};
use output::OrderedWriter;
use run::{Run, Work};

/// Makes a dialogue of each record of the input; run again, it asks only for what it has no answer to.
///
/// Every record becomes a line of the output, a line of the reject list, or is counted as left when the budget is used up.
/// Both files get their names at the end; answers are in the cache from the moment they arrive.
///
/// # Errors
/// If a file fails or is in use, the output has dialogues of other settings or such as this run has not made again, the server
/// refuses every request, or a stop was asked for.
pub fn generate(
    config: &GenerateConfig,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<GenerateReport, PrepareError> {
    config.check()?;
    config.facts.check_content()?;
    check_output(config)?;
    make_folders(config)?;
    let started = Instant::now();
    let cache = Cache::open(&config.cache_path())?;
    let damaged_lines = cache.damaged();
    let endpoint = Arc::new(Endpoint::new(config)?);
    let writer = OrderedWriter::new(&config.output, &config.rejects_path())?;
    let runtime = Runtime::new().map_err(PrepareError::io("start threads for", &config.output))?;
    // The reader waits for room in here, and ends once the receiver is gone.
    let (sender, receiver) = mpsc::channel(64);
    let mut run = Run::new(config, cache, Arc::clone(&endpoint), writer);
    let outcome = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(config, sender));
        let outcome = runtime.block_on(run.dispatch(receiver, progress, shutdown));
        reader.join().expect("the reader does not panic").and(outcome)
    });
    progress.finish();
    let Run { writer, spending, .. } = run;
    if let Err(fault) = outcome {
        writer.discard()?;
        return Err(fault);
    }
    if shutdown.requested() {
        let done = writer.next();
        writer.discard()?;
        return Err(PrepareError::GenerateStopped { cache: config.cache_path(), done });
    }
    let requests = endpoint.requests.load(Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    let counts = writer.finish(|made| admit(config, made))?;
    Ok(GenerateReport::new(config, counts, spending, requests, damaged_lines, seconds))
}

/// Sends every record up to the limit, until nobody listens.
fn read(config: &GenerateConfig, sender: Sender<Work>) -> Result<(), PrepareError> {
    let (limit, mut record) = (config.limit.unwrap_or(u64::MAX), 0);
    let mut seen = HashSet::new();
    config.facts.read(&mut |facts| {
        let facts = facts.and_then(|facts| match seen.insert(blake3::hash(facts.id.as_bytes())) {
            true => Ok(facts),
            false => Err(Fault::new("duplicate_id", "an earlier record has the same id").of(&facts.id)),
        });
        let is_sent = sender.blocking_send(Work { record, facts }).is_ok();
        record += 1;
        match is_sent && record < limit {
            true => std::ops::ControlFlow::Continue(()),
            false => std::ops::ControlFlow::Break(()),
        }
    })
}
