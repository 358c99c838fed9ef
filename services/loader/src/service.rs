//! The calls of the service.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use vela_dataset::{Dataset, DatasetError, Partition, Provenance, StepPlan, spec_fingerprint};
use vela_proto::v1::{self, batch_part::Part, loader_server::Loader};
use vela_proto::{
    ErrorKind, ServiceError, batch_chunks, batch_header, decode_partition, decode_position, decode_spec,
    encode_fingerprint, encode_info,
};
use vela_runtime::Shutdown;
use vela_types::{Batch, BatchSpec, Position};

use crate::LoaderReport;
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

/// The service over the data sets of a catalog.
pub(crate) struct LoaderService {
    shared: Arc<Shared>,
}

impl LoaderService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
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

/// A batch as the messages it travels in.
pub(crate) fn batch_parts(batch: &Batch) -> impl Iterator<Item = v1::BatchPart> + Send + use<> {
    let header = std::iter::once(Part::Header(batch_header(batch)));
    header.chain(batch_chunks(batch).map(Part::Chunk)).map(|part| v1::BatchPart { part: Some(part) })
}

type PartStream = Pin<Box<dyn Stream<Item = Result<v1::BatchPart, Status>> + Send>>;

#[tonic::async_trait]
impl Loader for LoaderService {
    type StreamBatchesStream = PartStream;
    type GetBatchStream = PartStream;

    async fn describe_dataset(
        &self,
        request: Request<v1::DescribeDatasetRequest>,
    ) -> Result<Response<v1::DescribeDatasetResponse>, Status> {
        let (tenant, request) = caller(request)?;
        Ok(Response::new(counted(self.describe(&tenant, request).await)?))
    }

    async fn stream_batches(
        &self,
        request: Request<Streaming<v1::StreamBatchesRequest>>,
    ) -> Result<Response<PartStream>, Status> {
        let (tenant, requests) = caller(request)?;
        let parts = counted(Session::start(Arc::clone(&self.shared), tenant, requests).await)?;
        Ok(Response::new(Box::pin(parts) as PartStream))
    }

    async fn lookup(&self, request: Request<v1::LookupRequest>) -> Result<Response<v1::LookupResponse>, Status> {
        let (tenant, request) = caller(request)?;
        Ok(Response::new(counted(self.find_record(&tenant, request).await)?))
    }

    async fn get_batch(&self, request: Request<v1::GetBatchRequest>) -> Result<Response<PartStream>, Status> {
        let (tenant, request) = caller(request)?;
        let admission = Arc::new(counted(self.shared.admit(&tenant))?);
        let batch = counted(self.find_batch(&tenant, request).await)?;
        let parts = tokio_stream::iter(batch_parts(&batch)).then(move |part| {
            let (admission, tenant) = (Arc::clone(&admission), Arc::clone(&tenant));
            async move {
                let _held = admission;
                tenant.spend(num_bytes(&part)).await;
                Ok(part)
            }
        });
        Ok(Response::new(Box::pin(parts) as PartStream))
    }
}

/// Who calls, as the interceptor found out.
fn caller<T>(request: Request<T>) -> Result<(Arc<Tenant>, T), ServiceError> {
    let unknown = || ServiceError::new(ErrorKind::Unauthenticated, "the caller was not asked who it is");
    let tenant = request.extensions().get::<Arc<Tenant>>().map(Arc::clone).ok_or_else(unknown)?;
    Ok((tenant, request.into_inner()))
}

/// Counts a refusal by its kind.
pub(crate) fn counted<T>(answer: Result<T, ServiceError>) -> Result<T, ServiceError> {
    answer
        .inspect_err(|error| metrics::counter!("vela_loader_refusals_total", "kind" => error.kind.name()).increment(1))
}

/// Payload bytes of a part.
pub(crate) fn num_bytes(part: &v1::BatchPart) -> usize {
    match &part.part {
        Some(Part::Chunk(chunk)) => chunk.data.len(),
        _ => 0,
    }
}
