//! The calls of the service.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;
use vela_dataset::{Dataset, DatasetError, Partition, Provenance, StepPlan, spec_fingerprint};
use vela_proto::v1;
use vela_proto::{
    ErrorKind, MAX_REQUEST_BYTES, ServiceError, decode_partition, decode_position, decode_spec, encode_batch,
    encode_fingerprint, encode_info,
};
use vela_runtime::Shutdown;
use vela_types::{Batch, BatchSpec, Position};

use crate::LoaderReport;
use crate::body::{BatchBody, message_body};
use crate::catalog::Catalog;
use crate::error::to_service_error;
use crate::session::Session;
use crate::tenants::Tenant;

/// What all calls share.
pub(crate) struct Shared {
    catalog: Catalog,
    /// One permit per open stream or single batch, held until the last part is taken: with the byte limit of a batch
    /// it bounds what all consumers together keep in memory.
    consumers: Arc<Semaphore>,
    /// One permit per batch being made, so that many consumers cannot start more reads than there are cores.
    builders: Arc<Semaphore>,
    /// The permit to plan an epoch's rows: what a spec may cost beyond its batches.
    planner: Arc<Semaphore>,
    /// Ends streams; requested after health says so.
    pub(crate) stop: Shutdown,
    pub(crate) totals: Totals,
}

#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) consumers: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) acked_steps: AtomicU64,
}

impl Shared {
    pub(crate) fn new(catalog: Catalog, max_consumers: u32) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self {
            catalog,
            consumers: Arc::new(Semaphore::new(max_consumers as usize)),
            builders: Arc::new(Semaphore::new(cores)),
            planner: Arc::new(Semaphore::new(1)),
            stop: Shutdown::new(),
            totals: Totals::default(),
        }
    }

    pub(crate) fn report(&self, address: SocketAddr, seconds: f64, drained: bool) -> LoaderReport {
        let count = |total: &AtomicU64| total.load(Ordering::Relaxed);
        let Totals { consumers, batches, bytes, acked_steps } = &self.totals;
        LoaderReport {
            address,
            consumers: count(consumers),
            batches: count(batches),
            bytes: count(bytes),
            acked_steps: count(acked_steps),
            seconds,
            drained,
        }
    }

    /// A place among the consumers served at once, of all and of the tenant's; refused if there is none.
    pub(crate) fn admit(&self, tenant: &Tenant) -> Result<Admission, ServiceError> {
        let busy = |_| ServiceError::new(ErrorKind::Busy, "the loader serves as many consumers as it may; try later");
        let of_tenant = tenant.admit()?;
        let of_all = Arc::clone(&self.consumers).try_acquire_owned().map_err(busy)?;
        let open = metrics::gauge!("vela_loader_consumers", "tenant" => tenant.name.clone());
        open.increment(1);
        Ok(Admission { _permits: [of_tenant, of_all], open })
    }

    /// Makes a batch off the async threads.
    pub(crate) async fn build(self: Arc<Self>, order: BatchOrder, position: Position) -> Result<Batch, ServiceError> {
        let permit = Arc::clone(&self.builders).acquire_owned().await;
        let name = order.name.clone();
        let started = Instant::now();
        let batch = off_thread(move || {
            let _held = permit;
            order.dataset.batch(&order.spec, order.partition, position)
        })
        .await?;
        let labels = [("dataset", name)];
        metrics::histogram!("vela_loader_build_seconds", &labels).record(started.elapsed());
        let masked = batch.samples.iter().filter(|slot| !slot.valid).count();
        metrics::counter!("vela_loader_masked_slots_total", &labels).increment(masked as u64);
        Ok(batch)
    }
}

/// A consumer's place, free again when this is dropped.
pub(crate) struct Admission {
    _permits: [OwnedSemaphorePermit; 2],
    open: metrics::Gauge,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.open.decrement(1);
    }
}

/// Whose batches are wanted, and how they are cut.
#[derive(Clone)]
pub(crate) struct BatchOrder {
    /// What the server calls the data set.
    pub(crate) name: String,
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) spec: BatchSpec,
    pub(crate) partition: Partition,
}

impl BatchOrder {
    /// What a request asks for, fields checked.
    pub(crate) fn decode(
        shared: &Shared,
        tenant: &Tenant,
        dataset: &str,
        spec: Option<v1::BatchSpec>,
        partition: Option<v1::Partition>,
    ) -> Result<Self, ServiceError> {
        let (name, dataset) = shared.catalog.find(tenant, dataset)?;
        let (spec, (rank, world)) = (decode_spec(spec)?, decode_partition(partition)?);
        let partition = Partition { rank, world };
        Ok(Self { name: name.to_owned(), dataset: Arc::clone(dataset), spec, partition })
    }

    /// Checks that the data can be had so: shares, bytes of a batch, length of every record. Plans packed rows.
    /// One at a time: rows are packed on all cores, and a plan that nobody asked for twice is soon forgotten.
    pub(crate) async fn plan(&self, shared: &Shared) -> Result<StepPlan, ServiceError> {
        let permit = Arc::clone(&shared.planner).acquire_owned().await;
        let Self { dataset, spec, partition, .. } = self.clone();
        off_thread(move || {
            let _held = permit;
            dataset.check_lengths(&spec)?;
            dataset.plan(&spec, partition)
        })
        .await
    }
}

