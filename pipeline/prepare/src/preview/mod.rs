//! What the model will see, as one HTML page: images after resize, the dialogue, tokens coloured by label.

mod dialogue;
mod sample;
mod thumbnail;

use std::path::PathBuf;

use serde::Serialize;
use vela_processor::{Processor, ProcessorOptions};
use vela_shard::{Manifest, RowBuffer, ShardEntry, ShardReader, Store};
use vela_types::SeedStream;

use crate::PrepareError;
use crate::build::{load_processor, open_shards, processor_folder};
use crate::page::{Page, count, escaped};
use crate::stats::load_manifest;
use dialogue::Frames;
use sample::SampleWriter;

/// What to show where.
#[derive(Clone, Debug)]
pub struct PreviewConfig {
    /// Folder or URL of a shard set.
    pub shards: String,
    /// Page to write.
    pub html: PathBuf,
    /// Processor that decodes the tokens; the copy inside the shard set without it.
    pub processor: Option<PathBuf>,
    /// Records to show.
    pub num_records: u64,
    /// Draws the records; without it they are spread evenly over the set.
    pub seed: Option<u64>,
    /// Ids of the records to show, instead of all else.
    pub ids: Vec<String>,
    /// Tokens that an image takes once a tower expands it, if it is known.
    pub tokens_per_image: Option<u32>,
}

impl PreviewConfig {
    /// 24 records spread over the set.
    pub fn new(shards: impl Into<String>, html: impl Into<PathBuf>) -> Self {
        Self {
            shards: shards.into(),
            html: html.into(),
            processor: None,
            num_records: 24,
            seed: None,
            ids: Vec::new(),
            tokens_per_image: None,
        }
    }
}

/// What was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreviewReport {
    /// Records on the page.
    pub samples: u64,
    /// Records that were asked for and left out because the page was full.
    pub left_out: u64,
    /// The page.
    pub html: PathBuf,
}

/// A page grows no further once it has this size: browsers stay quick, and mail takes it.
const MAX_PAGE_BYTES: usize = 24 << 20;

/// Writes a page that needs nothing but itself.
///
/// # Errors
/// No finished shard set, another processor than the shards', an unknown id, damage, or a page that cannot be written.
pub fn write_preview(config: &PreviewConfig) -> Result<PreviewReport, PrepareError> {
    if config.ids.is_empty() && config.num_records == 0 {
        let (expected, found) = ("at least 1".to_owned(), "0".to_owned());
        return Err(PrepareError::Flag { flag: "--limit", expected, found });
    }
    let store = open_shards("--shards", &config.shards)?;
    let manifest = load_manifest(store.as_ref(), &config.shards)?;
    let processor = own_processor(config, &manifest)?;
    let wanted = wanted_records(config, store.as_ref(), &manifest)?;
    let mut page = Page::new("Vela: what the model will see");
    write_head(&mut page, config, &manifest);
    let frames = Frames::of(&processor)?;
    let writer = SampleWriter { processor: &processor, frames: &frames, tokens_per_image: config.tokens_per_image };
    let mut shown = 0;
    for (entry, row) in &wanted {
        if page.len() >= MAX_PAGE_BYTES {
            break;
        }
        writer.write(&mut page, &ShardReader::open(store.as_ref(), entry)?.read(*row)?)?;
        shown += 1;
    }
    let left_out = wanted.len() as u64 - shown;
    write_foot(&mut page, left_out);
    page.write(&config.html)?;
    Ok(PreviewReport { samples: shown, left_out, html: config.html.clone() })
}

/// The processor that made the shards; another one would decode other texts.
fn own_processor(config: &PreviewConfig, manifest: &Manifest) -> Result<Processor, PrepareError> {
    let folder = config.processor.clone().map_or_else(|| processor_folder(&config.shards), Ok)?;
    let processor = load_processor(&folder, &ProcessorOptions::default())?;
    if processor.summary().fingerprint == manifest.processor.fingerprint {
        return Ok(processor);
    }
    Err(PrepareError::Flag {
        flag: "--processor",
        expected: format!("the processor {} that made the shards", manifest.processor.fingerprint.short()),
        found: format!("{} in {}", processor.summary().fingerprint.short(), folder.display()),
    })
}

