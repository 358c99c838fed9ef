//! The receiving thread: keeps a stream open, credit flowing and batches queued, and comes back after a loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use vela_proto::v1::{Ack, Credit, OpenStream, Partition, StreamBatchesRequest, stream_batches_request::Request};
use vela_proto::{PART_BYTES, Received, Sealed, WireError, encode_cursor, encode_spec, next_position};
use vela_types::{Batch, BatchSpec, Cursor, Position};

use crate::counts::{count_batch, count_resume, count_try};
use crate::ledger::{Ledger, Overdraft};
use crate::part_stream::PartStream;
use crate::server::{Server, num_replicas};
use crate::{ClientError, ClientOptions};

/// First pause after a loss; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A stream that stood for this long was a working one, whether or not a batch came of it: its consumer may have been busy.
const STEADY: Duration = Duration::from_secs(5);

/// Requests on their way to the connection; each is a few bytes.
const QUEUED_REQUESTS: usize = 16;

/// What the consumer did.
pub(crate) enum Event {
    /// It took a batch of this many bytes off the queue.
    Taken(usize),
    /// It has used all micro-batches of this step.
    Consumed(Ack),
}

/// Counters that outlive a pump.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) resident_bytes: AtomicUsize,
    pub(crate) peak_bytes: AtomicUsize,
    pub(crate) num_streams: AtomicU64,
}

/// What is streamed.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) spec: BatchSpec,
    pub(crate) partition: Partition,
    /// The start of the data under `spec`.
    pub(crate) origin: Cursor,
    pub(crate) steps_per_epoch: u64,
}

pub(crate) struct Pump {
    /// Replicas over the same data; at least one.
    pub(crate) servers: Vec<Server>,
    /// Which of them the stream is at.
    pub(crate) current: usize,
    pub(crate) subscription: Subscription,
    pub(crate) options: ClientOptions,
    /// Position of the next batch to be queued: what a new stream starts with.
    pub(crate) next: Position,
    pub(crate) ledger: Ledger,
    pub(crate) counters: Arc<Counters>,
    /// When the present stream was opened.
    pub(crate) opened: Option<Instant>,
    /// Whether a stream was lost before the present one.
    pub(crate) has_lost: bool,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) output: blocking::Sender<Result<Batch, ClientError>>,
}

impl Pump {
    /// Runs until an error that no other try can cure, or until it is dropped.
    pub(crate) async fn run(mut self) {
        let error = self.keep_streaming().await;
        // The consumer may be gone; then nobody is left to tell.
        let _ = self.output.send(Err(error));
    }

    async fn keep_streaming(&mut self) -> ClientError {
        let mut outage = Outage::new();
        loop {
            let before = self.next;
            self.opened = None;
            let Err(error) = self.stream_once().await;
            let stood = self.opened.is_some_and(|opened| opened.elapsed() >= STEADY);
            if self.next != before {
                outage = Outage::new();
            } else if stood && !self.ledger.is_waiting(PART_BYTES) {
                // The consumer was busy, not the server.
                outage.begin_anew();
            }
            let num_replicas = num_replicas(&self.servers);
            match outage.end(&error, num_replicas, self.options.give_up_after) {
                End::Refused => return error,
                End::GaveUp(after) => {
                    return ClientError::GaveUp { position: self.next, after, source: Box::new(error) };
                }
                End::GoesOn => self.turn_to_next(&error),
            }
            tokio::time::sleep(outage.pause(num_replicas)).await;
        }
    }

    /// Another replica, or another address of this one.
    fn turn_to_next(&mut self, error: &ClientError) {
        let lost = self.server().url().to_owned();
        self.has_lost = true;
        self.server().addresses().turn_to_next();
        self.current = (self.current + 1) % self.servers.len();
        tracing::warn!(url = lost, to = self.server().url(), next = ?self.next, %error, "stream lost, trying on");
    }

    fn server(&self) -> &Server {
        &self.servers[self.current]
    }

