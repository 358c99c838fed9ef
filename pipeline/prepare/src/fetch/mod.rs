//! Downloading the images that a data set names by URL: in parallel, again after faults, once for all runs, each looked at
//! before it counts.
//!
//! A reader thread goes through the list and settles what needs no request (names, repeats, what earlier runs know); the
//! rest waits in a bounded queue by host. Each URL has one task: ask, stream to an unfinished file, decode, note, rename.

mod attempt;
mod config;
mod failure;
mod keep;
mod ledger;
mod list;
mod place;
mod queue;
mod report;
mod urls;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, Receiver};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, spawn_blocking};
use vela_runtime::{Progress, Shutdown};

pub use config::FetchConfig;
pub use failure::FailedUrl;
use failure::Failure;
pub use report::FetchReport;
pub use urls::{EmitUrl, ImageUrl, ImageUrls, UrlList, UrlSource};

use crate::PrepareError;
use crate::http::{self, Backoff};
use attempt::{Trouble, attempt};
use keep::keep;
use ledger::Ledger;
use list::{Item, Target};
pub(crate) use place::STATE_FOLDER;
use queue::HostQueue;
use report::Tally;

/// URLs that wait for their host, at most.
const MAX_WAITING: usize = 4096;
/// Bytes per permit of the memory budget.
const PERMIT_BYTES: u64 = 1024;

