//! Records on their way: a bounded window of them, asked for in parallel, written in order.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinSet, spawn_blocking};
use vela_runtime::{Progress, Shutdown};
use vela_types::Fingerprint;

use super::GenerateConfig;
use super::answer::Answer;
use super::budget::{Budget, Reservation};
use super::cache::Cache;
use super::endpoint::{Asked, Endpoint, NoAnswer};
use super::facts::ImageFacts;
use super::judge::{Verdict, judge};
use super::output::{OrderedWriter, RejectedAnswer, Written, llava_line};
use super::request::Request;
use crate::PrepareError;
use crate::sources::Fault;

/// Records that may wait for an earlier one to be written, per request at a time.
const WINDOW_PER_REQUEST: u64 = 8;
/// Requests in a row without an answer, for reasons that pass, after which the server is taken to be gone. One that refuses a
/// request as such is there.
const MAX_FAILURES_IN_A_ROW: u32 = 16;

/// A record to be asked for, or its fault.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) record: u64,
    pub(super) facts: Result<ImageFacts, Fault>,
}

/// What answers cost in this run.
#[derive(Clone, Debug, Default)]
pub(super) struct Spending {
    pub(super) cached: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) estimated_tokens: u64,
    pub(super) lost_tokens: u64,
}

impl Spending {
    fn add(&mut self, answer: &Answer) {
        self.prompt_tokens += answer.prompt_tokens;
        self.completion_tokens += answer.completion_tokens;
        self.estimated_tokens += if answer.is_estimate { answer.tokens() } else { 0 };
    }
}

/// A record whose answer is not in the cache.
#[derive(Debug)]
struct Question {
    record: u64,
    facts: ImageFacts,
    request: Request,
}

/// A question that was asked.
struct Reply {
    question: Question,
    reservation: Reservation,
    asked: Asked,
}

