//! A consumer in a process of its own: this test binary again, told what to do by a variable of its environment.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vela_client::{ClientOptions, RemoteSource};
use vela_dataset::Partition;
use vela_types::{BatchSource, BatchSpec};

use crate::record::Record;
use crate::work::{connect_patiently, take_step};

const VARIABLE: &str = "VELA_TEST_CONSUMER";

/// What a consumer does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) urls: String,
    pub(crate) spec: BatchSpec,
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) prefetch_bytes: usize,
    /// The record to go on with.
    pub(crate) record: PathBuf,
    /// Whether finished epochs keep their samples.
    pub(crate) keeps_ids: bool,
    /// Ends with this many epochs used.
    pub(crate) epochs: u64,
    /// Rests so long after the first step of its life.
    pub(crate) first_pause: Duration,
    /// And so long after each other one.
    pub(crate) pause: Duration,
}

impl Order {
    fn options(&self) -> ClientOptions {
        ClientOptions {
            prefetch_bytes: self.prefetch_bytes,
            connect_timeout: Duration::from_secs(2),
            keepalive: Duration::from_secs(2),
            ..ClientOptions::default()
        }
    }
}

/// The other process; killed when dropped.
pub(crate) struct ConsumerProcess {
    child: Child,
    /// Closed when we are gone, however we end; then the consumer ends, too.
    _lifeline: ChildStdin,
}

impl ConsumerProcess {
    pub(crate) fn start(order: &Order) -> Self {
        let order = serde_json::to_string(order).expect("plain data");
        let mut command = Command::new(std::env::current_exe().expect("a test has a path"));
        command.args(["--ignored", "--exact", "consumer::entry", "--nocapture"]).env(VARIABLE, order);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("a process");
        // Out of the child, as waiting for it would close it.
        let lifeline = child.stdin.take().expect("piped");
        Self { child, _lifeline: lifeline }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, unless it has ended by itself.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.child.kill().expect("our own child");
        self.child.wait().expect("its end")
    }

    /// Waits until it has done its work.
    pub(crate) fn finish(mut self) {
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "the consumer failed: {status}");
    }
}

impl Drop for ConsumerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "what a consumer process runs; the other tests start it"]
fn entry() {
    let order = std::env::var(VARIABLE).expect("started by another test");
    end_with_parent();
    let order: Order = serde_json::from_str(&order).expect("an order");
    let partition = Partition { rank: order.rank, world: order.world };
    let mut source = connect_patiently(&order.urls, &order.spec, partition, &order.options());
    run(&mut source, &order, &order.record);
}

/// A parent that is gone closes our standard input.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(3);
    });
}

fn run(source: &mut RemoteSource, order: &Order, path: &Path) {
    let mut record = Record::load(path);
    if let Some(cursor) = &record.cursor {
        source.seek(cursor).expect("our own cursor");
    }
    let mut pause = order.first_pause;
    while record.epoch() < order.epochs {
        let batches = take_step(source);
        record.add_step(&batches, source.cursor(), order.keeps_ids);
        record.save(path);
        drop(batches);
        std::thread::sleep(pause);
        pause = order.pause;
    }
}