/// Fetches every image of `urls` into the output folder; run again, it goes on where it was stopped.
///
/// An image is kept under its name in the data set or the URL's path below the host, where `build-shards --images` finds it. It
/// is decoded before it counts. URLs without an image are counted and listed in `failed.jsonl`, never an error.
///
/// # Errors
/// If the list or the disk fails, another process fetches into the folder, or a stop was asked for.
pub fn fetch(
    urls: &dyn ImageUrls,
    config: &FetchConfig,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<FetchReport, PrepareError> {
    config.check()?;
    let started = Instant::now();
    let unfinished = config.output.join(STATE_FOLDER).join("partial");
    fs::create_dir_all(&unfinished).map_err(PrepareError::io("create", &unfinished))?;
    let (ledger, mut paths) = ledger::open(&config.output, config.ignore_query)?;
    clear_unfinished(&unfinished, &paths)?;
    let runtime = Runtime::new().map_err(PrepareError::io("start threads for", &config.output))?;
    let fetcher = Arc::new(Fetcher::new(config, ledger)?);
    let tally = Tally::new(&config.output)?;
    // The reader waits for room in here, and ends once the receiver is gone.
    let (sender, receiver) = mpsc::channel(256);
    let tally = std::thread::scope(|scope| {
        let reader = scope.spawn(|| list::read(urls, config, &mut paths, sender));
        let tally = runtime.block_on(dispatch(&fetcher, receiver, tally, progress, shutdown));
        // Waits for images that are being looked at.
        drop(runtime);
        reader.join().expect("the reader does not panic").and(tally)
    })?;
    fetcher.ledger.sync()?;
    progress.finish();
    let report = FetchReport {
        requests: fetcher.requests.load(Ordering::Relaxed),
        peak_bytes: fetcher.peak_bytes.load(Ordering::Relaxed),
        damaged_lines: fetcher.ledger.damaged(),
        seconds: started.elapsed().as_secs_f64(),
        ..tally.finish()?
    };
    match shutdown.requested() {
        true => Err(PrepareError::FetchStopped { path: config.output.clone(), done: report.fetched + report.kept }),
        false => Ok(report),
    }
}

/// Removes what a kill left half done.
fn clear_unfinished(folder: &Path, paths: &ledger::Paths) -> Result<(), PrepareError> {
    let entries = fs::read_dir(folder).map_err(PrepareError::io("list", folder))?;
    for entry in entries {
        let entry = entry.map_err(PrepareError::io("list", folder))?;
        if !paths.claims(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(PrepareError::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// What became of a target.
enum Outcome {
    Fetched { bytes: u64 },
    Kept,
    Failed { failure: Failure, attempts: u32 },
}

/// Starts a task per URL as hosts and limits allow, and counts what comes back, until the list is done or a stop is asked for.
async fn dispatch(
    fetcher: &Arc<Fetcher>,
    mut items: Receiver<Item>,
    mut tally: Tally,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<Tally, PrepareError> {
    let mut queue = HostQueue::new(fetcher.config.per_host);
    let mut running = JoinSet::new();
    let mut is_open = true;
    loop {
        while running.len() < fetcher.config.concurrency
            && let Some(target) = queue.next()
        {
            running.spawn(Arc::clone(fetcher).run(target));
        }
        if !is_open && running.is_empty() {
            return Ok(tally);
        }
        tokio::select! {
            () = shutdown.wait() => return Ok(tally),
            Some(done) = running.join_next() => {
                let (target, outcome) = done.unwrap_or_else(|fault| std::panic::resume_unwind(fault.into_panic()));
                queue.release(&target.host);
                count(fetcher, &mut tally, target, outcome?)?;
                progress.inc(1);
            }
            item = items.recv(), if is_open && queue.len() < MAX_WAITING => match item {
                Some(Item::Fetch(target)) => {
                    tally.report.urls += 1;
                    queue.push(&target.host.clone(), target);
                }
                Some(settled) => {
                    settle(&mut tally, settled)?;
                    progress.inc(1);
                }
                None => is_open = false,
            },
        }
    }
}

/// Counts what needed no request.
fn settle(tally: &mut Tally, item: Item) -> Result<(), PrepareError> {
    tally.report.urls += 1;
    match item {
        Item::Kept => tally.report.kept += 1,
        Item::Repeated => tally.report.repeated += 1,
        Item::Failed(failed) => tally.fail(failed)?,
        Item::Fetch(_) => {}
    }
    Ok(())
}

fn count(fetcher: &Fetcher, tally: &mut Tally, target: Target, outcome: Outcome) -> Result<(), PrepareError> {
    match outcome {
        Outcome::Kept => tally.report.kept += 1,
        Outcome::Fetched { bytes } => {
            tally.report.fetched += 1;
            tally.report.bytes += bytes;
        }
        Outcome::Failed { failure, attempts } => {
            let Target { url, place, .. } = target;
            if !failure.passing {
                fetcher.ledger.failed(&place.path, &url, &failure.cause)?;
            }
            let Failure { cause, detail, .. } = failure;
            tally.fail(FailedUrl { url, path: Some(place.path), cause, detail, attempts })?;
        }
    }
    Ok(())
}

/// What all tasks share.
struct Fetcher {
    config: FetchConfig,
    client: reqwest::Client,
    ledger: Ledger,
    /// Encoded bytes that verification may hold, in permits.
    memory: Arc<Semaphore>,
    /// Images decoded at a time.
    decoders: Arc<Semaphore>,
    held_bytes: AtomicU64,
    peak_bytes: AtomicU64,
    requests: AtomicU64,
}

impl Fetcher {
    fn new(config: &FetchConfig, ledger: Ledger) -> Result<Self, PrepareError> {
        let zero = || AtomicU64::new(0);
        Ok(Self {
            config: config.clone(),
            client: http::client(config.timeouts, config.max_redirects, &config.user_agent)?,
            ledger,
            memory: Arc::new(Semaphore::new(permits(config.memory_bytes, u64::MAX) as usize)),
            decoders: Arc::new(Semaphore::new(config.workers)),
            held_bytes: zero(),
            peak_bytes: zero(),
            requests: zero(),
        })
    }

    async fn run(self: Arc<Self>, target: Target) -> (Target, Result<Outcome, PrepareError>) {
        let outcome = match self.bring(&target).await {
            Ok(outcome) => Ok(outcome),
            Err(Trouble::Ours(fault)) => Err(fault),
            Err(Trouble::Url(failure, _)) => Ok(Outcome::Failed { failure, attempts: 0 }),
        };
        if !matches!(outcome, Ok(Outcome::Fetched { .. })) {
            // The next run would remove it as well.
            let _ = tokio::fs::remove_file(&target.place.partial).await;
        }
        (target, outcome)
    }

    async fn bring(self: &Arc<Self>, target: &Target) -> Result<Outcome, Trouble> {
        if target.is_there && self.adopt(target).await? {
            return Ok(Outcome::Kept);
        }
        let backoff = Backoff { first: self.config.first_wait, longest: self.config.longest_wait };
        let mut attempts = 1;
        loop {
            let (failure, asked) = match self.attempt(target).await {
                Ok(bytes) => return Ok(Outcome::Fetched { bytes }),
                Err(Trouble::Url(failure, asked)) => (failure, asked),
                Err(ours) => return Err(ours),
            };
            let wait = backoff.wait(attempts, &target.url, asked);
            match wait.filter(|_| failure.passing && attempts <= self.config.retries) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Ok(Outcome::Failed { failure, attempts }),
            }
            attempts += 1;
        }
    }

    async fn attempt(self: &Arc<Self>, target: &Target) -> Result<u64, Trouble> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let body = attempt(&self.client, &target.url, &target.place.partial, self.config.max_image_bytes).await?;
        let (place, url, bytes) = (target.place.clone(), target.url.clone(), body.bytes);
        self.off_thread(bytes, move |this| keep(&place, &url, &body, &this.ledger)).await?;
        Ok(bytes)
    }

    /// Takes a file that is there without a line of the ledger, if it is an image.
    async fn adopt(self: &Arc<Self>, target: &Target) -> Result<bool, Trouble> {
        let (place, url) = (target.place.clone(), target.url.clone());
        let data = tokio::fs::metadata(&place.file).await;
        let Some(data) = data.ok().filter(|data| data.len() <= self.config.max_image_bytes) else { return Ok(false) };
        self.off_thread(data.len(), move |this| keep::adopt(&place, &url, &this.ledger)).await
    }

    /// Runs `work` on a blocking thread once `bytes` of memory and a decoder are free for it.
    async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: u64,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let held = self.hold(bytes).await;
        let this = Arc::clone(self);
        let done = spawn_blocking(move || {
            let done = work(&this);
            this.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
            drop(held);
            done
        });
        done.await.unwrap_or_else(|fault| std::panic::resume_unwind(fault.into_panic()))
    }

    async fn hold(&self, bytes: u64) -> [OwnedSemaphorePermit; 2] {
        let open = "the semaphores are never closed";
        let memory = Arc::clone(&self.memory).acquire_many_owned(permits(bytes, self.config.memory_bytes));
        let memory = memory.await.expect(open);
        let decoder = Arc::clone(&self.decoders).acquire_owned().await.expect(open);
        let held_bytes = self.held_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak_bytes.fetch_max(held_bytes, Ordering::Relaxed);
        [memory, decoder]
    }
}

/// Permits for `bytes`, no more than there are.
fn permits(bytes: u64, most_bytes: u64) -> u32 {
    let units = |bytes: u64| bytes.div_ceil(PERMIT_BYTES).min(u64::from(u32::MAX >> 1)) as u32;
    units(bytes).min(units(most_bytes)).max(1)
}
