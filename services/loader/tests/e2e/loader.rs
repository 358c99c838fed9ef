//! Loaders to test against: in this process, and as a process of their own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use vela_loader::{LoaderReport, RunningLoader, ServeConfig, serve};
use vela_runtime::Shutdown;

/// A loader on an event loop of this process.
pub(crate) struct LocalLoader {
    runtime: Runtime,
    running: RunningLoader,
    shutdown: Shutdown,
}

impl LocalLoader {
    pub(crate) fn start(folder: &Path) -> Self {
        Self::with(ServeConfig::new(folder.display().to_string(), loopback(0)))
    }

    pub(crate) fn with(config: ServeConfig) -> Self {
        let runtime = Runtime::new().expect("an event loop");
        let shutdown = Shutdown::new();
        let running = runtime.block_on(serve(config, shutdown.clone())).expect("a running loader");
        Self { runtime, running, shutdown }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.running.addr)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.running.addr
    }

    pub(crate) fn stop(self) -> LoaderReport {
        self.shutdown.request();
        self.runtime.block_on(self.running.join()).expect("a report")
    }
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(loopback(0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// The `loader` binary.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loader"));
    command.args(args).stdin(Stdio::null());
    command
}

/// `loader serve` of one data set.
pub(crate) fn serve_command(shards: &str, port: u16) -> Command {
    let listen = loopback(port).to_string();
    let mut serve = command(&["serve", "--json", "--shards", shards, "--listen", &listen]);
    serve.stderr(Stdio::null());
    serve
}

/// A `loader serve` process; killed when dropped.
pub(crate) struct LoaderProcess(pub(crate) Child);

impl LoaderProcess {
    /// Returns once the port accepts connections.
    pub(crate) fn start(folder: &Path, port: u16) -> Self {
        Self::spawn(serve_command(&folder.display().to_string(), port), port)
    }

    /// The same for a command of [`serve_command`] that was given more.
    pub(crate) fn spawn(mut serve: Command, port: u16) -> Self {
        let mut process = Self(serve.stdout(Stdio::piped()).spawn().expect("a loader process"));
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(loopback(port)).is_err() {
            assert!(Instant::now() < deadline, "the loader does not listen on port {port}");
            let end = process.0.try_wait().expect("our own child");
            assert!(end.is_none(), "the loader ended before it listened on port {port}: {end:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        process
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("a living process");
        self.0.wait().expect("its end");
    }

    pub(crate) fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.0.id().to_string()]).status().expect("kill runs");
        assert!(done.success(), "kill {name}");
    }
}

impl Drop for LoaderProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
