//! The blocking face of a remote stream.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc as blocking;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use vela_proto::next_position;
use vela_proto::v1::{Ack, Partition};
use vela_types::{Batch, BatchSource, BatchSpec, Cursor, DatasetInfo, Position, SourceError};

use crate::counts::count_stall;
use crate::ledger::Ledger;
use crate::pump::{Counters, Event, Pump, Subscription};
use crate::server::{Description, Server};
use crate::{ClientError, ClientOptions};

/// Streams one rank's micro-batches from a loader, from the start of the data until told to [`BatchSource::seek`].
///
/// A thread of its own receives ahead of the consumer, never more than `prefetch_bytes` (or one batch, if that is
/// larger). A lost server is followed by the next replica, or tried again with growing pauses, until `give_up_after` has passed without a batch. After
/// an error the next call tries the same position again. Dropping the source ends the stream and waits for the thread.
#[derive(Debug)]
pub struct RemoteSource {
    servers: Vec<Server>,
    /// The one that answered first.
    first: usize,
    info: DatasetInfo,
    subscription: Subscription,
    options: ClientOptions,
    /// Position of the next batch to be given out.
    next: Position,
    /// The step whose last micro-batch was given out last: used up once the next one is asked for.
    finished: Option<Ack>,
    stream: Option<Stream>,
    counters: Arc<Counters>,
    num_batches: u64,
    stalled: Duration,
}

/// What a stream cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Batches given out.
    pub num_batches: u64,
    /// Batch bytes received and not given out.
    pub resident_bytes: usize,
    /// The most that ever was.
    pub peak_bytes: usize,
    /// Streams opened; all but the first after a loss or a seek.
    pub num_streams: u64,
    /// How long the consumer waited for batches in all.
    pub stalled: Duration,
}

impl RemoteSource {
    /// Connects to the loader at `url` (`http://host:port`, or several replicas with commas between) with at most
    /// `prefetch_bytes` of batches under way.
    ///
    /// Fails at once if none answers there, or if the data cannot be had under `spec` by `rank` of `world`.
    pub fn connect(
        url: &str,
        spec: BatchSpec,
        rank: u32,
        world: u32,
        prefetch_bytes: usize,
    ) -> Result<Self, ClientError> {
        Self::connect_with(url, spec, rank, world, ClientOptions { prefetch_bytes, ..ClientOptions::default() })
    }

    /// [`RemoteSource::connect`] with every option.
    pub fn connect_with(
        url: &str,
        spec: BatchSpec,
        rank: u32,
        world: u32,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let servers = Server::list(url, &options)?;
        let partition = Partition { rank, world };
        let (first, described) = run_apart(describe_at_any(&servers, &options.dataset, &spec, partition))??;
        let Description { info, spec: spec_name, steps_per_epoch } = described;
        let origin = Cursor::start(info.fingerprint, spec_name);
        Ok(Self {
            servers,
            first,
            info,
            subscription: Subscription { spec, partition, origin, steps_per_epoch },
            options,
            next: Position { epoch: 0, step: 0, micro: 0 },
            finished: None,
            stream: None,
            counters: Arc::default(),
            num_batches: 0,
            stalled: Duration::ZERO,
        })
    }

    /// What the stream cost so far.
    pub fn stats(&self) -> ClientStats {
        ClientStats {
            num_batches: self.num_batches,
            resident_bytes: self.counters.resident_bytes.load(Ordering::Relaxed),
            peak_bytes: self.counters.peak_bytes.load(Ordering::Relaxed),
            num_streams: self.counters.num_streams.load(Ordering::Relaxed),
            stalled: self.stalled,
        }
    }

    /// The cursor that continues with the next batch; meaningful between steps.
    pub fn cursor(&self) -> Cursor {
        let Position { epoch, step, .. } = self.next;
        Cursor { epoch, step, ..self.subscription.origin.clone() }
    }

    fn position_of(&self, cursor: &Cursor) -> Result<Position, ClientError> {
        let Subscription { origin, steps_per_epoch, .. } = &self.subscription;
        cursor.check(origin.fingerprint, origin.spec)?;
        match cursor.step {
            step if step < *steps_per_epoch => Ok(Position { epoch: cursor.epoch, step, micro: 0 }),
            step if step == *steps_per_epoch => {
                Ok(Position { epoch: cursor.epoch.saturating_add(1), step: 0, micro: 0 })
            }
            step => Err(ClientError::CursorStep { steps_per_epoch: *steps_per_epoch, step }),
        }
    }

    fn take_batch(&mut self) -> Result<Batch, ClientError> {
        let finished = self.finished.take();
        let stream = self.stream()?;
        if let Some(ack) = finished {
            stream.tell(Event::Consumed(ack));
        }
        let started = Instant::now();
        let received = stream.receive();
        let waited = started.elapsed();
        self.stalled += waited;
        count_stall(waited);
        let batch = received.inspect_err(|_| self.stream = None)?;
        self.advance(&batch);
        Ok(batch)
    }

