//! The three calls of the service.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use vela_dataset::{Dataset, DatasetError, Partition, StepPlan, spec_fingerprint};
use vela_proto::v1::{self, batch_part::Part, loader_server::Loader};
use vela_proto::{
    ErrorKind, ServiceError, batch_chunks, batch_header, decode_partition, decode_position, decode_spec,
    encode_fingerprint, encode_info,
};
use vela_runtime::Shutdown;
use vela_types::{Batch, BatchSpec, Position};

use crate::LoaderReport;
use crate::error::to_service_error;
use crate::session::Session;

/// What all calls share.
pub(crate) struct Shared {
    pub(crate) dataset: Arc<Dataset>,
    /// One permit per open stream or single batch, held until the last part is taken: with the byte limit of a batch
    /// it bounds what all consumers together keep in memory.
    consumers: Arc<Semaphore>,
    /// One permit per batch being made, so that many consumers cannot start more reads than there are cores.
    builders: Arc<Semaphore>,
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
    pub(crate) fn new(dataset: Arc<Dataset>, max_consumers: u32) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self {
            dataset,
            consumers: Arc::new(Semaphore::new(max_consumers as usize)),
            builders: Arc::new(Semaphore::new(cores)),
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

    /// A place among the consumers served at once; refused if there is none.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, ServiceError> {
        let busy = |_| ServiceError::new(ErrorKind::Busy, "the loader serves as many consumers as it may; try later");
        Arc::clone(&self.consumers).try_acquire_owned().map_err(busy)
    }

    /// Checks off the async threads that the data can be had under `spec` by `partition`: shares, bytes of a batch,
    /// length of every record.
    pub(crate) async fn plan(
        self: Arc<Self>,
        spec: &BatchSpec,
        partition: Partition,
    ) -> Result<StepPlan, ServiceError> {
        let spec = spec.clone();
        let check = move || {
            let plan = self.dataset.plan(&spec, partition)?;
            self.dataset.check_lengths(&spec)?;
            Ok(plan)
        };
        let checked = tokio::task::spawn_blocking(check).await;
        let checked = checked.map_err(|error| ServiceError::new(ErrorKind::Internal, format_args!("spec: {error}")))?;
        checked.map_err(|error: DatasetError| to_service_error(&error))
    }

    /// Makes a batch off the async threads.
    pub(crate) async fn build(
        self: Arc<Self>,
        spec: BatchSpec,
        partition: Partition,
        position: Position,
    ) -> Result<Batch, ServiceError> {
        let permit = Arc::clone(&self.builders).acquire_owned().await;
        let make = move || {
            let _held = permit;
            self.dataset.batch(&spec, partition, position).map_err(|error| to_service_error(&error))
        };
        let failed = |error| ServiceError::new(ErrorKind::Internal, format_args!("batch {position:?}: {error}"));
        tokio::task::spawn_blocking(make).await.map_err(failed)?
    }
}

/// The service over one data set.
pub(crate) struct LoaderService {
    shared: Arc<Shared>,
}

impl LoaderService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn describe(&self, request: v1::DescribeDatasetRequest) -> Result<v1::DescribeDatasetResponse, ServiceError> {
        let dataset = &self.shared.dataset;
        let info = Some(encode_info(dataset.info()));
        if request.spec.is_none() {
            return Ok(v1::DescribeDatasetResponse { info, spec_fingerprint: Vec::new().into() });
        }
        let spec = decode_spec(request.spec)?;
        let partition = match request.partition {
            Some(_) => take_partition(request.partition)?,
            None => Partition::WHOLE,
        };
        Arc::clone(&self.shared).plan(&spec, partition).await?;
        Ok(v1::DescribeDatasetResponse { info, spec_fingerprint: encode_fingerprint(&spec_fingerprint(&spec)) })
    }

    async fn find_batch(&self, request: v1::GetBatchRequest) -> Result<Batch, ServiceError> {
        let spec = decode_spec(request.spec)?;
        let partition = take_partition(request.partition)?;
        let position = decode_position(request.position)?;
        Arc::clone(&self.shared).plan(&spec, partition).await?;
        Arc::clone(&self.shared).build(spec, partition, position).await
    }
}

pub(crate) fn take_partition(partition: Option<v1::Partition>) -> Result<Partition, ServiceError> {
    let (rank, world) = decode_partition(partition)?;
    Ok(Partition { rank, world })
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
        Ok(Response::new(self.describe(request.into_inner()).await?))
    }

    async fn stream_batches(
        &self,
        request: Request<Streaming<v1::StreamBatchesRequest>>,
    ) -> Result<Response<PartStream>, Status> {
        let parts = Session::start(Arc::clone(&self.shared), request.into_inner()).await?;
        Ok(Response::new(Box::pin(parts) as PartStream))
    }

    async fn get_batch(&self, request: Request<v1::GetBatchRequest>) -> Result<Response<PartStream>, Status> {
        let consumer = self.shared.admit()?;
        let batch = self.find_batch(request.into_inner()).await?;
        let parts = tokio_stream::iter(batch_parts(&batch)).map(move |part| {
            let _held = &consumer;
            Ok(part)
        });
        Ok(Response::new(Box::pin(parts) as PartStream))
    }
}
