//! The receiving thread: keeps a stream open, credit flowing and batches queued, and comes back after a loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use vela_proto::v1::{
    Ack, BatchPart, Credit, OpenStream, Partition, StreamBatchesRequest, batch_part::Part,
    stream_batches_request::Request,
};
use vela_proto::{Assembler, WireError, encode_cursor, encode_spec, next_position};
use vela_types::{Batch, BatchSpec, Cursor, Position};

use crate::ledger::{Ledger, Overdraft};
use crate::server::Server;
use crate::{ClientError, ClientOptions};

/// First pause after a loss; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
        let mut last_progress = Instant::now();
        let (mut pause, mut failures) = (FIRST_PAUSE, 0);
        loop {
            let before = self.next;
            let Err(error) = self.stream_once().await;
            // A server that only was slow has not been away.
            if self.next != before || matches!(error, ClientError::Stalled { .. }) {
                (last_progress, pause, failures) = (Instant::now(), FIRST_PAUSE, 0);
            }
            if !error.is_retryable() {
                return error;
            }
            let after = last_progress.elapsed();
            if after >= self.options.give_up_after {
                return ClientError::GaveUp { position: self.next, after, source: Box::new(error) };
            }
            let lost = self.server().url().to_owned();
            self.current = (self.current + 1) % self.servers.len();
            tracing::warn!(url = lost, to = self.server().url(), next = ?self.next, %error, "stream lost, trying on");
            failures += 1;
            // The other replicas are asked at once; a pause comes when all have failed.
            if failures % self.servers.len() == 0 {
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    }

    fn server(&self) -> &Server {
        &self.servers[self.current]
    }

    /// Opens one stream at the next position and receives until it breaks.
    async fn stream_once(&mut self) -> Result<std::convert::Infallible, ClientError> {
        let mut client = self.server().connect().await?;
        let (requests, outbound) = mpsc::channel(QUEUED_REQUESTS);
        self.counters.num_streams.fetch_add(1, Ordering::Relaxed);
        let open = Request::Open(self.open_request());
        self.send(&requests, open).await?;
        let answer = client.stream_batches(ReceiverStream::new(outbound)).await;
        let mut parts = answer.map_err(|status| self.server().service_error(status))?.into_inner();
        let mut assembler = Assembler::new(self.options.max_batch_bytes);
        loop {
            tokio::select! {
                part = parts.message() => {
                    let part = part.map_err(|status| self.server().service_error(status))?;
                    let part = part.ok_or_else(|| self.server().ended())?;
                    self.take_part(part, &mut assembler, &requests).await?;
                }
                Some(event) = self.events.recv() => self.take_event(event, &requests).await?,
                () = tokio::time::sleep(self.options.stall_after), if self.ledger.is_waiting() => {
                    let (url, after) = (self.server().url().to_owned(), self.options.stall_after);
                    return Err(ClientError::Stalled { url, after });
                }
            }
        }
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
        }
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

    async fn take_part(
        &mut self,
        part: BatchPart,
        assembler: &mut Assembler,
        requests: &mpsc::Sender<StreamBatchesRequest>,
    ) -> Result<(), ClientError> {
        if let Some(Part::Chunk(chunk)) = &part.part {
            let received = self.ledger.receive(chunk.data.len());
            received.map_err(|overdraft| self.server().wire_error(overdraft.into()))?;
        }
        let complete = assembler.push(part).map_err(|fault| self.server().wire_error(fault))?;
        let growth = self.ledger.announce(assembler.open_bytes());
        self.grant(requests, growth).await?;
        if let Some(batch) = complete {
            self.queue(batch)?;
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

impl From<Overdraft> for WireError {
    fn from(Overdraft { allowed, found }: Overdraft) -> Self {
        Self::Value {
            field: "chunk.data",
            expected: format!("at most the {allowed} bytes of credit"),
            found: found.to_string(),
        }
    }
}
