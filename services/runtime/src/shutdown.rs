//! Orderly stop: one flag that every part of a process can ask and await.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// What a shell reports for a process ended by Ctrl-C.
const ABORTED: i32 = 130;

/// What the system sends to a process that writes beyond its limit of file sizes (`ulimit -f`). Linux, macOS and the BSDs agree.
const FILE_TOO_LARGE: i32 = 25;

/// A request to stop, shared by all its clones. It is never taken back.
#[derive(Clone, Debug)]
pub struct Shutdown {
    flag: Arc<watch::Sender<bool>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { flag: Arc::new(watch::Sender::new(false)) }
    }
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::request`] can cause.
    pub fn new() -> Self {
        Self::default()
    }

    /// A shutdown requested by the first Ctrl-C or SIGTERM; the second ends the process at once with exit code 130.
    ///
    /// The signals are handled on a thread of their own, so the command may be sync or async. SIGXFSZ no longer ends the process
    /// without a word: the write that exceeds the limit fails instead, and says so.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (interrupt, terminate) = {
            let _entered = runtime.enter();
            // A handler stays for good once it is there, whoever listens.
            drop(signal(SignalKind::from_raw(FILE_TOO_LARGE))?);
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let watched = shutdown.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || runtime.block_on(watch_signals(interrupt, terminate, watched)))?;
        Ok(shutdown)
    }

    /// Asks for the stop.
    pub fn request(&self) {
        self.flag.send_replace(true);
    }

    /// Whether the stop has been asked for.
    pub fn requested(&self) -> bool {
        *self.flag.borrow()
    }

    /// Returns once the stop has been asked for.
    pub async fn wait(&self) {
        // The sender lives in `self`, so waiting can only end by the flag.
        let _ = self.flag.subscribe().wait_for(|requested| *requested).await;
    }

    /// Sleeps on a plain thread for `period`, or less if the stop is asked for; returns [`Shutdown::requested`].
    pub fn sleep(&self, period: Duration) -> bool {
        let deadline = std::time::Instant::now() + period;
        while !self.requested() {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
        true
    }
}

async fn watch_signals(mut interrupt: Signal, mut terminate: Signal, shutdown: Shutdown) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if shutdown.requested() {
            std::process::exit(ABORTED);
        }
        tracing::info!("stopping; a second signal aborts");
        shutdown.request();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_one_request() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();
        assert!(!clone.requested() && !clone.sleep(Duration::from_millis(1)));
        shutdown.request();
        assert!(clone.requested() && clone.sleep(Duration::from_secs(60)));
    }

    #[tokio::test]
    async fn waiting_ends_with_the_request_even_when_it_came_before() {
        let shutdown = Shutdown::new();
        let waiter = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait().await }
        });
        shutdown.request();
        waiter.await.expect("the waiter ends");
        shutdown.wait().await;
    }
}
