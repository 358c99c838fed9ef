//! Photos per second and core from encoded bytes to a tower's planes; one JSON object.
//!
//! `cargo run --release -p vela-processor --example decode_resize_throughput -- --images DIR --side 336
//! [--mode pillow|torchvision] [--passes 3] [--output FILE]`
//!
//! Files are read into memory first and taken in the order of their names; one thread; a first pass is not timed. Each picture is resized
//! to a square of `side` with bicubic weights, as SigLIP's processor does it. `output` takes the tensors, one after another.
//! Fields: `images`, `seconds` and `cpu_seconds` (of each pass; the second is 0 where the system does not tell).
#![expect(clippy::print_stdout, reason = "the result is the output")]

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use vela_processor::{ImageMode, ImageProcessor};

struct Arguments {
    images: PathBuf,
    side: u32,
    mode: ImageMode,
    passes: usize,
    output: Option<PathBuf>,
}

impl Arguments {
    fn parse() -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut parsed = Self { images: PathBuf::new(), side: 336, mode: ImageMode::Pillow, passes: 3, output: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("`{argument}` needs a value"))?;
            match argument.as_str() {
                "--images" => parsed.images = value.into(),
                "--side" => parsed.side = value.parse()?,
                "--mode" => parsed.mode = serde_json::from_value(value.into())?,
                "--passes" => parsed.passes = value.parse()?,
                "--output" => parsed.output = Some(value.into()),
                _ => return Err(format!("unknown flag `{argument}`").into()),
            }
        }
        Ok(parsed)
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments = Arguments::parse()?;
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&arguments.images)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(fs::read).collect::<Result<_, _>>()?;
    let side = arguments.side;
    let config = serde_json::json!({
        "image_processor_type": "SiglipImageProcessor", "size": { "height": side, "width": side }, "resample": 3,
    });
    let processor = ImageProcessor::parse(config.to_string().as_bytes(), arguments.mode)?;
    let mut tensors = Vec::new();
    for file in &files {
        tensors.extend(processor.tensor(file, "photo")?);
    }
    if let Some(output) = &arguments.output {
        fs::write(output, &tensors)?;
    }
    let (mut seconds, mut cpu_seconds) = (Vec::new(), Vec::new());
    for _ in 0..arguments.passes {
        let (started, cpu_started) = (Instant::now(), cpu_time());
        for file in &files {
            std::hint::black_box(processor.tensor(file, "photo")?);
        }
        seconds.push(started.elapsed().as_secs_f64());
        cpu_seconds.push(cpu_time() - cpu_started);
    }
    println!("{}", serde_json::json!({ "images": files.len(), "seconds": seconds, "cpu_seconds": cpu_seconds }));
    Ok(())
}

/// Seconds that this thread has had a processor, as Linux tells them.
fn cpu_time() -> f64 {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = told.split_whitespace().next().and_then(|field| field.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}
