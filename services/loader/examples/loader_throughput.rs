//! How fast one consumer gets micro-batches from a loader on this machine, over loopback and in process.
//!
//! `loader_throughput [--shards URL] [--seconds S] [--side PIXELS] [--micro-batch N]` prints one JSON object. Without
//! `--shards` it makes 512 samples of random pixels and some 512 tokens.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vela_client::RemoteSource;
use vela_dataset::{Dataset, LocalSource, Partition};
use vela_loader::{ServeConfig, serve};
use vela_runtime::clap::{self, Parser};
use vela_runtime::{ByteSize, CommandError, Outcome, Shutdown, run_command};
use vela_types::{BatchSource, BatchSpec};

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

fn measure(args: &Args) -> Result<Value, Box<dyn Error + Send + Sync>> {
    let folder = tempfile::tempdir()?;
    let url = args.shards.clone().unwrap_or_else(|| folder.path().display().to_string());
    if args.shards.is_none() {
        let plan = shards::Plan { num_samples: 512, side: args.side, always_image: true, num_tokens: 500, seed: 1 };
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
    let in_process = drain(&mut local, args.seconds)?;
    drop(local);
    let runtime = tokio::runtime::Runtime::new()?;
    let loader = runtime.block_on(serve(ServeConfig::new(&url, ([127, 0, 0, 1], 0).into()), Shutdown::new()))?;
    let mut remote = RemoteSource::connect(&format!("http://{}", loader.addr), spec, 0, 1, prefetch_bytes)?;
    let over_grpc = drain(&mut remote, args.seconds)?;
    Ok(json!({ "side": args.side, "micro_batch": micro_batch, "in_process": in_process, "grpc": over_grpc }))
}

/// Takes batches for `seconds` after one second of warm-up.
fn drain(source: &mut dyn BatchSource, seconds: f64) -> Result<Value, Box<dyn Error + Send + Sync>> {
    take_for(source, Duration::from_secs(1))?;
    let cpu = cpu_seconds();
    let started = Instant::now();
    let (samples, bytes) = take_for(source, Duration::from_secs_f64(seconds))?;
    let elapsed = started.elapsed().as_secs_f64();
    let gigabytes = bytes as f64 / 1e9;
    Ok(json!({
        "samples_per_second": samples as f64 / elapsed,
        "gigabytes_per_second": gigabytes / elapsed,
        "cpu_seconds_per_gigabyte": (cpu_seconds() - cpu) / gigabytes,
    }))
}

fn take_for(source: &mut dyn BatchSource, period: Duration) -> Result<(u64, usize), Box<dyn Error + Send + Sync>> {
    let started = Instant::now();
    let (mut samples, mut bytes) = (0, 0);
    while started.elapsed() < period {
        let batch = source.next_batch()?;
        samples += batch.samples.iter().filter(|slot| slot.valid).count() as u64;
        bytes += batch.num_bytes();
    }
    Ok((samples, bytes))
}

/// User and system time of this process so far, from Linux's `/proc` in its hundredths of a second; 0 elsewhere.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
