//! From a config to a listening server, and its orderly stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use vela_proto::{DESCRIPTORS, MAX_FRAME_BYTES};
use vela_runtime::{Shutdown, serve_metrics};

use crate::body::Ending;
use crate::catalog::Catalog;
use crate::connection::{Certificates, Connection, accept};
use crate::service::LoaderService;
use crate::shared::Shared;
use crate::tenants::Tenants;
use crate::{LoaderError, ServeConfig};

/// Requests are small, so a consumer needs little room to send in.
const REQUEST_WINDOW_BYTES: u32 = 256 << 10;

/// Calls on one connection at once.
const MAX_STREAMS: u32 = 256;

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

/// Opens the data sets, listens, and serves until `shutdown` is requested. Returns once connections are accepted.
///
/// A stop first turns the health status, then ends every stream with a status that makes consumers go elsewhere, then
/// waits for what is left, at most `drain_timeout`.
pub async fn serve(config: ServeConfig, shutdown: Shutdown) -> Result<RunningLoader, LoaderError> {
    config.check()?;
    let names: Vec<String> = config.datasets.iter().map(|dataset| dataset.name.clone()).collect();
    let tenants = match &config.tenants {
        None => Tenants::everybody(),
        Some(path) => Tenants::load(path, &config.offer(&names))?,
    };
    let certificates = config.tls.clone().map(Certificates::load).transpose()?.map(Arc::new);
    if config.tenants.is_none() && !config.listen.ip().is_loopback() {
        tracing::warn!("anybody who reaches the address may read the data: no `--tenants`");
    }
    if let Some(listen) = config.metrics_listen {
        let shown = serve_metrics(listen, shutdown.clone()).await;
        let address = shown.map_err(|source| LoaderError::Metrics { listen, source })?;
        tracing::info!(%address, "metrics");
    }
    let catalog = open_catalog(&config).await?;
    let bind = |source| LoaderError::Bind { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
    let addr = listener.local_addr().map_err(bind)?;
    tracing::info!(address = %addr, tls = certificates.is_some(), "serving");
    let shared = Arc::new(Shared::new(catalog, config.max_consumers, config.max_plan_bytes));
    let connections = accept(listener, certificates, config.max_connections, config.greeting_timeout, shutdown.clone());
    let server = Running { addr, shared, tenants: Arc::new(tenants), shutdown, reflection: config.reflection };
    let task = tokio::spawn(server.run(connections, config.drain_timeout));
    Ok(RunningLoader { addr, task })
}

async fn open_catalog(config: &ServeConfig) -> Result<Catalog, LoaderError> {
    let ServeConfig { datasets, max_batch_bytes, damage, .. } = config.clone();
    tokio::task::spawn_blocking(move || Catalog::open(datasets, max_batch_bytes, damage)).await?
}

/// A server about to take calls.
struct Running {
    addr: SocketAddr,
    shared: Arc<Shared>,
    tenants: Arc<Tenants>,
    shutdown: Shutdown,
    reflection: bool,
}

impl Running {
    async fn run(
        self,
        connections: mpsc::Receiver<io::Result<Connection>>,
        drain_timeout: Duration,
    ) -> Result<LoaderReport, LoaderError> {
        let Self { addr, shared, tenants, shutdown, reflection } = self;
        let started = Instant::now();
        let (health, health_service) = tonic_health::server::health_reporter();
        // Watches of the health, and open reflections, would otherwise hold up every stop.
        let health_service = Ending::new(health_service, shared.stop.clone());
        health.set_serving::<LoaderService>().await;
        let service = LoaderService::new(Arc::clone(&shared));
        let reflected = reflection.then(|| {
            let described =
                tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
            let service = described.build_v1().expect("the descriptors were compiled with this crate");
            Ending::new(service, shared.stop.clone())
        });
        // A task of its own: the transport drops what it was given to wait for once no more connections come.
        let stopping = tokio::spawn(begin_stop(shutdown.clone(), health, shared.stop.clone()));
        let served = Server::builder()
            .max_frame_size(MAX_FRAME_BYTES)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(REQUEST_WINDOW_BYTES)
            .initial_connection_window_size(4 * REQUEST_WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(health_service)
            .add_optional_service(reflected)
            .add_service(InterceptedService::new(service, move |call| tenants.admit_call(call)))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), async { _ = stopping.await });
        let drained = tokio::select! {
            served = served => served.map(|()| true).map_err(|source| LoaderError::Transport { listen: addr, source })?,
            () = async { shutdown.wait().await; tokio::time::sleep(drain_timeout).await } => false,
        };
        if !drained {
            tracing::warn!(?drain_timeout, "calls still under way were cut off");
        }
        Ok(shared.report(addr, started.elapsed().as_secs_f64(), drained))
    }
}

/// Health first, so that nobody new is sent here; then the streams.
async fn begin_stop(shutdown: Shutdown, health: HealthReporter, streams: Shutdown) {
    shutdown.wait().await;
    health.set_not_serving::<LoaderService>().await;
    health.set_service_status("", ServingStatus::NotServing).await;
    streams.request();
}