/// A generation under way.
pub(super) struct Run<'a> {
    config: &'a GenerateConfig,
    cache: Arc<Mutex<Cache>>,
    endpoint: Arc<Endpoint>,
    budget: Budget,
    /// Questions that wait for a free place or for the budget.
    waiting: VecDeque<Question>,
    /// Keys of running requests, each with the questions that its answer will settle.
    under_way: HashMap<Fingerprint, Vec<Question>>,
    failures_in_a_row: u32,
    is_budget_used_up: bool,
    pub(super) writer: OrderedWriter,
    pub(super) spending: Spending,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        config: &'a GenerateConfig,
        cache: Cache,
        endpoint: Arc<Endpoint>,
        writer: OrderedWriter,
    ) -> Self {
        let mut budget = Budget::new(config.token_budget);
        budget.spend(cache.tokens);
        Self {
            config,
            cache: Arc::new(Mutex::new(cache)),
            endpoint,
            budget,
            waiting: VecDeque::new(),
            under_way: HashMap::new(),
            failures_in_a_row: 0,
            is_budget_used_up: false,
            writer,
            spending: Spending::default(),
        }
    }

    /// Asks for every record until the input is done. After a request to stop nothing new is asked, but what was asked is waited
    /// for: it is paid.
    pub(super) async fn dispatch(
        &mut self,
        mut works: Receiver<Work>,
        progress: &Progress,
        shutdown: &Shutdown,
    ) -> Result<(), PrepareError> {
        let mut running = JoinSet::new();
        let (mut is_open, mut last_read) = (true, 0);
        loop {
            let is_stopped = shutdown.requested();
            if !is_stopped {
                self.start(&mut running, progress)?;
            }
            if running.is_empty() && (is_stopped || !is_open && self.waiting.is_empty()) {
                return Ok(());
            }
            let window = WINDOW_PER_REQUEST * self.config.concurrency as u64;
            let has_room = self.waiting.is_empty() && last_read < self.writer.next() + window;
            tokio::select! {
                () = shutdown.wait(), if !is_stopped => {
                    progress.note(&format!("waiting for {} answers that are asked for already; a second signal aborts", running.len()));
                }
                Some(reply) = running.join_next() => {
                    let reply = reply.unwrap_or_else(|fault| std::panic::resume_unwind(fault.into_panic()));
                    self.take(reply?, progress)?;
                }
                work = works.recv(), if is_open && has_room && !is_stopped => match work {
                    Some(work) => {
                        last_read = work.record;
                        self.admit(work, progress)?;
                    }
                    None => is_open = false,
                },
            }
        }
    }

    /// Settles a record without a request where that can be done, else lets it wait for one.
    fn admit(&mut self, work: Work, progress: &Progress) -> Result<(), PrepareError> {
        let record = work.record;
        let facts = match work.facts {
            Ok(facts) => facts,
            Err(Fault { id, cause, detail }) => {
                let cause = cause.to_owned();
                let reject = RejectedAnswer { record, id, cause, detail, finish_reason: None, raw: None };
                return self.write(record, Written::Reject(reject), progress);
            }
        };
        let request = Request::new(self.config, &facts);
        let question = Question { record, facts, request };
        if let Some(question) = self.settle(question, progress)? {
            match self.is_budget_used_up {
                true => self.write(question.record, Written::Left, progress)?,
                false => self.waiting.push_back(question),
            }
        }
        Ok(())
    }

    /// Writes what the cache answers; gives a question back that it does not answer.
    fn settle(&mut self, question: Question, progress: &Progress) -> Result<Option<Question>, PrepareError> {
        let known = self.cache.lock().expect("no writer panics").get(question.request.key)?;
        let Some(answer) = known else { return Ok(Some(question)) };
        self.spending.cached += 1;
        let written = self.written(question.record, &question.facts, answer);
        self.write(question.record, written, progress)?;
        Ok(None)
    }

    /// Starts requests as far as places and budget allow. A question equal to one under way waits for that one's answer.
    fn start(
        &mut self,
        running: &mut JoinSet<Result<Reply, PrepareError>>,
        progress: &Progress,
    ) -> Result<(), PrepareError> {
        while running.len() < self.config.concurrency
            && let Some(question) = self.waiting.pop_front()
        {
            if let Some(equal) = self.under_way.get_mut(&question.request.key) {
                equal.push(question);
                continue;
            }
            let Some(question) = self.settle(question, progress)? else { continue };
            let expected = question.request.prompt_tokens + u64::from(self.config.max_tokens);
            match self.budget.reserve(expected) {
                Some(reservation) => {
                    self.under_way.insert(question.request.key, Vec::new());
                    running.spawn(ask(Arc::clone(&self.endpoint), Arc::clone(&self.cache), question, reservation));
                }
                // Running requests may turn out cheaper than what was set aside for them.
                None if !running.is_empty() => {
                    self.waiting.push_front(question);
                    break;
                }
                None => {
                    self.is_budget_used_up = true;
                    self.write(question.record, Written::Left, progress)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, reply: Reply, progress: &Progress) -> Result<(), PrepareError> {
        let Reply { question, reservation, asked: Asked { outcome, lost_tokens } } = reply;
        let Question { record, facts, request } = question;
        // Settled by the cache now, or asked for after all.
        let equal = self.under_way.remove(&request.key).unwrap_or_default();
        equal.into_iter().rev().for_each(|question| self.waiting.push_front(question));
        self.spending.lost_tokens += lost_tokens;
        self.budget.spend(lost_tokens);
        let written = match outcome {
            Ok(answer) => {
                self.failures_in_a_row = 0;
                self.budget.settle(reservation, answer.tokens());
                self.spending.add(&answer);
                self.written(record, &facts, answer)
            }
            Err(fault) => {
                self.budget.settle(reservation, 0);
                self.failures_in_a_row = if fault.is_passing { self.failures_in_a_row + 1 } else { 0 };
                if fault.is_fatal || self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW {
                    let NoAnswer { cause, detail, .. } = fault;
                    return Err(PrepareError::Endpoint { endpoint: self.config.endpoint.clone(), cause, detail });
                }
                let NoAnswer { cause, detail, .. } = fault;
                let id = Some(facts.id);
                Written::Reject(RejectedAnswer { record, id, cause, detail, finish_reason: None, raw: None })
            }
        };
        self.write(record, written, progress)
    }

    fn written(&self, record: u64, facts: &ImageFacts, answer: Answer) -> Written {
        let reply = answer.into_reply();
        match judge(self.config.kind, facts, &reply) {
            Ok(pairs) => Written::Sample(llava_line(self.config.kind, facts, &pairs, self.config.seed)),
            Err(Verdict { cause, detail }) => Written::Reject(RejectedAnswer {
                record,
                id: Some(facts.id.clone()),
                cause: cause.to_owned(),
                detail,
                finish_reason: reply.finish_reason,
                raw: Some(reply.text),
            }),
        }
    }

    fn write(&mut self, record: u64, written: Written, progress: &Progress) -> Result<(), PrepareError> {
        self.writer.put(record, written)?;
        progress.inc(1);
        Ok(())
    }
}

/// Asks, and keeps the answer before anybody sees it.
async fn ask(
    endpoint: Arc<Endpoint>,
    cache: Arc<Mutex<Cache>>,
    question: Question,
    reservation: Reservation,
) -> Result<Reply, PrepareError> {
    let asked = endpoint.ask(&question.request).await;
    let Ok(answer) = &asked.outcome else { return Ok(Reply { question, reservation, asked }) };
    let (answer, key, id) = (answer.clone(), question.request.key, question.facts.id.clone());
    let kept = spawn_blocking(move || cache.lock().expect("no writer panics").put(key, &id, &answer)).await;
    kept.unwrap_or_else(|fault| std::panic::resume_unwind(fault.into_panic()))?;
    Ok(Reply { question, reservation, asked })
}
