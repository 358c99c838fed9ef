//! A loader on loopback, in this process: what `loader serve` does.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use vela_loader::{LoaderReport, RunningLoader, ServeConfig, serve};
use vela_runtime::Shutdown;

/// A server with its own threads and its own stop: Ctrl-C must stop the trainer first.
pub(crate) struct Loader {
    runtime: Runtime,
    running: RunningLoader,
    shutdown: Shutdown,
}

impl Loader {
    /// Serves a shard set on a free port.
    pub(crate) fn start(shards: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shutdown = Shutdown::new();
        let config = ServeConfig::new(shards, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let running = runtime.block_on(serve(config, shutdown.clone())).context("cannot start the loader")?;
        Ok(Self { runtime, running, shutdown })
    }

    /// What a recipe's `data.loader` says.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.running.addr)
    }

    /// Stops it and tells what it did.
    pub(crate) fn stop(self) -> Result<LoaderReport> {
        self.shutdown.request();
        self.runtime.block_on(self.running.join()).context("the loader failed")
    }
}