    /// Opens one stream at the next position and receives until it breaks.
    async fn stream_once(&mut self) -> Result<std::convert::Infallible, ClientError> {
        let (requests, outbound) = mpsc::channel(QUEUED_REQUESTS);
        self.counters.num_streams.fetch_add(1, Ordering::Relaxed);
        count_try(self.server().url());
        let open = Request::Open(self.open_request());
        self.send(&requests, open).await?;
        let mut parts = self.open_parts(outbound).await?;
        self.opened = Some(Instant::now());
        if std::mem::take(&mut self.has_lost) {
            count_resume(self.server().url());
        }
        let mut heard = tokio::time::Instant::now();
        loop {
            let patience = tokio::time::sleep_until(heard + self.options.stall_after);
            tokio::select! {
                biased;
                received = parts.next(), if self.ledger.has_room() => {
                    self.take_received(received?, &requests).await?;
                    heard = tokio::time::Instant::now();
                }
                Some(event) = self.events.recv() => {
                    self.take_event(event, &requests).await?;
                    heard = tokio::time::Instant::now();
                }
                () = patience => match self.ledger.is_waiting(PART_BYTES) {
                    true => return Err(self.stalled()),
                    // There is no room for more: whoever takes the batches is slow, not the server.
                    false => heard = tokio::time::Instant::now(),
                },
            }
        }
    }

    /// The answer to the request for a stream; a server whose store hangs may owe it for ever.
    async fn open_parts(&self, outbound: mpsc::Receiver<StreamBatchesRequest>) -> Result<PartStream, ClientError> {
        let opening = PartStream::open(self.server(), outbound, &self.options);
        let answer = tokio::time::timeout(self.options.stall_after, opening).await;
        answer.unwrap_or_else(|_| Err(self.stalled()))
    }

    fn stalled(&self) -> ClientError {
        ClientError::Stalled { url: self.server().url().to_owned(), after: self.options.stall_after }
    }

    fn open_request(&mut self) -> OpenStream {
        let Position { epoch, step, micro } = self.next;
        let Subscription { spec, partition, origin, .. } = &self.subscription;
        OpenStream {
            spec: Some(encode_spec(spec)),
            partition: Some(*partition),
            cursor: Some(encode_cursor(&Cursor { epoch, step, ..origin.clone() })),
            micro,
            credit_bytes: self.ledger.reopen() as u64,
            dataset: self.options.dataset.clone(),
            checksum: None,
        }
        .sealed()
    }

    async fn send(&self, requests: &mpsc::Sender<StreamBatchesRequest>, request: Request) -> Result<(), ClientError> {
        let message = StreamBatchesRequest { request: Some(request) };
        requests.send(message).await.map_err(|_| self.server().ended())
    }

    async fn grant(&self, requests: &mpsc::Sender<StreamBatchesRequest>, bytes: usize) -> Result<(), ClientError> {
        match bytes {
            0 => Ok(()),
            bytes => self.send(requests, Request::Credit(Credit { bytes: bytes as u64 })).await,
        }
    }

    async fn take_received(
        &mut self,
        received: Received,
        requests: &mpsc::Sender<StreamBatchesRequest>,
    ) -> Result<(), ClientError> {
        match received {
            Received::Header { payload_bytes, header_bytes } => {
                let growth = self.ledger.announce(payload_bytes, header_bytes);
                self.grant(requests, growth).await?;
            }
            Received::Payload(num_bytes) => {
                let within = self.ledger.receive(num_bytes);
                within.map_err(|overdraft| self.server().wire_error(overdraft.into()))?;
            }
            Received::Batch(batch) => self.queue(*batch)?,
        }
        self.count_resident();
        Ok(())
    }

    fn queue(&mut self, batch: Batch) -> Result<(), ClientError> {
        let (expected, found) = (self.next, batch.position);
        if found != expected {
            return Err(ClientError::Order { url: self.server().url().to_owned(), expected, found });
        }
        self.ledger.complete();
        count_batch(self.server().url(), batch.num_bytes());
        self.next = next_position(found, batch.num_micro, self.subscription.steps_per_epoch);
        // A consumer that is gone drops the pump right after.
        let _ = self.output.send(Ok(batch));
        Ok(())
    }

