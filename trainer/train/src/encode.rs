//! `trainer encode`: the frozen tower's features of a shard set, computed once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use candle_core::Device;
use serde::Serialize;
use serde_json::json;
use vela_dataset::Dataset;
use vela_models::Vlm;
use vela_runtime::{Progress, Shutdown};
use vela_shard::{
    BuildFolder, Manifest, SCHEMA_VERSION, ShardError, ShardSettings, ShardWriter, local_path, open_store,
};
use vela_types::{Fingerprint, ImageTensor, ProcessorSummary, Record};

use crate::data::{check_model, check_processor};
use crate::device_batch::PixelTable;
use crate::error::TrainError;
use crate::features::{FeatureMode, FeatureType, tower_fingerprint};
use crate::lock::FolderLock;
use crate::open::{open_frozen, open_processor};

/// Records that wait for their features at most: those without images would wait for ever.
const MAX_WAITING: usize = 256;
const STOPPED: TrainError = TrainError::Stopped { what: "the set is not complete; the same command goes on with it" };

/// What to encode, with what, to where.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// A model folder or a run folder.
    pub model: PathBuf,
    /// The shard set.
    pub shards: String,
    /// The feature set: a folder or a bucket.
    pub output: String,
    /// How features are stored.
    pub dtype: FeatureType,
    /// Images that go through the tower at once.
    pub batch: usize,
}

/// What was encoded; the JSON object of `trainer encode`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncodeReport {
    /// Records.
    pub samples: u64,
    /// Images, each use counted.
    pub images: u64,
    /// Tokens, an image counted as one.
    pub tokens: u64,
    /// Shards of the set.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Time of this process.
    pub seconds: f64,
    /// Fingerprint of the feature set.
    pub fingerprint: Fingerprint,
}

/// Writes the features of a shard set's images as a shard set. Shard i of it holds the records of shard i, in their order;
/// stopped, which it looks at between records, and started again, it keeps the shards that are whole.
///
/// # Errors
/// If another process is at the output, model, processor and data do not belong together, a record is damaged, or the
/// output holds another set.
pub fn encode(options: &EncodeOptions, shutdown: &Shutdown) -> Result<EncodeReport, TrainError> {
    vela_kernels::keep_freed_memory();
    let started = Instant::now();
    let encoder = Encoder::open(options, shutdown)?;
    let progress = Progress::new("record", Some(encoder.manifest.totals.rows));
    let mut first = 0;
    for (index, shard) in encoder.manifest.shards.iter().enumerate() {
        encoder.encode_shard(index as u32, first..first + shard.rows, &progress)?;
        first += shard.rows;
    }
    progress.finish();
    encoder.commit(started)
}

struct Encoder<'a> {
    options: &'a EncodeOptions,
    dataset: Dataset,
    manifest: Manifest,
    model: Vlm,
    pixels: PixelTable,
    mode: FeatureMode,
    summary: ProcessorSummary,
    folder: BuildFolder,
    shutdown: &'a Shutdown,
    /// Of a local output; in a bucket the commit decides.
    _lock: Option<FolderLock>,
}

impl<'a> Encoder<'a> {
    fn open(options: &'a EncodeOptions, shutdown: &'a Shutdown) -> Result<Self, TrainError> {
        let processor = open_processor(&options.model)?;
        let model = open_frozen(&options.model)?;
        check_model(model.config(), processor.summary())?;
        let at_input = |source: Box<dyn std::error::Error + Send + Sync>| TrainError::Encode {
            place: options.shards.clone(),
            source,
        };
        let dataset = Dataset::open(&options.shards).map_err(|source| at_input(source.into()))?;
        let store = open_store(&options.shards).map_err(|source| at_input(source.into()))?;
        let manifest = Manifest::load(store.as_ref()).map_err(|source| at_input(source.into()))?;
        check_processor(processor.summary(), &manifest.processor)?;
        let tower = tower_fingerprint(&model)?;
        let mode = FeatureMode { dtype: options.dtype, tower, pixels: manifest.processor.image_mode.clone() };
        let summary = mode.summary(&manifest.processor, model.config());
        let place = local_path(&options.output).map_err(|source| at_output(options, source))?;
        let lock = place.map(FolderLock::within).transpose()?;
        let output = open_store(&options.output).map_err(|source| at_output(options, source))?;
        let plan = plan_of(&manifest, &summary);
        let folder = BuildFolder::open(Arc::clone(&output), plan, ShardSettings::new(summary.clone()));
        let folder = folder.map_err(|source| at_output(options, source))?;
        folder.sweep().map_err(|source| at_output(options, source))?;
        let pixels = PixelTable::new(&processor.summary().normalization);
        Ok(Self { options, dataset, manifest, model, pixels, mode, summary, folder, shutdown, _lock: lock })
    }

