//! What a shard set holds and how well its samples share rows: counts, lengths, duplicates, padding, packing.
//!
//! Pixels are never read: lengths come from the lengths index, the rest from the small columns of each row.

mod padding;
mod page;
mod rows;
mod spread;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use vela_runtime::Progress;
use vela_shard::{Manifest, ShardError, Store};
use vela_types::{Fingerprint, PackLimits, RecordLengths, SeedStream};

pub use padding::{PackingStats, PaddingStats};
pub use spread::{LengthBin, Spread};

use crate::PrepareError;
use crate::build::open_shards;
use rows::{RowCounts, count_rows};

/// What to count and how rows are to be filled.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsConfig {
    /// Folder or URL of a shard set.
    pub shards: String,
    /// Page to write, if any.
    pub html: Option<PathBuf>,
    /// Tokens that an image takes once a tower expands it.
    pub tokens_per_image: u32,
    /// Samples of a batch, for the padding that batches cost.
    pub batch: u32,
    /// What a row may hold when samples are packed, and the samples packed together.
    pub packing: PackLimits,
    /// Threads that read rows.
    pub workers: usize,
}

impl StatsConfig {
    /// The defaults of the command line: LLaVA-1.5's 576 tokens per image and 2048 per row.
    pub fn new(shards: impl Into<String>) -> Self {
        Self {
            shards: shards.into(),
            html: None,
            tokens_per_image: 576,
            batch: 32,
            packing: PackLimits { tokens: 2048, images: 64, window: 4096 },
            workers: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    fn check(&self) -> Result<(), PrepareError> {
        let flags = [
            ("--tokens-per-image", u64::from(self.tokens_per_image)),
            ("--batch", u64::from(self.batch)),
            ("--pack-length", u64::from(self.packing.tokens)),
            ("--pack-images", u64::from(self.packing.images)),
            ("--pack-window", u64::from(self.packing.window)),
            ("--workers", self.workers as u64),
        ];
        match flags.into_iter().find(|(_, value)| *value == 0) {
            Some((flag, _)) => {
                Err(PrepareError::Flag { flag, expected: "at least 1".to_owned(), found: "0".to_owned() })
            }
            None => Ok(()),
        }
    }
}

/// Everything counted. The keys of its JSON are a contract (`docs/inspection.md`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatsReport {
    /// The shard set.
    pub fingerprint: Fingerprint,
    /// Records.
    pub samples: u64,
    /// Shard files.
    pub shards: u64,
    /// Bytes of all shard files.
    pub bytes: u64,
    /// Bytes of pixels among them.
    pub pixel_bytes: u64,
    /// Tokens, an image counted as one.
    pub tokens: u64,
    /// Tokens, each image counted as `tokens_per_image`.
    pub expanded_tokens: u64,
    /// Tokens that are predicted.
    pub label_tokens: u64,
    /// Tokens that an image was taken to need.
    pub tokens_per_image: u32,
    /// Images, each use counted.
    pub images: u64,
    /// Images as stored: each different one once per shard.
    pub images_stored: u64,
    /// Records without an image.
    pub text_only: u64,
    /// Records with two images or more.
    pub multi_image: u64,
    /// Records by language code, the commonest first in the page, by name here.
    pub languages: BTreeMap<String, u64>,
    /// Records by source.
    pub sources: BTreeMap<String, u64>,
    /// Inputs that became no record, by cause.
    pub rejected: BTreeMap<String, u64>,
    /// Records by number of images.
    pub images_per_sample: BTreeMap<u64, u64>,
    /// Records by number of answers.
    pub turns_per_sample: BTreeMap<u64, u64>,
    /// Lengths in tokens, images expanded.
    pub lengths: Spread,
    /// Predicted tokens per record.
    pub label_lengths: Spread,
    /// What repeats.
    pub duplicates: Duplicates,
    /// What padding costs without packing.
    pub padding: PaddingStats,
    /// What packing brings.
    pub packing: PackingStats,
    /// Wall clock.
    pub seconds: f64,
}

/// Records and images that say the same as an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Records whose tokens and images are those of an earlier record.
    pub samples: u64,
    /// Records whose tokens are those of an earlier record, whatever the images.
    pub texts: u64,
    /// Uses of an image that an earlier record, or the same, uses too.
    pub images: u64,
}

impl StatsReport {
    /// Share of the tokens, images counted as one, that are predicted.
    pub fn label_share(&self) -> f64 {
        self.label_tokens as f64 / self.tokens.max(1) as f64
    }

