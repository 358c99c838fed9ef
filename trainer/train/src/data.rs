//! Where batches come from, and whether they belong to the model.

use std::path::PathBuf;
use std::sync::Arc;

use vela_client::{ClientOptions, RemoteSource, TlsOptions, Token};
use vela_dataset::{BlendPart, Dataset, LocalSource, MicroExtents, Partition, Weight};
use vela_models::{Vlm, VlmConfig};
use vela_types::{Batch, BatchSource, BatchSpec, DatasetInfo, Position, ProcessorSummary};

use crate::error::TrainError;
use crate::features::{FeatureMode, tower_fingerprint};
use crate::groups::Component;
use crate::recipe::{DataPlace, RemotePlace};

const VALIDATION_PREFETCH_BYTES: usize = 16 << 20;

/// How many bytes of batches a source may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Held ready.
    pub(crate) prefetch_bytes: usize,
    /// Of the largest micro-batch made in this process.
    pub(crate) max_batch_bytes: u64,
}

/// A stream of batches, and how large its micro-batches get.
pub(crate) struct OpenSource {
    pub(crate) source: Box<dyn BatchSource>,
    pub(crate) largest: MicroExtents,
}

/// Opens a rank's part of the stream the recipe names: shards in this process, or a loader. Both give equal batches.
pub(crate) fn open_source(
    place: &DataPlace,
    spec: BatchSpec,
    limits: Limits,
    part: Partition,
) -> Result<OpenSource, TrainError> {
    match place {
        DataPlace::Shards(parts) => {
            let place = parts.iter().map(|part| part.shards.as_str()).collect::<Vec<_>>().join(", ");
            let fault = |source| TrainError::Shards { place: place.clone(), source: Box::new(source) };
            let dataset = Dataset::open_blend(parts).map_err(fault)?.with_max_batch_bytes(limits.max_batch_bytes);
            let largest = dataset.largest_micro_batch(&spec, part).map_err(fault)?;
            let source = LocalSource::new(Arc::new(dataset), spec, part, limits.prefetch_bytes).map_err(fault)?;
            Ok(OpenSource { source: Box::new(source), largest })
        }
        DataPlace::Loader(remote) => {
            let fault = |source| TrainError::Loader { address: remote.address.clone(), source: Box::new(source) };
            let options = client_options(remote, limits)?;
            let Partition { rank, world } = part;
            let source =
                RemoteSource::connect_with(&remote.address, spec.clone(), rank, world, options).map_err(fault)?;
            let largest = bound_of(&spec, source.info(), part);
            Ok(OpenSource { source: Box::new(source), largest })
        }
    }
}

/// What a loader's micro-batches may come to. It tells no lengths, so rows count as full, and have the packing's images
/// or, where samples are not packed, as many as a sample has on average, rounded up.
fn bound_of(spec: &BatchSpec, info: &DatasetInfo, part: Partition) -> MicroExtents {
    let rows = u64::from(spec.micro_batch.min(spec.global_batch.div_ceil(part.world)));
    let of_a_row = match spec.packing {
        Some(packing) => u64::from(packing.max_images),
        None => info.num_images.div_ceil(info.num_samples.max(1)),
    };
    MicroExtents { rows, columns: u64::from(spec.max_length), images: rows * of_a_row }
}

/// The client's options with the files that the recipe names read.
fn client_options(remote: &RemotePlace, limits: Limits) -> Result<ClientOptions, TrainError> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(TrainError::io("read", path));
    let token = remote.token_file.as_ref().map(read).transpose()?.map(|text| Token::new(text.trim()));
    let identity = match &remote.identity {
        Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
        None => None,
    };
    let tls = TlsOptions { authorities: remote.authority.as_ref().map(read).transpose()?, identity };
    let (dataset, prefetch_bytes) = (remote.dataset.clone(), limits.prefetch_bytes);
    let allow_remote_plaintext = remote.allow_remote_plaintext;
    Ok(ClientOptions { dataset, token, tls, allow_remote_plaintext, prefetch_bytes, ..ClientOptions::default() })
}

/// Refuses data made by another processor than the one that goes into the checkpoint.
pub(crate) fn check_processor(processor: &ProcessorSummary, data: &ProcessorSummary) -> Result<(), TrainError> {
    let remedy = "set `model.processor` to the folder the shards were built with, or build them again";
    let mismatch = |what, model: String, data: String| Err(TrainError::Mismatch { what, model, data, remedy });
    let features = FeatureMode::parse(&data.image_mode);
    let image_mode = features.map_or_else(|| data.image_mode.clone(), |features| features.pixels);
    match () {
        () if processor.image_mode != image_mode => {
            mismatch("image mode of the processor", processor.image_mode.clone(), image_mode)
        }
        () if processor.fingerprint != data.fingerprint => {
            mismatch("processor", processor.fingerprint.short(), data.fingerprint.short())
        }
        () => Ok(()),
    }
}