    fn advance(&mut self, batch: &Batch) {
        let Position { epoch, step, .. } = batch.position;
        self.next = next_position(batch.position, batch.num_micro, self.subscription.steps_per_epoch);
        let ends_step = (self.next.epoch, self.next.step) != (epoch, step);
        self.finished = ends_step.then_some(Ack { epoch, step });
        self.num_batches += 1;
    }

    fn stream(&mut self) -> Result<&Stream, ClientError> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open_stream()?,
        };
        Ok(self.stream.insert(stream))
    }

    fn open_stream(&self) -> Result<Stream, ClientError> {
        // Bounded by `prefetch_bytes`: the pump's ledger lets no more bytes of batches come than that, or one batch.
        let (output, batches) = blocking::channel();
        // Two events at most for each batch of that budget, as no batch comes for an event that was not yet seen.
        let (events, consumer_events) = mpsc::unbounded_channel();
        let (closer, closed) = oneshot::channel::<()>();
        let pump = Pump {
            servers: self.servers.clone(),
            current: self.first,
            subscription: self.subscription.clone(),
            options: self.options.clone(),
            next: self.next,
            ledger: Ledger::new(self.options.prefetch_bytes),
            counters: Arc::clone(&self.counters),
            opened: None,
            has_lost: false,
            events: consumer_events,
            output,
        };
        let until_closed = async move {
            tokio::select! {
                () = pump.run() => {}
                _ = closed => {}
            }
        };
        let thread = spawn_with_runtime("vela-client", until_closed)?;
        Ok(Stream { batches, events, closer: Some(closer), thread: Some(thread) })
    }
}

impl BatchSource for RemoteSource {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<(), SourceError> {
        self.next = self.position_of(cursor)?;
        self.finished = None;
        self.stream = None;
        Ok(())
    }

    fn start_cursor(&self) -> Cursor {
        self.subscription.origin.clone()
    }

    fn steps_per_epoch(&self) -> u64 {
        self.subscription.steps_per_epoch
    }

    fn next_batch(&mut self) -> Result<Batch, SourceError> {
        Ok(self.take_batch()?)
    }
}

/// A running pump. The queue of batches is bounded by the byte credit that the pump gives.
#[derive(Debug)]
struct Stream {
    batches: blocking::Receiver<Result<Batch, ClientError>>,
    events: mpsc::UnboundedSender<Event>,
    closer: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn receive(&self) -> Result<Batch, ClientError> {
        let batch = self.batches.recv().unwrap_or(Err(ClientError::ThreadLost))?;
        self.tell(Event::Taken(batch.num_bytes()));
        Ok(batch)
    }

    /// A pump that has ended told why in the queue.
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.closer = None;
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the thread itself and surfaces as `ThreadLost`.
            let _ = thread.join();
        }
    }
}

/// The description of the first server that answers, and which one that is. Another replica cannot cure what is not
/// worth another try.
async fn describe_at_any(
    servers: &[Server],
    dataset: &str,
    spec: &BatchSpec,
    partition: Partition,
) -> Result<(usize, Description), ClientError> {
    let mut answer = None;
    for (number, server) in servers.iter().enumerate() {
        match server.describe_at_any_address(dataset, spec, partition).await {
            Ok(description) => return Ok((number, description)),
            Err(error) if error.is_retryable() || error.is_of_one_server() => answer = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(answer.expect("a list of servers is never empty"))
}

/// Runs `future` to its end on a thread with an event loop of its own.
fn spawn_with_runtime<T: Send + 'static>(
    name: &str,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<JoinHandle<T>, ClientError> {
    let runtime = new_runtime()?;
    Builder::new().name(name.to_owned()).spawn(move || run_to_end(runtime, future)).map_err(ClientError::Thread)
}

/// Waits for `future` on another thread, so that the caller may itself be inside an event loop.
fn run_apart<T: Send>(future: impl Future<Output = T> + Send) -> Result<T, ClientError> {
    let runtime = new_runtime()?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_to_end(runtime, future));
        thread.join().map_err(|_| ClientError::ThreadLost)
    })
}

fn new_runtime() -> Result<Runtime, ClientError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Thread)
}

/// Runs `future` and waits for nothing else: a name that is looked up blocks a thread of the runtime for as long as the resolver likes.
fn run_to_end<T>(runtime: Runtime, future: impl Future<Output = T>) -> T {
    let output = runtime.block_on(future);
    runtime.shutdown_background();
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A resolver that does not answer.
    async fn hang() {
        drop(tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(5))));
        tokio::task::yield_now().await;
    }

    #[test]
    fn a_resolver_that_hangs_is_not_waited_for() {
        let started = Instant::now();
        run_apart(hang()).expect("a thread");
        assert!(started.elapsed() < Duration::from_secs(2), "a connection waited {:?}", started.elapsed());
        let thread = spawn_with_runtime("vela-client", hang()).expect("a thread");
        thread.join().expect("no panic");
        assert!(started.elapsed() < Duration::from_secs(2), "an end waited {:?}", started.elapsed());
    }
}
