//! One consumer's stream: batches out against byte credit in.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use vela_dataset::{LookAhead, Partition};
use vela_proto::v1::{self, stream_batches_request::Request as Asked};
use vela_proto::{EncodedPart, ErrorKind, Sealed, ServiceError, WireError, decode_cursor, encode_batch};
use vela_runtime::Shutdown;
use vela_types::{Position, ScatteredBatch};

use crate::error::to_service_error;
use crate::shared::{Admission, Order, Request, Shared};
use crate::tenants::Tenant;

/// Parts between a session and the connection: enough to keep the connection busy while the next one is cut.
const QUEUED_PARTS: usize = 4;

/// Credit a consumer may hold: far above any use, far below any overflow.
const MAX_CREDIT_BYTES: u64 = 1 << 40;

/// How long a consumer has to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a session ended: with the consumer, or by an error.
type LastWord = OnceLock<Result<(), ServiceError>>;

/// What the consumer asked for, checked.
struct Opening {
    order: Order,
    partition: Partition,
    start: Position,
}

/// One consumer: its share, its place, its credit. Three batches are held at most: one on its way, the next being
/// made, and the one before while one of its last parts waits.
pub(crate) struct Session {
    shared: Arc<Shared>,
    opening: Opening,
    credit: Arc<Credit>,
    parts: mpsc::Sender<EncodedPart>,
    last_word: Arc<LastWord>,
    tenant: Arc<Tenant>,
    labels: [(&'static str, String); 2],
    /// Fetches shards for coming batches, where they are remote.
    look_ahead: Option<LookAhead>,
    _admission: Arc<Admission>,
}

impl Session {
    /// Reads the opening request and starts the session; the stream returned is what the consumer receives.
    pub(crate) async fn start(
        shared: Arc<Shared>,
        tenant: Arc<Tenant>,
        mut requests: Streaming<v1::StreamBatchesRequest>,
    ) -> Result<Parts, ServiceError> {
        let admission = Arc::new(shared.admit(&tenant)?);
        let open = first_request(&mut requests, &shared.stop).await?;
        let credit = Arc::new(Credit::new());
        credit.grant(open.credit_bytes)?;
        let opening = check_opening(&shared, &tenant, open).await?;
        shared.totals.consumers.fetch_add(1, Ordering::Relaxed);
        let Partition { rank, world } = opening.partition;
        tracing::info!(rank, world, start = ?opening.start, "consumer joined");
        let (parts, stream) = mpsc::channel(QUEUED_PARTS);
        let last_word = Arc::new(OnceLock::new());
        let labels = [("tenant", tenant.name.clone()), ("dataset", opening.order.served.name.clone())];
        metrics::counter!("vela_loader_streams_total", &labels).increment(1);
        let _admission = Arc::clone(&admission);
        let said = Arc::clone(&last_word);
        let look_ahead =
            LookAhead::start(&opening.order.share, opening.start).map_err(|error| to_service_error(&error))?;
        let session = Self { shared, opening, credit, parts, last_word, tenant, labels, look_ahead, _admission };
        tokio::spawn(session.run(requests));
        Ok(Parts { parts: ReceiverStream::new(stream), last_word: said, has_ended: false, _admission: admission })
    }

    async fn run(self, requests: Streaming<v1::StreamBatchesRequest>) {
        let end = tokio::select! {
            end = self.send_batches() => end,
            end = self.listen(requests) => end,
            () = self.shared.stop.wait() => Err(stopping()),
        };
        let Partition { rank, world } = self.opening.partition;
        match end {
            Ok(()) => tracing::info!(rank, world, "consumer left"),
            Err(ref error) => tracing::info!(rank, world, %error, "stream ended"),
        }
        self.last_word.set(end).expect("a session ends once");
    }

    /// Sends batch after batch until the consumer is gone or a batch cannot be made.
    async fn send_batches(&self) -> Result<(), ServiceError> {
        let plan = self.opening.order.share.plan();
        let mut position = self.opening.start;
        let mut upcoming = self.begin_batch(position);
        loop {
            let batch = upcoming.finish().await?;
            position = plan.after(position);
            upcoming = self.begin_batch(position);
            if !self.send_batch(batch).await {
                return Ok(());
            }
        }
    }

    fn begin_batch(&self, position: Position) -> UpcomingBatch {
        self.look_ahead.iter().for_each(|ahead| ahead.advance(position));
        let order = self.opening.order.clone();
        UpcomingBatch(tokio::spawn(Arc::clone(&self.shared).build(order, position)))
    }

    /// False if the consumer is gone.
    async fn send_batch(&self, batch: ScatteredBatch) -> bool {
        let totals = &self.shared.totals;
        let (mut waited, mut sent) = (Duration::ZERO, 0);
        for part in encode_batch(batch) {
            let num_bytes = part.payload_bytes;
            let waiting = Instant::now();
            self.credit.spend(num_bytes).await;
            waited += waiting.elapsed();
            self.tenant.spend(num_bytes).await;
            if self.parts.send(part).await.is_err() {
                return false;
            }
            totals.bytes.fetch_add(num_bytes as u64, Ordering::Relaxed);
            sent += num_bytes as u64;
        }
        totals.batches.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("vela_loader_batches_total", &self.labels).increment(1);
        metrics::counter!("vela_loader_bytes_total", &self.labels).increment(sent);
        metrics::histogram!("vela_loader_credit_wait_seconds", &self.labels).record(waited);
        true
    }

    /// Takes credit and acknowledgements until the consumer closes its side.
    async fn listen(&self, mut requests: Streaming<v1::StreamBatchesRequest>) -> Result<(), ServiceError> {
        loop {
            let request = match requests.message().await {
                Ok(Some(request)) => request.request,
                Ok(None) => return Ok(()),
                // The connection is lost or the call was cancelled: the consumer knows already.
                Err(_) => return Ok(()),
            };
            match request {
                Some(Asked::Credit(credit)) => self.credit.grant(credit.bytes)?,
                Some(Asked::Ack(ack)) => self.record_ack(&ack),
                Some(Asked::Open(_)) => return Err(out_of_order("`credit` or `ack`", "a second `open`")),
                None => return Err(WireError::Missing { field: "request" }.into()),
            }
        }
    }

    fn record_ack(&self, ack: &v1::Ack) {
        let Partition { rank, world } = self.opening.partition;
        self.shared.totals.acked_steps.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("vela_loader_acked_steps_total", &self.labels).increment(1);
        tracing::debug!(rank, world, epoch = ack.epoch, step = ack.step, "step consumed");
    }
}

fn out_of_order(expected: &str, found: &str) -> ServiceError {
    WireError::Order { expected: expected.to_owned(), found: found.to_owned() }.into()
}

fn stopping() -> ServiceError {
    ServiceError::new(ErrorKind::Unavailable, "the loader is stopping")
}

/// What `waited` comes to, if the loader does not stop first: who waits long for others' work holds up no stop.
pub(crate) async fn unless_stopping<T>(
    stop: &Shutdown,
    waited: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    tokio::select! {
        done = waited => done,
        () = stop.wait() => Err(stopping()),
    }
}

async fn first_request(
    requests: &mut Streaming<v1::StreamBatchesRequest>,
    stop: &Shutdown,
) -> Result<v1::OpenStream, ServiceError> {
    let silent = |_| ServiceError::new(ErrorKind::InvalidRequest, format_args!("no `open` within {PATIENCE:?}"));
    let first = tokio::select! {
        first = tokio::time::timeout(PATIENCE, requests.message()) => first.map_err(silent)??,
        () = stop.wait() => return Err(stopping()),
    };
    match first.and_then(|first| first.request) {
        Some(Asked::Open(open)) => Ok(open.check()?),
        Some(_) => Err(out_of_order("`open` first", "another request")),
        None => Err(out_of_order("`open` first", "nothing")),
    }
}

async fn check_opening(shared: &Arc<Shared>, tenant: &Tenant, open: v1::OpenStream) -> Result<Opening, ServiceError> {
    let request = Request::decode(shared, tenant, &open.dataset, open.spec, open.partition)?;
    let cursor = decode_cursor(open.cursor)?;
    let refused = |error| to_service_error(&error);
    let partition = request.partition;
    let order = unless_stopping(&shared.stop, request.plan(tenant)).await?;
    let start = order.share.position_of(&cursor).map_err(refused)?;
    if open.micro > 0 && (start.epoch, start.step) != (cursor.epoch, cursor.step) {
        let expected = "0, as the cursor stands at the end of its epoch".to_owned();
        return Err(WireError::Value { field: "open.micro", expected, found: open.micro.to_string() }.into());
    }
    let start = Position { micro: open.micro, ..start };
    order.share.plan().micro_rows(start).map_err(refused)?;
    Ok(Opening { order, partition, start })
}

/// What a consumer receives. It keeps the consumer's place until all of it is taken, though the session may have ended.
pub(crate) struct Parts {
    parts: ReceiverStream<EncodedPart>,
    last_word: Arc<LastWord>,
    has_ended: bool,
    _admission: Arc<Admission>,
}

impl Stream for Parts {
    type Item = Result<EncodedPart, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(part) = ready!(Pin::new(&mut self.parts).poll_next(context)) {
            return Poll::Ready(Some(Ok(part)));
        }
        if std::mem::replace(&mut self.has_ended, true) {
            return Poll::Ready(None);
        }
        Poll::Ready(match self.last_word.get() {
            Some(Ok(())) => None,
            Some(Err(error)) => Some(Err(error.clone().into())),
            None => Some(Err(Status::internal("the stream's task ended early"))),
        })
    }
}

/// A batch being made; let go of, it is not waited for, nor begun if it still waits for a core.
struct UpcomingBatch(JoinHandle<Result<ScatteredBatch, ServiceError>>);

impl UpcomingBatch {
    async fn finish(mut self) -> Result<ScatteredBatch, ServiceError> {
        (&mut self.0).await.map_err(|error| ServiceError::new(ErrorKind::Internal, error))?
    }
}

impl Drop for UpcomingBatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Bytes that may be sent.
struct Credit {
    permits: Semaphore,
}

impl Credit {
    fn new() -> Self {
        Self { permits: Semaphore::new(0) }
    }