/// Refuses features that another tower made, that have not its extents, or that were made by a tower which learns now.
pub(crate) fn check_features(model: &Vlm, data: &ProcessorSummary) -> Result<(), TrainError> {
    let Some(mode) = FeatureMode::parse(&data.image_mode) else { return Ok(()) };
    let remedy = "encode the data with this model, or train from pixels";
    let mismatch = |what, model: String, data: String| Err(TrainError::Mismatch { what, model, data, remedy });
    if model.params().trainable().any(|(name, _)| Component::of(name) == Some(Component::VisionTower)) {
        return mismatch("vision tower", "one that learns".to_owned(), "features of one that does not".to_owned());
    }
    let tower = tower_fingerprint(model)?;
    let expected = mode.summary(data, model.config()).image_shape;
    match () {
        () if tower != mode.tower => mismatch("vision tower of the features", tower.short(), mode.tower.short()),
        () if expected != data.image_shape => {
            mismatch("features of an image", format!("{expected:?}"), format!("{:?}", data.image_shape))
        }
        () => Ok(()),
    }
}

/// Refuses a model that cannot read what the processor writes: vocabulary, image and padding token, image extent.
pub(crate) fn check_model(config: &VlmConfig, data: &ProcessorSummary) -> Result<(), TrainError> {
    let remedy = "choose a model and a processor that belong together";
    let mismatch = |what, model: String, data: String| Err(TrainError::Mismatch { what, model, data, remedy });
    let (rows, ids) = (config.language.vocab_size, data.vocab_size);
    let pad = config.language.token_ids.get("pad_token_id").and_then(serde_json::Value::as_u64);
    let image = [data.image_shape.channels, data.image_shape.height, data.image_shape.width].map(|side| side as usize);
    let extent = [config.vision.num_channels, config.vision.image_size, config.vision.image_size];
    match () {
        () if rows < ids as usize => mismatch("vocabulary", format!("{rows} rows"), format!("{ids} ids")),
        () if config.image_token_id != data.image_token_id => {
            mismatch("image token", format!("id {}", config.image_token_id), format!("id {}", data.image_token_id))
        }
        () if pad.is_some_and(|pad| pad != u64::from(data.pad_token_id)) => {
            let pad = pad.map_or_else(String::new, |pad| format!("id {pad}"));
            mismatch("padding token", pad, format!("id {}", data.pad_token_id))
        }
        () if image != extent => {
            mismatch("image extent (channels, height, width)", format!("{extent:?}"), format!("{image:?}"))
        }
        () => Ok(()),
    }
}

/// Refuses rows too short for one image, or longer than the model has positions.
pub(crate) fn check_max_length(config: &VlmConfig, max_length: u32) -> Result<(), TrainError> {
    let refuse = |expected: String| {
        Err(TrainError::Recipe { key: "batch.max_length".to_owned(), expected, found: max_length.to_string() })
    };
    let (image, positions) = (config.image_tokens(), config.language.max_positions);
    match max_length as usize {
        length if length <= image => refuse(format!("more than the {image} tokens of an image")),
        length if length > positions => refuse(format!("at most the model's {positions} positions")),
        _ => Ok(()),
    }
}

/// A rank's part of the dataset whose loss is measured at checkpoints, as one pass in manifest order.
pub(crate) fn open_validation(
    shards: &str,
    spec: &BatchSpec,
    limits: Limits,
    part: Partition,
) -> Result<Box<dyn BatchSource>, TrainError> {
    let order = BatchSpec { shuffle: false, shuffle_window: 0, packing: None, ..spec.clone() };
    let spec = BatchSpec { global_batch: spec.micro_batch.saturating_mul(part.world), ..order };
    let limits = Limits { prefetch_bytes: VALIDATION_PREFETCH_BYTES, ..limits };
    let whole_set = BlendPart { shards: shards.to_owned(), weight: Weight::ONE };
    open_source(&DataPlace::Shards(vec![whole_set]), spec, limits, part).map(|open| open.source)
}

/// The next micro-batch, which must be the one at `position`: a stream that skips or repeats is an error.
pub(crate) fn next_batch(source: &mut dyn BatchSource, position: Position) -> Result<Batch, TrainError> {
    let batch = source.next_batch().map_err(|source| TrainError::Batches { position, source })?;
    match batch.position == position {
        true => Ok(batch),
        false => Err(TrainError::Batch {
            position,
            expected: "the next micro-batch".to_owned(),
            found: format!("{:?}", batch.position),
        }),
    }
}