    fn encode_shard(&self, index: u32, records: std::ops::Range<u64>, progress: &Progress) -> Result<(), TrainError> {
        let fault = |source| at_output(self.options, source);
        let is_committed = self.folder.manifest().map_err(fault)?.is_some();
        if is_committed || self.folder.completed_shard(index).map_err(fault)?.is_some() {
            progress.inc(records.end - records.start);
            return Ok(());
        }
        let mut writer = self.folder.create_shard(index).map_err(fault)?;
        let (mut waiting, mut num_images) = (Vec::new(), 0);
        for index in records {
            if self.shutdown.requested() {
                return Err(STOPPED);
            }
            let record = self.dataset.record(index).map_err(|source| TrainError::Shards {
                place: self.options.shards.clone(),
                source: Box::new(source),
            })?;
            num_images += record.images.len();
            waiting.push(record);
            if num_images >= self.options.batch || waiting.len() >= MAX_WAITING {
                num_images = 0;
                self.push_encoded(&mut writer, std::mem::take(&mut waiting), progress)?;
            }
        }
        self.push_encoded(&mut writer, waiting, progress)?;
        let shard = writer.finish().map_err(fault)?;
        self.folder.complete_shard(index, &shard, json!(null)).map_err(fault)
    }

    /// Puts features in the place of the records' pixels.
    fn push_encoded(
        &self,
        writer: &mut ShardWriter,
        records: Vec<Record>,
        progress: &Progress,
    ) -> Result<(), TrainError> {
        let features = self.features_of(&records)?;
        for mut record in records {
            record.images.iter_mut().for_each(|image| *image = features[&image.hash].clone());
            writer.push(&record).map_err(|source| at_output(self.options, source))?;
            progress.inc(1);
        }
        Ok(())
    }

    /// The features of each different image as what is stored, by the hash of its pixels.
    fn features_of(&self, records: &[Record]) -> Result<HashMap<Fingerprint, ImageTensor>, TrainError> {
        let mut images: Vec<&ImageTensor> = Vec::new();
        for image in records.iter().flat_map(|record| &record.images) {
            if !images.iter().any(|known| known.hash == image.hash) {
                images.push(image);
            }
        }
        let mut features = HashMap::new();
        for some in images.chunks(self.options.batch.max(1)) {
            features.extend(some.iter().map(|image| image.hash).zip(self.run_tower(some)?));
        }
        Ok(features)
    }

    fn run_tower(&self, images: &[&ImageTensor]) -> Result<Vec<ImageTensor>, TrainError> {
        let pixels = self.pixels.apply_to(images.iter().copied(), &Device::Cpu)?;
        let values: Vec<f32> = self.model.tower().forward(&pixels)?.flatten_all()?.to_vec1()?;
        let stored = |values: &[f32]| {
            let data = Bytes::from(self.mode.dtype.to_bytes(values));
            let hash = Fingerprint(*blake3::hash(&data).as_bytes());
            ImageTensor { shape: self.summary.image_shape, data, hash }
        };
        Ok(values.chunks(values.len() / images.len()).map(stored).collect())
    }

    fn commit(&self, started: Instant) -> Result<EncodeReport, TrainError> {
        let fault = |source| at_output(self.options, source);
        let num_shards = self.manifest.shards.len() as u32;
        let build = json!({
            "features_of": self.manifest.fingerprint, "tower": self.mode.tower, "dtype": self.mode.dtype,
        });
        let manifest = match self.folder.manifest().map_err(fault)? {
            Some(manifest) => manifest,
            None => self.folder.commit(num_shards, self.manifest.rejects.clone(), build).map_err(fault)?,
        };
        Ok(EncodeReport {
            samples: manifest.totals.rows,
            images: manifest.totals.num_images,
            tokens: manifest.totals.num_tokens,
            shards: manifest.shards.len() as u64,
            bytes: manifest.totals.bytes,
            seconds: started.elapsed().as_secs_f64(),
            fingerprint: manifest.fingerprint,
        })
    }
}

/// What decides the bytes of the feature set.
fn plan_of(source: &Manifest, summary: &ProcessorSummary) -> Fingerprint {
    let text = format!("vela feature set {SCHEMA_VERSION}\n{}\n{}\n", source.fingerprint, summary.image_mode);
    Fingerprint(*blake3::hash(text.as_bytes()).as_bytes())
}

fn at_output(options: &EncodeOptions, source: ShardError) -> TrainError {
    TrainError::Encode { place: options.output.clone(), source: source.into() }
}