    /// The report for people.
    pub fn to_text(&self) -> String {
        let PackingStats { length, utilisation, packs, too_long, .. } = self.packing;
        let packing = match packs {
            0 => format!("packing to {length}: no sample fits a row, {too_long} too long"),
            packs => {
                format!("packing to {length}: {:.1} % filled, {packs} rows, {too_long} too long", 100.0 * utilisation)
            }
        };
        format!(
            "{} samples, {} images, {} tokens ({:.1} % predicted), {} text-only, {} with several images\n\
             length with {} tokens per image: median {}, 95 % up to {}, longest {}\n\
             repeated: {} samples, {} texts, {} images\n\
             padding: {:.1} % at a fixed {length}, {:.1} % per batch, {:.1} % per batch grouped by length\n\
             {packing}\n",
            self.samples,
            self.images,
            self.tokens,
            100.0 * self.label_share(),
            self.text_only,
            self.multi_image,
            self.tokens_per_image,
            self.lengths.p50,
            self.lengths.p95,
            self.lengths.max,
            self.duplicates.samples,
            self.duplicates.texts,
            self.duplicates.images,
            100.0 * self.padding.fixed,
            100.0 * self.padding.in_order,
            100.0 * self.padding.by_length,
        )
    }
}

/// Counts a shard set and, with `html`, writes the page.
///
/// # Errors
/// A flag of zero, no finished shard set, damage in its manifest, index or small columns, or a page that cannot be written.
pub fn shard_stats(config: &StatsConfig, progress: &Progress) -> Result<StatsReport, PrepareError> {
    config.check()?;
    let started = Instant::now();
    let store = open_shards("--shards", &config.shards)?;
    let manifest = load_manifest(store.as_ref(), &config.shards)?;
    let index = manifest.open_lengths(store.as_ref())?;
    let lengths: Vec<RecordLengths> = (0..index.len()).map(|at| index.get(at)).collect::<Result<_, _>>()?;
    let counts = count_rows(store.as_ref(), &manifest, config.workers, progress)?;
    let mut report = assemble(config, &manifest, &lengths, counts);
    report.seconds = started.elapsed().as_secs_f64();
    if let Some(html) = &config.html {
        page::write_page(html, config, &report, &lengths)?;
    }
    Ok(report)
}

/// The manifest of a set that a flag names; a folder without one is wrong use.
pub(crate) fn load_manifest(store: &dyn Store, shards: &str) -> Result<Manifest, PrepareError> {
    Manifest::load(store).map_err(|fault| match fault {
        ShardError::MissingManifest { .. } => PrepareError::Flag {
            flag: "--shards",
            expected: "the place of a finished shard set (`manifest.json`)".to_owned(),
            found: shards.to_owned(),
        },
        fault => fault.into(),
    })
}

fn assemble(config: &StatsConfig, manifest: &Manifest, lengths: &[RecordLengths], counts: RowCounts) -> StatsReport {
    let shuffled = shuffled(lengths);
    let expanded = |row: &RecordLengths| expanded_length(row, config.tokens_per_image);
    let num_with = |test: fn(u32) -> bool| lengths.iter().filter(|row| test(row.num_images)).count() as u64;
    let mut images_per_sample = BTreeMap::new();
    lengths.iter().for_each(|row| *images_per_sample.entry(u64::from(row.num_images)).or_default() += 1);
    let of_shards = |of: fn(&vela_shard::ShardEntry) -> u64| manifest.shards.iter().map(of).sum();
    StatsReport {
        fingerprint: manifest.fingerprint,
        samples: manifest.totals.rows,
        shards: manifest.shards.len() as u64,
        bytes: manifest.totals.bytes,
        pixel_bytes: of_shards(|shard| shard.pixel_bytes),
        tokens: manifest.totals.num_tokens,
        expanded_tokens: lengths.iter().map(expanded).sum(),
        label_tokens: manifest.totals.num_label_tokens,
        tokens_per_image: config.tokens_per_image,
        images: manifest.totals.num_images,
        images_stored: of_shards(|shard| shard.num_stored_images),
        text_only: num_with(|images| images == 0),
        multi_image: num_with(|images| images > 1),
        duplicates: counts.duplicates(),
        languages: counts.languages,
        sources: counts.sources,
        rejected: manifest.rejects.clone(),
        images_per_sample,
        turns_per_sample: counts.turns,
        lengths: Spread::of(lengths.iter().map(expanded).collect()),
        label_lengths: Spread::of(lengths.iter().map(|row| u64::from(row.num_label_tokens)).collect()),
        padding: PaddingStats::of(&shuffled, config),
        packing: PackingStats::of(&shuffled, config),
        seconds: 0.0,
    }
}

/// Tokens of a record once each image takes `tokens_per_image`.
fn expanded_length(row: &RecordLengths, tokens_per_image: u32) -> u64 {
    u64::from(row.num_tokens) + u64::from(row.num_images) * (u64::from(tokens_per_image) - 1)
}

/// The records in a drawn order, as an epoch has them: shards keep inputs together, and with them lengths.
fn shuffled(lengths: &[RecordLengths]) -> Vec<RecordLengths> {
    let mut order = lengths.to_vec();
    let mut draw = SeedStream::named(0, "stats order", "");
    for last in (1..order.len()).rev() {
        order.swap(last, draw.below(last as u64 + 1) as usize);
    }
    order
}
