//! How fast one consumer gets micro-batches from a loader on this machine: in process, over loopback from a `loader` process, the same
//! encrypted, and what bare TCP carries of the same bytes.
//!
//! `loader_throughput [--shards URL] [--seconds S] [--side PIXELS] [--micro-batch N]` prints one JSON object; CPU seconds per gigabyte are told for
//! each process apart. Without `--shards` it makes samples of random pixels and 512 tokens. The binary `loader` is taken from the
//! folder above the example's own.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vela_client::{ClientOptions, RemoteSource, TlsOptions};
use vela_dataset::{Dataset, LocalSource, Partition};
use vela_runtime::clap::{self, Parser};
use vela_runtime::{ByteSize, CommandError, Outcome, run_command};
use vela_tests::cpu_seconds;
use vela_types::{BatchSource, BatchSpec};

type Failure = Box<dyn Error + Send + Sync>;

#[path = "../tests/e2e/shards.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod shards;

#[derive(Clone, Parser)]
struct Args {
    /// Shard set to read; made on the spot where absent.
    #[arg(long)]
    shards: Option<String>,
    /// Seconds to measure each way.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Samples that are made.
    #[arg(long, default_value_t = 512)]
    samples: u64,
    /// Height and width of made images.
    #[arg(long, default_value_t = 336)]
    side: u32,
    /// Samples of a micro-batch, and of a step.
    #[arg(long, default_value_t = 32)]
    micro_batch: u32,
    /// Bytes under way at most.
    #[arg(long, default_value = "256MiB")]
    prefetch: ByteSize,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    run_command(true, |_| {
        let report = measure(&args).map_err(CommandError::failure)?;
        Ok(Outcome::done(&report, "")?)
    })
}

fn measure(args: &Args) -> Result<Value, Failure> {
    let folder = tempfile::tempdir()?;
    let url = args.shards.clone().unwrap_or_else(|| folder.path().display().to_string());
    if args.shards.is_none() {
        let plan =
            shards::Plan { num_samples: args.samples, side: args.side, always_image: true, num_tokens: 512, seed: 1 };
        shards::write(folder.path(), &plan);
    }
    let micro_batch = args.micro_batch;
    let spec = BatchSpec {
        global_batch: micro_batch,
        micro_batch,
        seed: 1,
        shuffle: true,
        image_tokens: 1,
        max_length: 1 << 20,
        shuffle_window: 0,
        packing: None,
    };
    let prefetch_bytes = args.prefetch.0 as usize;
    let dataset = Arc::new(Dataset::open(&url)?);
    let mut local = LocalSource::new(dataset, spec.clone(), Partition::WHOLE, prefetch_bytes)?;
    let in_process = drain(&mut local, args.seconds, None)?;
    let batch_bytes = local.next_batch()?.num_bytes();
    drop(local);
    let plain = Server::start(&url, None)?;
    let options = ClientOptions { prefetch_bytes, ..ClientOptions::default() };
    let over_grpc = plain.drain(&spec, options.clone(), args.seconds)?;
    drop(plain);
    let keys = Keys::new(folder.path())?;
    let secret = Server::start(&url, Some(&keys))?;
    let tls = TlsOptions { authorities: Some(keys.authority.clone()), identity: None };
    let over_tls = secret.drain(&spec, ClientOptions { tls, ..options }, args.seconds)?;
    drop(secret);
    let raw_tcp = raw_tcp(batch_bytes, args.seconds)?;
    Ok(json!({
        "side": args.side, "micro_batch": micro_batch, "in_process": in_process, "grpc": over_grpc, "tls": over_tls, "raw_tcp": raw_tcp,
    }))
}

/// A certificate for `localhost` and its authority.
struct Keys {
    certificate: PathBuf,
    key: PathBuf,
    authority: String,
}

impl Keys {
    fn new(folder: &Path) -> Result<Self, Failure> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let (certificate, key) = (folder.join("bench.pem"), folder.join("bench.key"));
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        Ok(Self { certificate, key, authority: made.cert.pem() })
    }
}

