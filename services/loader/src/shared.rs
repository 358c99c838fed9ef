//! What all calls share: the data, the limits, the way a batch is made, the counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vela_dataset::{DatasetError, Partition, Share};
use vela_proto::v1;
use vela_proto::{ErrorKind, ServiceError, decode_partition, decode_spec};
use vela_runtime::Shutdown;
use vela_types::{BatchSpec, Position, ScatteredBatch};

use crate::LoaderReport;
use crate::catalog::{Catalog, Served};
use crate::error::to_service_error;
use crate::plans::{PlanPlace, Plans};
use crate::tenants::Tenant;

/// Data, limits and counts of a running server.
pub(crate) struct Shared {
    pub(crate) catalog: Catalog,
    plans: Arc<Plans>,
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
    pub(crate) fn new(catalog: Catalog, max_consumers: u32, max_plan_bytes: u64) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self {
            catalog,
            plans: Arc::new(Plans::new(max_plan_bytes)),
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

    /// A place among the consumers served at once, of all and of the tenant's; refused if there is none.
    pub(crate) fn admit(&self, tenant: &Tenant) -> Result<Admission, ServiceError> {
        let busy = |_| ServiceError::new(ErrorKind::Busy, "the loader serves as many consumers as it may; try later");
        let of_tenant = tenant.admit()?;
        let of_all = Arc::clone(&self.consumers).try_acquire_owned().map_err(busy)?;
        let open = metrics::gauge!("vela_loader_consumers", "tenant" => tenant.name.clone());
        open.increment(1);
        Ok(Admission { _permits: [of_tenant, of_all], open })
    }

    /// Makes a batch off the async threads. While its shards are fetched it has no place among the builders: waiting for a store takes no
    /// core from those whose data is here.
    pub(crate) async fn build(
        self: Arc<Self>,
        order: Order,
        position: Position,
    ) -> Result<ScatteredBatch, ServiceError> {
        let ready = move |share: &Share| share.has_open_shards(position);
        let (started, batch) = match self.build_if(&order, position, ready).await? {
            Some(built) => built,
            None => {
                order.open_shards(position).await?;
                // A shard that is damaged stays closed: the batch has the policy's word on it.
                let built = self.build_if(&order, position, |_| Ok(true)).await?;
                built.expect("asked for in any case")
            }
        };
        let labels = [("dataset", order.served.name.clone())];
        metrics::histogram!("vela_loader_build_seconds", &labels).record(started.elapsed());
        let masked = batch.rest.samples.iter().filter(|slot| !slot.valid).count();
        metrics::counter!("vela_loader_masked_slots_total", &labels).increment(masked as u64);
        metrics::gauge!("vela_loader_damaged_records", &labels).set(order.served.dataset.num_damaged() as f64);
        Ok(batch)
    }

    /// The batch, and when work on it began; `None` where it is not `ready`.
    async fn build_if(
        &self,
        order: &Order,
        position: Position,
        ready: impl FnOnce(&Share) -> Result<bool, DatasetError> + Send + 'static,
    ) -> Result<Option<(Instant, ScatteredBatch)>, ServiceError> {
        let building = acquire(&self.builders).await;
        let (share, started) = (order.share.clone(), Instant::now());
        off_thread(move || {
            let _held = building;
            match ready(&share)? {
                true => share.scattered_batch(position).map(|batch| Some((started, batch))),
                false => Ok(None),
            }
        })
        .await
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

/// Whose batches are asked for, and how they are to be cut, fields checked.
pub(crate) struct Request {
    served: Arc<Served>,
    plans: Arc<Plans>,
    spec: BatchSpec,
    pub(crate) partition: Partition,
}

impl Request {
    pub(crate) fn decode(
        shared: &Shared,
        tenant: &Tenant,
        dataset: &str,
        spec: Option<v1::BatchSpec>,
        partition: Option<v1::Partition>,
    ) -> Result<Self, ServiceError> {
        let served = Arc::clone(shared.catalog.find(tenant, dataset)?);
        let (spec, (rank, world)) = (decode_spec(spec)?, decode_partition(partition)?);
        let plans = Arc::clone(&shared.plans);
        Ok(Self { served, plans, spec, partition: Partition { rank, world } })
    }

    /// Checks that the data can be had so: shares, bytes of a batch and of plans, length of every record. Plans packed rows, which may take long: one
    /// new plan of a tenant at a time.
    pub(crate) async fn plan(self, tenant: &Tenant) -> Result<Order, ServiceError> {
        let planning = self.begin_plan(tenant).await;
        self.plan_holding(planning).await
    }

    /// Waits for the permit to plan rows, if they must be planned.
    pub(crate) async fn begin_plan(&self, tenant: &Tenant) -> Option<OwnedSemaphorePermit> {
        match self.served.dataset.is_planned(&self.spec) {
            true => None,
            false => Some(tenant.begin_plan().await),
        }
    }

    /// [`Request::plan`] with the permits that it takes, given back when the work is done, whoever still waits for it.
    pub(crate) async fn plan_holding(self, permits: impl Send + 'static) -> Result<Order, ServiceError> {
        let Self { served, plans, spec, partition } = self;
        let plan = plans.hold(&served.dataset, &spec)?;
        let (dataset, held) = (Arc::clone(&served.dataset), (permits, plan.clone()));
        let share = off_thread(move || {
            let _held = held;
            Share::new(dataset, spec, partition)
        });
        Ok(Order { share: share.await?, served, _plan: plan })
    }
}

/// Batches that can be had: a request whose rows are planned.
#[derive(Clone)]
pub(crate) struct Order {
    pub(crate) served: Arc<Served>,
    pub(crate) share: Share,
    /// Given back with the last of those who share the plan.
    _plan: Option<Arc<PlanPlace>>,
}

impl Order {
    /// Opens the shards of the micro-batch at `position`, with a place among the fetchers: a slow store holds up nobody whose data is here.
    async fn open_shards(&self, position: Position) -> Result<(), ServiceError> {
        let fetching = acquire(&self.served.fetchers).await;
        let share = self.share.clone();
        off_thread(move || {
            let _held = fetching;
            share.open_shards(position)
        })
        .await
    }
}

/// A permit of a semaphore that nobody closes.
pub(crate) async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_owned().await.expect("the semaphore is never closed")
}

/// Runs what reads or computes for long off the async threads.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DatasetError> + Send + 'static,
) -> Result<T, ServiceError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| ServiceError::new(ErrorKind::Internal, error))?;
    done.map_err(|error| to_service_error(&error))
}