    async fn take_event(
        &mut self,
        event: Event,
        requests: &mpsc::Sender<StreamBatchesRequest>,
    ) -> Result<(), ClientError> {
        match event {
            Event::Taken(bytes) => {
                let credit = self.ledger.take(bytes);
                self.count_resident();
                self.grant(requests, credit).await
            }
            Event::Consumed(ack) => self.send(requests, Request::Ack(ack)).await,
        }
    }

    fn count_resident(&self) {
        let resident = self.ledger.resident();
        self.counters.resident_bytes.store(resident, Ordering::Relaxed);
        self.counters.peak_bytes.fetch_max(resident, Ordering::Relaxed);
    }
}

/// The time since a working stream was lost.
struct Outage {
    since: Instant,
    pause: Duration,
    failures: usize,
    /// Failures that no other try at the same server can cure.
    refusals: usize,
}

/// What comes after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Another try.
    GoesOn,
    /// Nothing: no try can cure it.
    Refused,
    /// Nothing: it was tried for this long.
    GaveUp(Duration),
}

impl Outage {
    fn new() -> Self {
        Self { since: Instant::now(), pause: FIRST_PAUSE, failures: 0, refusals: 0 }
    }

    /// A stream that had nothing to do was lost just now.
    fn begin_anew(&mut self) {
        *self = Self { refusals: self.refusals, ..Self::new() };
    }

    /// Notes a failure. What is wrong with one server is asked of each of `num_replicas` once.
    fn end(&mut self, error: &ClientError, num_replicas: usize, give_up_after: Duration) -> End {
        self.failures += 1;
        if !error.is_retryable() {
            self.refusals += 1;
            return match error.is_of_one_server() && self.refusals < num_replicas {
                true => End::GoesOn,
                false => End::Refused,
            };
        }
        match self.since.elapsed() {
            // Not before each was asked, and one of them again: a single try may have taken all the time.
            after if after >= give_up_after && self.failures > num_replicas => End::GaveUp(after),
            _ => End::GoesOn,
        }
    }

    /// The other replicas are asked at once; a pause comes when all have failed.
    fn pause(&mut self, num_replicas: usize) -> Duration {
        if !self.failures.is_multiple_of(num_replicas) {
            return Duration::ZERO;
        }
        let pause = self.pause;
        self.pause = (2 * pause).min(LONGEST_PAUSE);
        pause
    }
}

impl From<Overdraft> for WireError {
    fn from(Overdraft { allowed, found }: Overdraft) -> Self {
        Self::Value {
            field: "chunk.data",
            expected: format!("at most the {allowed} bytes of credit"),
            found: found.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use vela_proto::{ErrorKind, ServiceError};

    use super::*;

    fn service(kind: ErrorKind) -> ClientError {
        ClientError::Service { url: "http://a".to_owned(), source: ServiceError::new(kind, "why") }
    }

    #[test]
    fn what_is_wrong_with_one_server_is_asked_of_each() {
        let patience = Duration::from_secs(100);
        let mut outage = Outage::new();
        let ends = [(); 3].map(|()| outage.end(&service(ErrorKind::Damaged), 3, patience));
        assert_eq!(ends, [End::GoesOn, End::GoesOn, End::Refused]);
        assert_eq!(Outage::new().end(&service(ErrorKind::Mismatch), 3, patience), End::Refused);
        assert_eq!(Outage::new().end(&service(ErrorKind::Damaged), 1, patience), End::Refused);
    }

    #[test]
    fn a_server_that_may_come_back_is_waited_for_until_patience_ends() {
        let mut outage = Outage::new();
        let unavailable = service(ErrorKind::Unavailable);
        assert_eq!(outage.end(&unavailable, 2, Duration::from_secs(100)), End::GoesOn);
        assert_eq!(outage.pause(2), Duration::ZERO, "the other one is asked at once");
        assert_eq!(outage.end(&unavailable, 2, Duration::from_secs(100)), End::GoesOn);
        assert_eq!([outage.pause(2), outage.pause(2)], [FIRST_PAUSE, 2 * FIRST_PAUSE]);
        assert!(matches!(outage.end(&unavailable, 2, Duration::ZERO), End::GaveUp(_)));
        assert_eq!(Outage::new().end(&unavailable, 2, Duration::ZERO), End::GoesOn, "the other one has not been asked");
    }
}