/// A `loader` process, ended when this is dropped.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(shards: &str, keys: Option<&Keys>) -> Result<Self, Failure> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let binary = std::env::current_exe()?.with_file_name("../loader");
        let mut command = Command::new(binary);
        command.args(["serve", "--shards", shards, "--listen", &format!("127.0.0.1:{port}")]).stderr(Stdio::null());
        if let Some(Keys { certificate, key, .. }) = keys {
            command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
        }
        let process = command.spawn()?;
        let scheme = if keys.is_some() { "https" } else { "http" };
        Ok(Self { process, url: format!("{scheme}://localhost:{port}") })
    }

    fn drain(&self, spec: &BatchSpec, options: ClientOptions, seconds: f64) -> Result<Value, Failure> {
        for _ in 0..100 {
            if let Ok(mut remote) = RemoteSource::connect_with(&self.url, spec.clone(), 0, 1, options.clone()) {
                return drain(&mut remote, seconds, Some(self.process.id()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("no loader came up at {}", self.url).into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which the measurement has told.
        let _ = (self.process.kill(), self.process.wait());
    }
}

/// Batches of `batch_bytes` from one thread to another over one loopback connection, written 1 MiB at a time.
fn raw_tcp(batch_bytes: usize, seconds: f64) -> Result<Value, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let batch = vec![7; batch_bytes];
        loop {
            batch.chunks(1 << 20).try_for_each(|part| socket.write_all(part))?;
        }
    });
    let mut socket = TcpStream::connect(address)?;
    let mut batch = vec![0; batch_bytes];
    let (started, cpu) = (Instant::now(), cpu_seconds("self"));
    let mut gigabytes = 0.0;
    while started.elapsed().as_secs_f64() < seconds {
        socket.read_exact(&mut batch)?;
        gigabytes += batch_bytes as f64 / 1e9;
    }
    let (elapsed, cpu) = (started.elapsed().as_secs_f64(), since("self", cpu));
    drop(socket);
    let ended = sender.join().map_err(|_| "the sender panicked")?;
    assert!(ended.is_err(), "the sender ends with its connection");
    Ok(
        json!({ "gigabytes_per_second": gigabytes / elapsed, "cpu_seconds_per_gigabyte": cpu.map(|cpu| cpu / gigabytes) }),
    )
}

/// Takes batches for `seconds` after one second of warm-up. `server`: the process that makes them, if it is another.
fn drain(source: &mut dyn BatchSource, seconds: f64, server: Option<u32>) -> Result<Value, Failure> {
    take_for(source, Duration::from_secs(1))?;
    let server = server.map(|id| id.to_string());
    let (cpu, cpu_there) = (cpu_seconds("self"), server.as_deref().and_then(cpu_seconds));
    let started = Instant::now();
    let (samples, bytes) = take_for(source, Duration::from_secs_f64(seconds))?;
    let elapsed = started.elapsed().as_secs_f64();
    let gigabytes = bytes as f64 / 1e9;
    Ok(json!({
        "samples_per_second": samples as f64 / elapsed,
        "gigabytes_per_second": gigabytes / elapsed,
        "cpu_seconds_per_gigabyte": since("self", cpu).map(|cpu| cpu / gigabytes),
        "server_cpu_seconds_per_gigabyte":
            server.map_or(Some(0.0), |server| since(&server, cpu_there)).map(|cpu| cpu / gigabytes),
    }))
}

fn take_for(source: &mut dyn BatchSource, period: Duration) -> Result<(u64, usize), Failure> {
    let started = Instant::now();
    let (mut samples, mut bytes) = (0, 0);
    while started.elapsed() < period {
        let batch = source.next_batch()?;
        samples += batch.samples.iter().filter(|slot| slot.valid).count() as u64;
        bytes += batch.num_bytes();
    }
    Ok((samples, bytes))
}

/// Processor time of `process` since it stood at `before`; `None` where the system does not tell.
fn since(process: &str, before: Option<f64>) -> Option<f64> {
    Some(cpu_seconds(process)? - before?)
}
