//! How fast batches are made in process: generates a shard set (or opens one) and prints one JSON object.
//!
//! `cargo run --release -p vela-dataset --example dataset_throughput -- [SHARDS] [--samples 768] [--seconds 5] [--micro-batch 32]`
//!
//! Fields: `samples_per_second`, `samples_per_cpu_second` (what one core alone makes; null where /proc is absent), `gigabytes_per_second` (bytes of the batches' tensors), `samples`, `seconds`,
//! `threads`, `micro_batch`, `image_shape`, `tokens`, `consumer_waits`, `peak_prefetch_bytes`.
#![expect(clippy::print_stdout, reason = "the result is the output")]

#[path = "../../shard/tests/fixture/mod.rs"]
mod fixture;

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vela_dataset::{Dataset, LocalSource, Partition};
use vela_shard::ShardSettings;
use vela_tests::cpu_seconds;
use vela_types::{BatchSource, BatchSpec, IGNORE_LABEL, ImageShape, Record, SeedStream};

const SHAPE: ImageShape = ImageShape { channels: 3, height: 336, width: 336 };
const TOKENS: usize = 512;
const SHARD_ROWS: usize = 256;

struct Arguments {
    shards: Option<String>,
    samples: u64,
    seconds: u64,
    micro_batch: u32,
}

fn parse_arguments() -> Result<Arguments, Box<dyn Error + Send + Sync>> {
    let mut parsed = Arguments { shards: None, samples: 768, seconds: 5, micro_batch: 32 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("`{argument}` needs a value"));
        match argument.as_str() {
            "--samples" => parsed.samples = value()?.parse()?,
            "--seconds" => parsed.seconds = value()?.parse()?,
            "--micro-batch" => parsed.micro_batch = value()?.parse()?,
            _ if argument.starts_with('-') => return Err(format!("unknown flag `{argument}`").into()),
            _ => parsed.shards = Some(argument),
        }
    }
    Ok(parsed)
}

/// A record of one image and [`TOKENS`] tokens, half of them an answer.
fn record(number: u64) -> Record {
    let mut stream = SeedStream::named(1, "throughput", &number.to_string());
    let mut input_ids: Vec<u32> = (0..TOKENS).map(|_| 3 + stream.below(400) as u32).collect();
    input_ids[4] = fixture::IMAGE_TOKEN;
    let answer = |(token, &id): (usize, &u32)| if token < TOKENS / 2 { IGNORE_LABEL } else { id as i32 };
    let labels = input_ids.iter().enumerate().map(answer).collect();
    let images = vec![fixture::image(number, SHAPE)];
    Record { id: format!("throughput/{number}"), images, input_ids, labels, ..fixture::record(0) }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments = parse_arguments()?;
    let folder = tempfile::tempdir()?;
    let shards = match arguments.shards {
        Some(shards) => shards,
        None => {
            let records: Vec<Record> = (0..arguments.samples).map(record).collect();
            fixture::write_set(folder.path(), &ShardSettings::new(fixture::processor(SHAPE)), &records, SHARD_ROWS);
            folder.path().to_string_lossy().into_owned()
        }
    };
    let dataset = Arc::new(Dataset::open(&shards)?);
    let micro_batch = arguments.micro_batch;
    let spec = BatchSpec {
        global_batch: micro_batch,
        micro_batch,
        seed: 1,
        shuffle: true,
        image_tokens: 1,
        max_length: 8192,
        shuffle_window: 0,
        packing: None,
    };
    let mut source = LocalSource::new(Arc::clone(&dataset), spec.clone(), Partition::WHOLE, 256 << 20)?;
    // One epoch first, so that every page of the set has been touched.
    for _ in 0..source.steps_per_epoch() {
        source.next_batch()?;
    }
    let cpu_start = cpu_seconds("self");
    let (start, limit) = (Instant::now(), Duration::from_secs(arguments.seconds));
    let (mut samples, mut bytes) = (0u64, 0u64);
    while start.elapsed() < limit {
        let batch = source.next_batch()?;
        samples += batch.samples.iter().filter(|slot| slot.valid).count() as u64;
        bytes += batch.num_bytes() as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = cpu_start.zip(cpu_seconds("self")).map(|(start, end)| end - start);
    let stats = source.stats();
    let shape = dataset.info().processor.image_shape;
    let report = serde_json::json!({
        "samples_per_second": samples as f64 / seconds,
        "samples_per_cpu_second": cpu.map(|cpu| samples as f64 / cpu),
        "gigabytes_per_second": bytes as f64 / seconds / 1e9,
        "samples": samples,
        "seconds": seconds,
        "threads": std::thread::available_parallelism()?.get(),
        "micro_batch": micro_batch,
        "image_shape": [shape.channels, shape.height, shape.width],
        "tokens": dataset.info().num_tokens as f64 / dataset.info().num_samples as f64,
        "consumer_waits": stats.num_consumer_waits,
        "peak_prefetch_bytes": stats.peak_bytes,
    });
    println!("{report}");
    Ok(())
}
