//! How long a trainer waits for its first batch after a resume far into the epoch of a large set: in a new process of its own, and from a new
//! `loader` process.
//!
//! `first_batch FOLDER [--shard-rows N] [--shards N] [--times N] [--batch N] [--repeats N]` prints one JSON object, times in milliseconds. A set is made in
//! FOLDER unless there is one: one shard of texts under the names of all, and the lengths of all. Each way is measured with the
//! set's files in the system's cache, and with them dropped from it (by `dd`). The binary `loader` is taken from the folder
//! above the example's own.

use std::error::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vela_client::{ClientOptions, RemoteSource};
use vela_dataset::{Dataset, LocalSource, Partition};
use vela_runtime::clap::{self, Parser};
use vela_runtime::{CommandError, Outcome, run_command};
use vela_types::{Batch, BatchSource, BatchSpec, Cursor};

#[path = "../../../pipeline/shard/tests/fixture/mod.rs"]
mod fixture;
#[path = "../../../pipeline/dataset/tests/linked/mod.rs"]
mod linked;

type Failure = Box<dyn Error + Send + Sync>;

/// How far into the epoch the run was stopped.
const DONE: f64 = 0.9;
/// How long a loader may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Parser)]
struct Args {
    /// Where the set is, or is made.
    folder: PathBuf,
    /// Records of each shard of a set that is made.
    #[arg(long, default_value_t = 10_000)]
    shard_rows: u64,
    /// Shards of a set that is made.
    #[arg(long, default_value_t = 100)]
    shards: u32,
    /// Tokens of a record of a set that is made, in tens.
    #[arg(long, default_value_t = 20)]
    times: usize,
    /// Samples of a micro-batch, and of a step.
    #[arg(long, default_value_t = 32)]
    batch: u32,
    /// Measurements of each kind.
    #[arg(long, default_value_t = 5)]
    repeats: u32,
    /// Only measures one first batch in this process.
    #[arg(long, hide = true)]
    once: bool,
}

fn main() -> std::process::ExitCode {
    let started = Instant::now();
    let args = Args::parse();
    run_command(true, |_| {
        let report = if args.once { resume_here(&args, started) } else { measure(&args) };
        Ok(Outcome::done(&report.map_err(CommandError::failure)?, "")?)
    })
}

fn spec(args: &Args) -> BatchSpec {
    BatchSpec {
        global_batch: args.batch,
        micro_batch: args.batch,
        seed: 1,
        shuffle: true,
        image_tokens: 1,
        max_length: 4096,
        shuffle_window: 0,
        packing: None,
    }
}

fn measure(args: &Args) -> Result<Value, Failure> {
    let started = Instant::now();
    let is_new = !args.folder.join("manifest.json").exists();
    if is_new {
        std::fs::create_dir_all(&args.folder)?;
        linked::write(&args.folder, args.shard_rows, args.shards, args.times)?;
    }
    let written = is_new.then(|| started.elapsed().as_secs_f64());
    let repeat = |way: fn(&Args) -> Result<Value, Failure>, is_dropped: bool| -> Result<Vec<Value>, Failure> {
        let once = |_| {
            if is_dropped {
                drop_cached(&args.folder)?;
            }
            way(args)
        };
        (0..args.repeats).map(once).collect()
    };
    // Once to have the files in the cache.
    new_process(args)?;
    Ok(json!({
        "seconds_to_write": written,
        "in_process": { "cached": repeat(new_process, false)?, "dropped": repeat(new_process, true)? },
        "loader": { "cached": repeat(new_loader, false)?, "dropped": repeat(new_loader, true)? },
    }))
}

/// The first batch in this process, stage by stage.
fn resume_here(args: &Args, started: Instant) -> Result<Value, Failure> {
    let dataset = Arc::new(Dataset::open(&args.folder.to_string_lossy())?);
    let opened = started.elapsed();
    let mut source = LocalSource::new(Arc::clone(&dataset), spec(args), Partition::WHOLE, 256 << 20)?;
    let cursor = resume(&mut source)?;
    let sought = started.elapsed();
    let batch = source.next_batch()?;
    let total = started.elapsed();
    check(&batch, &cursor)?;
    Ok(json!({
        "open": milliseconds(opened), "seek": milliseconds(sought - opened), "batch": milliseconds(total - sought),
        "total": milliseconds(total), "records": dataset.num_records(), "step": cursor.step, "samples": batch.samples.len(),
    }))
}

/// Puts `source` where a run was stopped.
fn resume(source: &mut dyn BatchSource) -> Result<Cursor, Failure> {
    let step = (source.steps_per_epoch() as f64 * DONE) as u64;
    let cursor = Cursor { step, ..source.start_cursor() };
    source.seek(&cursor)?;
    Ok(cursor)
}

fn check(batch: &Batch, cursor: &Cursor) -> Result<(), Failure> {
    match batch.position.step == cursor.step && batch.samples.iter().all(|slot| slot.valid) {
        true => Ok(()),
        false => Err(format!("another batch: {:?}", batch.position).into()),
    }
}

/// [`resume_here`] in a process of its own, with the time from its start to its end.
fn new_process(args: &Args) -> Result<Value, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(&args.folder).arg("--once").args(["--batch", &args.batch.to_string()]);
    let started = Instant::now();
    let output = command.stderr(Stdio::inherit()).output()?;
    let process = started.elapsed();
    if !output.status.success() {
        return Err("the measuring process failed".into());
    }
    let mut report: Value = serde_json::from_slice(&output.stdout)?;
    report["process"] = milliseconds(process).into();
    Ok(report)
}

/// The first batch from a loader that starts now.
fn new_loader(args: &Args) -> Result<Value, Failure> {
    let started = Instant::now();
    let server = Server::start(&args.folder)?;
    let mut source = server.connect(args)?;
    let connected = started.elapsed();
    let cursor = resume(&mut source)?;
    let batch = source.next_batch()?;
    let total = started.elapsed();
    check(&batch, &cursor)?;
    Ok(json!({
        "start": milliseconds(connected), "batch": milliseconds(total - connected), "total": milliseconds(total),
    }))
}

/// A `loader` process, ended when this is dropped.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(folder: &Path) -> Result<Self, Failure> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(std::env::current_exe()?.with_file_name("../loader"));
        command.arg("serve").arg("--shards").arg(folder).args(["--listen", &format!("127.0.0.1:{port}")]);
        let process = command.stderr(Stdio::null()).spawn()?;
        Ok(Self { process, url: format!("http://127.0.0.1:{port}") })
    }

    fn connect(&self, args: &Args) -> Result<RemoteSource, Failure> {
        let started = Instant::now();
        loop {
            match RemoteSource::connect_with(&self.url, spec(args), 0, 1, ClientOptions::default()) {
                Err(fault) if started.elapsed() > PATIENCE => return Err(fault.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
                connected => return Ok(connected?),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
    }
}

/// Drops the set's files from the system's cache.
fn drop_cached(folder: &Path) -> Result<(), Failure> {
    for name in ["manifest.json", "lengths.bin", "lengths.sums", "shard-00000.parquet"] {
        let mut file = std::ffi::OsString::from("if=");
        file.push(folder.join(name));
        let dropped = Command::new("dd").arg(file).args(["iflag=nocache", "count=0", "status=none"]).status()?;
        if !dropped.success() {
            return Err(format!("`dd` cannot drop `{name}` from the cache").into());
        }
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}