/// Runs what reads or computes for long off the async threads.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DatasetError> + Send + 'static,
) -> Result<T, ServiceError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| ServiceError::new(ErrorKind::Internal, error))?;
    done.map_err(|error| to_service_error(&error))
}

/// The service over the data sets of a catalog. What it answers with is in [`crate::body`].
#[derive(Clone)]
pub(crate) struct LoaderService {
    shared: Arc<Shared>,
}

impl LoaderService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The call that a request names.
    async fn answer(&self, request: http::Request<Body>) -> Result<Body, Status> {
        let (parts, body) = request.into_parts();
        // The interceptor put it there; without one nobody may read.
        let tenant =
            parts.extensions.get::<Arc<Tenant>>().ok_or_else(|| Status::unauthenticated("nobody asked who calls"))?;
        let call = parts.uri.path().strip_prefix('/').and_then(|path| path.strip_prefix(Self::NAME));
        match call {
            Some("/DescribeDataset") => Ok(message_body(counted(self.describe(tenant, message(body).await?).await)?)),
            Some("/Lookup") => Ok(message_body(counted(self.find_record(tenant, message(body).await?).await)?)),
            Some("/GetBatch") => counted(self.send_batch(tenant, message(body).await?).await).map_err(Status::from),
            Some("/StreamBatches") => {
                let session = Session::start(Arc::clone(&self.shared), Arc::clone(tenant), messages(body));
                Ok(BatchBody::of(counted(session.await)?))
            }
            _ => Err(Status::unimplemented(format!("no call `{}`", parts.uri.path()))),
        }
    }

    async fn describe(
        &self,
        tenant: &Tenant,
        request: v1::DescribeDatasetRequest,
    ) -> Result<v1::DescribeDatasetResponse, ServiceError> {
        let v1::DescribeDatasetRequest { dataset, spec, partition } = request;
        let info = Some(encode_info(self.shared.catalog.find(tenant, &dataset)?.1.info()));
        if spec.is_none() {
            return Ok(v1::DescribeDatasetResponse { info, ..Default::default() });
        }
        let partition = partition.or(Some(v1::Partition { rank: 0, world: 1 }));
        let order = BatchOrder::decode(&self.shared, tenant, &dataset, spec, partition)?;
        let steps_per_epoch = order.plan(&self.shared).await?.steps_per_epoch();
        let spec_fingerprint = encode_fingerprint(&spec_fingerprint(&order.spec));
        Ok(v1::DescribeDatasetResponse { info, spec_fingerprint, steps_per_epoch })
    }

    async fn find_batch(&self, tenant: &Tenant, request: v1::GetBatchRequest) -> Result<Batch, ServiceError> {
        let order = BatchOrder::decode(&self.shared, tenant, &request.dataset, request.spec, request.partition)?;
        let position = decode_position(request.position)?;
        order.plan(&self.shared).await?;
        Arc::clone(&self.shared).build(order, position).await
    }

    async fn send_batch(&self, tenant: &Arc<Tenant>, request: v1::GetBatchRequest) -> Result<Body, ServiceError> {
        let admission = Arc::new(self.shared.admit(tenant)?);
        let batch = self.find_batch(tenant, request).await?;
        let tenant = Arc::clone(tenant);
        let parts = tokio_stream::iter(encode_batch(&batch)).then(move |part| {
            let (admission, tenant) = (Arc::clone(&admission), Arc::clone(&tenant));
            async move {
                let _held = admission;
                tenant.spend(part.payload_bytes).await;
                Ok(part)
            }
        });
        Ok(BatchBody::of(Box::pin(parts)))
    }

    async fn find_record(
        &self,
        tenant: &Tenant,
        request: v1::LookupRequest,
    ) -> Result<v1::LookupResponse, ServiceError> {
        let dataset = Arc::clone(self.shared.catalog.find(tenant, &request.dataset)?.1);
        let Provenance { shards, file, row, id, source } =
            off_thread(move || dataset.provenance(request.index)).await?;
        Ok(v1::LookupResponse { shards, file, row, id, source })
    }
}

impl NamedService for LoaderService {
    const NAME: &'static str = "vela.loader.v1.Loader";
}

impl Service<http::Request<Body>> for LoaderService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            Ok(match service.answer(request).await {
                Ok(body) => grpc_response(body),
                Err(status) => status.into_http(),
            })
        })
    }
}

fn grpc_response(body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// The messages of a request.
fn messages<M: Message + Default + Send + 'static>(body: Body) -> Streaming<M> {
    Streaming::new_request(ProstCodec::<M, M>::default().decoder(), body, None, Some(MAX_REQUEST_BYTES))
}

/// The message of a request that has one.
async fn message<M: Message + Default + Send + 'static>(body: Body) -> Result<M, Status> {
    let mut messages = messages(body);
    let first = messages.message().await?.ok_or_else(|| Status::invalid_argument("expected a message, found none"))?;
    match messages.message().await? {
        None => Ok(first),
        Some(_) => Err(Status::invalid_argument("expected one message, found another after it")),
    }
}

/// Counts a refusal by its kind.
pub(crate) fn counted<T>(answer: Result<T, ServiceError>) -> Result<T, ServiceError> {
    answer
        .inspect_err(|error| metrics::counter!("vela_loader_refusals_total", "kind" => error.kind.name()).increment(1))
}
