//! How well and how fast rows are packed: lengths like LLaVA-Instruct-150K's, one JSON object.
//!
//! `cargo run --release -p vela-types --example packing_plan -- [--samples 100000] [--tokens 2048] [--image 576] [--window 4096]`
//!
//! Lengths are drawn from token counts of real LLaVA questions and answers (`tests/golden/packing/instruct_pairs.json`) in the
//! shares of LLaVA-Instruct-150K's three files: 58 conversations of three to five pairs, 23 descriptions and 77 complex questions of
//! one; one image each, `--image` tokens long; samples longer than a row are drawn again. Fields: `samples`, `mean`, `rows`, `utilisation`, `bound` (what no plan can exceed),
//! `unpacked` (a row for each sample), `seconds`.
#![expect(clippy::print_stdout, reason = "the result is the output")]

use std::error::Error;
use std::time::Instant;

use serde_json::Value;
use vela_types::{PackItem, PackLimits, SeedStream};

const PAIRS: &str = include_str!("../../../tests/golden/packing/instruct_pairs.json");

/// Token counts of (question, answer) pairs, and what the chat template adds.
struct Lengths {
    conversation: Vec<u32>,
    detail: Vec<u32>,
    complex: Vec<u32>,
    per_dialogue: u32,
}

impl Lengths {
    fn read() -> Result<Self, Box<dyn Error + Send + Sync>> {
        let value: Value = serde_json::from_str(PAIRS)?;
        let number = |value: &Value| value.as_u64().unwrap_or(0) as u32;
        let per_pair = number(&value["per_pair"]);
        let of = |kind: &str| -> Vec<u32> {
            let pairs = value["pairs"][kind].as_array().into_iter().flatten();
            pairs.map(|pair| number(&pair[0]) + number(&pair[1]) + per_pair).collect()
        };
        let per_dialogue = number(&value["per_dialogue"]);
        Ok(Self { conversation: of("conv"), detail: of("detail"), complex: of("complex"), per_dialogue })
    }

    fn draw(&self, draw: &mut SeedStream) -> u32 {
        let (pairs, num) = match draw.below(58 + 23 + 77) {
            0..58 => (&self.conversation, 3 + draw.below(3)),
            58..81 => (&self.detail, 1),
            _ => (&self.complex, 1),
        };
        self.per_dialogue + (0..num).map(|_| draw.choose(pairs)).sum::<u32>()
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (mut samples, mut image) = (100_000u64, 576u32);
    let mut limits = PackLimits { tokens: 2048, images: 64, window: 4096 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{argument}` needs a value"))?;
        match argument.as_str() {
            "--samples" => samples = value.parse()?,
            "--tokens" => limits.tokens = value.parse()?,
            "--image" => image = value.parse()?,
            "--window" => limits.window = value.parse()?,
            _ => return Err(format!("unknown flag `{argument}`").into()),
        }
    }
    let (lengths, mut draw) = (Lengths::read()?, SeedStream::new(1));
    if image >= limits.tokens {
        return Err(format!("`--image {image}`: expected fewer tokens than a row's {}", limits.tokens).into());
    }
    let drawn = std::iter::repeat_with(|| PackItem { tokens: lengths.draw(&mut draw) + image, images: 1 });
    let items: Vec<PackItem> = drawn.filter(|item| item.tokens <= limits.tokens).take(samples as usize).collect();
    let started = Instant::now();
    let plan = limits.pack_all(samples, |place| items[place as usize])?;
    let seconds = started.elapsed().as_secs_f64();
    let share = |rows: u64| plan.tokens as f64 / (rows as f64 * f64::from(limits.tokens));
    let report = serde_json::json!({
        "samples": samples, "mean": plan.tokens as f64 / samples as f64, "rows": plan.rows.len(),
        "utilisation": plan.utilisation(), "bound": share(limits.rows_at_least(items.iter().map(|item| (*item, 1)))),
        "unpacked": share(samples), "seconds": seconds,
    });
    println!("{report}");
    Ok(())
}