/// Shards and rows to show, in the order of the set, or in that of `ids`.
fn wanted_records<'a>(
    config: &PreviewConfig,
    store: &dyn Store,
    manifest: &'a Manifest,
) -> Result<Vec<(&'a ShardEntry, u64)>, PrepareError> {
    if !config.ids.is_empty() {
        return find_ids(&config.ids, store, manifest);
    }
    let rows = manifest.totals.rows;
    let records = match config.seed {
        Some(seed) => drawn(rows, config.num_records, seed),
        None => spread(rows, config.num_records),
    };
    let mut wanted = Vec::with_capacity(records.len());
    let mut first = 0;
    for entry in &manifest.shards {
        let here = records.iter().filter(|&&record| (first..first + entry.rows).contains(&record));
        wanted.extend(here.map(|record| (entry, record - first)));
        first += entry.rows;
    }
    Ok(wanted)
}

fn find_ids<'a>(
    ids: &[String],
    store: &dyn Store,
    manifest: &'a Manifest,
) -> Result<Vec<(&'a ShardEntry, u64)>, PrepareError> {
    let mut found: Vec<Option<(&ShardEntry, u64)>> = vec![None; ids.len()];
    let mut row = RowBuffer::default();
    for entry in &manifest.shards {
        if found.iter().all(Option::is_some) {
            break;
        }
        let reader = ShardReader::open(store, entry)?;
        for at in 0..reader.rows() {
            reader.read_row(at, &mut row)?;
            if let Some(place) = ids.iter().position(|id| *id == row.id) {
                found[place] = Some((entry, at));
            }
        }
    }
    let missing = |id: &String| PrepareError::Flag {
        flag: "--sample",
        expected: "the id of a record of the set".to_owned(),
        found: id.clone(),
    };
    found.into_iter().zip(ids).map(|(place, id)| place.ok_or_else(|| missing(id))).collect()
}

/// `num` of `rows`, evenly apart, the first included.
fn spread(rows: u64, num: u64) -> Vec<u64> {
    let num = num.min(rows);
    (0..num).map(|at| (u128::from(at) * u128::from(rows) / u128::from(num)) as u64).collect()
}

/// `num` different ones of `rows`, ascending (Floyd's algorithm for samples without repetition).
fn drawn(rows: u64, num: u64, seed: u64) -> Vec<u64> {
    let mut draw = SeedStream::named(seed, "preview", "");
    let mut chosen = std::collections::BTreeSet::new();
    for last in rows - num.min(rows)..rows {
        let record = draw.below(last + 1);
        if !chosen.insert(record) {
            chosen.insert(last);
        }
    }
    chosen.into_iter().collect()
}

fn write_head(page: &mut Page, config: &PreviewConfig, manifest: &Manifest) {
    let Manifest { totals, fingerprint, processor, .. } = manifest;
    let shape = processor.image_shape;
    page.push(format_args!(
        "<header><h1><span class=\"flame\"></span>{}</h1><p class=\"soft\">{} samples, {} images of {} × {}, {} tokens \
         · <span class=\"mono\">{}</span></p>\n",
        escaped(&config.shards),
        count(totals.rows),
        count(totals.num_images),
        shape.width,
        shape.height,
        count(totals.num_tokens),
        fingerprint.short()
    ));
    page.push(format_args!(
        "<p><span class=\"key\"><i class=\"learned\"></i>learned</span><span class=\"key\"><i class=\"read\"></i>read \
         only</span><span class=\"key\"><i class=\"image\"></i>image</span><span class=\"key\"><i class=\"end\"></i>ends a \
         turn</span></p></header>\n"
    ));
}

fn write_foot(page: &mut Page, left_out: u64) {
    let full = match left_out {
        0 => String::new(),
        left_out => format!(" The page is full: {} samples were left out.", count(left_out)),
    };
    page.push(format_args!(
        "<footer>Learned tokens are those the loss is taken over; dark green ends a turn.{full} Made by <code>pipeline \
         preview</code>.</footer>\n"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_records_are_spread_over_the_set() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(2, 4), [0, 1]);
        assert_eq!(spread(0, 4), Vec::<u64>::new());
    }

    #[test]
    fn drawn_records_are_different_ones_and_the_seed_decides() {
        let first = drawn(1000, 20, 1);
        assert_eq!((first.len(), &first), (20, &drawn(1000, 20, 1)));
        assert!(first.windows(2).all(|pair| pair[0] < pair[1]) && first != drawn(1000, 20, 2));
        assert_eq!(drawn(3, 9, 5), [0, 1, 2]);
        assert_eq!(drawn(0, 9, 5), Vec::<u64>::new());
    }
}