    /// Adds to the credit; refuses a sum that no consumer can mean.
    fn grant(&self, bytes: u64) -> Result<(), ServiceError> {
        let sum = bytes.saturating_add(self.permits.available_permits() as u64);
        if sum > MAX_CREDIT_BYTES {
            let expected = format!("at most {MAX_CREDIT_BYTES} bytes in all");
            return Err(WireError::Value { field: "credit.bytes", expected, found: sum.to_string() }.into());
        }
        self.permits.add_permits(bytes as usize);
        Ok(())
    }

    /// Waits until `num_bytes` may be sent and takes them off.
    async fn spend(&self, num_bytes: usize) {
        let num_permits = u32::try_from(num_bytes).expect("a part is about 1 MiB");
        let permits = self.permits.acquire_many(num_permits).await;
        permits.expect("the semaphore is never closed").forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn credit_is_spent_once_and_waited_for() {
        let credit = Credit::new();
        credit.grant(10).expect("little");
        credit.spend(7).await;
        let short = tokio::time::timeout(Duration::from_millis(20), credit.spend(4)).await;
        assert!(short.is_err(), "three bytes are not four");
        credit.grant(1).expect("little");
        credit.spend(4).await;
        assert_eq!(credit.permits.available_permits(), 0);
    }

    #[test]
    fn credit_beyond_reason_is_refused() {
        let credit = Credit::new();
        assert!(credit.grant(u64::MAX).is_err());
        credit.grant(MAX_CREDIT_BYTES).expect("the most");
        assert!(credit.grant(1).is_err());
    }
}
