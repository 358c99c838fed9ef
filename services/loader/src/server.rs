//! From a config to a listening server, and its orderly stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use vela_dataset::Dataset;
use vela_proto::v1::loader_server::LoaderServer;
use vela_proto::{MAX_FRAME_BYTES, MAX_REQUEST_BYTES};
use vela_runtime::Shutdown;

use crate::service::{LoaderService, Shared};
use crate::{LoaderError, ServeConfig};

/// Requests are small, so a consumer needs little room to send in.
const REQUEST_WINDOW_BYTES: u32 = 256 << 10;

/// A peer that answers no ping for this long after one is gone, and its session with it.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// What a server did in its life.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoaderReport {
    /// Where it listened.
    pub address: SocketAddr,
    /// Streams opened.
    pub consumers: u64,
    /// Micro-batches sent in full.
    pub batches: u64,
    /// Payload bytes sent.
    pub bytes: u64,
    /// Steps that consumers said they had used.
    pub acked_steps: u64,
    /// Seconds it served.
    pub seconds: f64,
    /// False if calls were cut off at the end of the drain timeout.
    pub drained: bool,
}

/// A server that listens. Dropping it does not stop the server; the shutdown it was started with does.
#[derive(Debug)]
pub struct RunningLoader {
    /// Where it listens; the port is real even if 0 was asked for.
    pub addr: SocketAddr,
    task: JoinHandle<Result<LoaderReport, LoaderError>>,
}

impl RunningLoader {
    /// Waits until the server has stopped.
    pub async fn join(self) -> Result<LoaderReport, LoaderError> {
        self.task.await?
    }
}

/// Opens the shard set, listens, and serves until `shutdown` is requested. Returns once connections are accepted.
///
/// A stop first turns the health status, then ends every stream with a status that makes consumers go elsewhere, then
/// waits for what is left, at most `drain_timeout`.
pub async fn serve(config: ServeConfig, shutdown: Shutdown) -> Result<RunningLoader, LoaderError> {
    config.check()?;
    let dataset = open_dataset(&config).await?;
    let bind = |source| LoaderError::Bind { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
    let addr = listener.local_addr().map_err(bind)?;
    let info = dataset.info();
    tracing::info!(address = %addr, shards = config.shards, samples = info.num_samples, fingerprint = %info.fingerprint.short(), "serving");
    let shared = Arc::new(Shared::new(Arc::new(dataset), config.max_consumers));
    let task = tokio::spawn(run(listener, addr, shared, shutdown, config.drain_timeout));
    Ok(RunningLoader { addr, task })
}

async fn open_dataset(config: &ServeConfig) -> Result<Dataset, LoaderError> {
    let (shards, max_batch_bytes) = (config.shards.clone(), config.max_batch_bytes);
    let open = move || match Dataset::open(&shards) {
        Ok(dataset) => Ok(dataset.with_max_batch_bytes(max_batch_bytes)),
        Err(source) => Err(LoaderError::unopened(shards, source)),
    };
    tokio::task::spawn_blocking(open).await?
}

async fn run(
    listener: TcpListener,
    addr: SocketAddr,
    shared: Arc<Shared>,
    shutdown: Shutdown,
    drain_timeout: Duration,
) -> Result<LoaderReport, LoaderError> {
    let started = Instant::now();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<LoaderServer<LoaderService>>().await;
    let service = LoaderServer::new(LoaderService::new(Arc::clone(&shared)));
    let served = Server::builder()
        .max_frame_size(MAX_FRAME_BYTES)
        .initial_stream_window_size(REQUEST_WINDOW_BYTES)
        .initial_connection_window_size(4 * REQUEST_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(health_service)
        .add_service(service.max_decoding_message_size(MAX_REQUEST_BYTES))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            begin_stop(shutdown.clone(), health, shared.stop.clone()),
        );
    let drained = tokio::select! {
        served = served => served.map(|()| true).map_err(|source| LoaderError::Transport { listen: addr, source })?,
        () = async { shutdown.wait().await; tokio::time::sleep(drain_timeout).await } => false,
    };
    if !drained {
        tracing::warn!(?drain_timeout, "calls still under way were cut off");
    }
    Ok(shared.report(addr, started.elapsed().as_secs_f64(), drained))
}

/// Health first, so that nobody new is sent here; then the streams.
async fn begin_stop(shutdown: Shutdown, health: HealthReporter, streams: Shutdown) {
    shutdown.wait().await;
    health.set_not_serving::<LoaderServer<LoaderService>>().await;
    health.set_service_status("", ServingStatus::NotServing).await;
    streams.request();
}
