//! How well and how fast rows are packed: lengths like LLaVA-Instruct's, one JSON object.
//!
//! `cargo run --release -p vela-dataset --example packing_plan -- [--samples 10000000] [--tokens 2048] [--window 65536]`
//!
//! The lengths are drawn: log-normal text (median 220 tokens, sigma 0.55) and 0, or in nine of ten samples 1, image of 576 tokens;
//! longer samples than a row are drawn again. Fields: `samples`, `rows`, `utilisation`, `utilisation_unpacked`, `seconds`.
#![expect(clippy::print_stdout, reason = "the result is the output")]

use std::error::Error;
use std::time::Instant;

use vela_dataset::{PackItem, PackLimits};
use vela_types::SeedStream;

fn draw_item(draw: &mut SeedStream, longest: u32) -> PackItem {
    loop {
        let normal: f64 = (0..12).map(|_| draw.unit_f64()).sum::<f64>() - 6.0;
        let text = (220.0 * (0.55 * normal).exp()) as u32 + 16;
        let images = u32::from(draw.below(10) > 0);
        let tokens = text + 576 * images;
        if tokens <= longest {
            return PackItem { tokens, images };
        }
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (mut samples, mut limits) = (10_000_000u64, PackLimits { tokens: 2048, images: 16, window: 65_536 });
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{argument}` needs a value"))?;
        match argument.as_str() {
            "--samples" => samples = value.parse()?,
            "--tokens" => limits.tokens = value.parse()?,
            "--window" => limits.window = value.parse()?,
            _ => return Err(format!("unknown flag `{argument}`").into()),
        }
    }
    let mut draw = SeedStream::new(1);
    let items: Vec<PackItem> = (0..samples).map(|_| draw_item(&mut draw, limits.tokens)).collect();
    let started = Instant::now();
    let plan = limits.pack_all(samples, |place| items[place as usize])?;
    let seconds = started.elapsed().as_secs_f64();
    let unpacked = plan.tokens as f64 / (samples as f64 * f64::from(limits.tokens));
    let report = serde_json::json!({
        "samples": samples, "rows": plan.rows.len(), "utilisation": plan.utilisation(),
        "utilisation_unpacked": unpacked, "seconds": seconds,
    });
    println!("{report}");
    Ok(())
}
