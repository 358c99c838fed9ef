//! Metrics for Prometheus: one recorder of the process, shown at `/metrics`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::Shutdown;

/// Upper bounds of durations, in seconds: from a batch out of memory to one out of a slow store.
const SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];
/// Readers served at once; a scraper needs one.
const MAX_READERS: usize = 8;
/// What a reader has for its request and our answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often what was observed is folded into the histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Records the process's metrics from now on and shows them at `http://LISTEN/metrics` until `shutdown`. Returns where it
/// listens; port 0 takes a free one.
///
/// # Errors
/// If the address cannot be listened on, or the process has a recorder already.
pub async fn serve_metrics(listen: SocketAddr, shutdown: Shutdown) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let suffix = Matcher::Suffix("_seconds".to_owned());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(suffix, &SECONDS).map_err(io::Error::other)?;
    let recorder = builder.install_recorder().map_err(io::Error::other)?;
    tokio::spawn(keep_up(recorder.clone(), shutdown.clone()));
    tokio::spawn(accept(listener, recorder, shutdown));
    Ok(address)
}

/// Metrics that are shown from a thread of their own, until this is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// [`serve_metrics`] for a command that is not async.
    ///
    /// # Errors
    /// As [`serve_metrics`]; if no thread can be started.
    pub fn start(listen: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shutdown = Shutdown::new();
        let address = runtime.block_on(serve_metrics(listen, shutdown.clone()))?;
        let waited = shutdown.clone();
        let serve = move || runtime.block_on(waited.wait());
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(serve)?;
        Ok(Self { address, shutdown, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.shutdown.request();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

async fn keep_up(recorder: PrometheusHandle, shutdown: Shutdown) {
    while tokio::time::timeout(UPKEEP, shutdown.wait()).await.is_err() {
        recorder.run_upkeep();
    }
}

async fn accept(listener: TcpListener, recorder: PrometheusHandle, shutdown: Shutdown) {
    let readers = Arc::new(Semaphore::new(MAX_READERS));
    loop {
        let permit = Arc::clone(&readers).acquire_owned().await;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.wait() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let recorder = recorder.clone();
                tokio::spawn(async move {
                    let _held = permit;
                    // A reader that is slow or gone is no concern of the process.
                    let _ = tokio::time::timeout(PATIENCE, answer(stream, recorder)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a reader of metrics was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, recorder: PrometheusHandle) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => page(StatusCode::OK, recorder.render()),
            _ => page(StatusCode::NOT_FOUND, "the metrics are at /metrics\n".to_owned()),
        };
        async move { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}
