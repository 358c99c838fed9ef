//! Where batches come from, and whether they belong to the model.

use std::path::PathBuf;
use std::sync::Arc;

use vela_client::{ClientOptions, RemoteSource, TlsOptions, Token};
use vela_dataset::{BlendPart, Dataset, LocalSource, Partition, Weight};
use vela_models::VlmConfig;
use vela_types::{Batch, BatchSource, BatchSpec, Position, ProcessorSummary};

use crate::error::TrainError;
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

/// Opens the stream the recipe names: shards in this process, or a loader. Both give equal batches.
pub(crate) fn open_source(
    place: &DataPlace,
    spec: BatchSpec,
    limits: Limits,
) -> Result<Box<dyn BatchSource>, TrainError> {
    match place {
        DataPlace::Shards(parts) => {
            let place = parts.iter().map(|part| part.shards.as_str()).collect::<Vec<_>>().join(", ");
            let fault = |source| TrainError::Shards { place: place.clone(), source: Box::new(source) };
            let dataset = Dataset::open_blend(parts).map_err(fault)?.with_max_batch_bytes(limits.max_batch_bytes);
            let whole = Partition { rank: 0, world: 1 };
            Ok(Box::new(LocalSource::new(Arc::new(dataset), spec, whole, limits.prefetch_bytes).map_err(fault)?))
        }
        DataPlace::Loader(remote) => {
            let fault = |source| TrainError::Loader { address: remote.address.clone(), source: Box::new(source) };
            let options = client_options(remote, limits)?;
            Ok(Box::new(RemoteSource::connect_with(&remote.address, spec, 0, 1, options).map_err(fault)?))
        }
    }
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
    Ok(ClientOptions { dataset, token, tls, prefetch_bytes, ..ClientOptions::default() })
}

/// Refuses data made by another processor than the one that goes into the checkpoint.
pub(crate) fn check_processor(processor: &ProcessorSummary, data: &ProcessorSummary) -> Result<(), TrainError> {
    let remedy = "set `model.processor` to the folder the shards were built with, or build them again";
    let mismatch = |what, model: String, data: String| Err(TrainError::Mismatch { what, model, data, remedy });
    match () {
        () if processor.image_mode != data.image_mode => {
            mismatch("image mode of the processor", processor.image_mode.clone(), data.image_mode.clone())
        }
        () if processor.fingerprint != data.fingerprint => {
            mismatch("processor", processor.fingerprint.short(), data.fingerprint.short())
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

/// The dataset whose loss is measured at checkpoints, as one pass in manifest order.
pub(crate) fn open_validation(
    shards: &str,
    spec: &BatchSpec,
    limits: Limits,
) -> Result<Box<dyn BatchSource>, TrainError> {
    let order = BatchSpec { shuffle: false, shuffle_window: 0, packing: None, ..spec.clone() };
    let spec = BatchSpec { global_batch: spec.micro_batch, ..order };
    let limits = Limits { prefetch_bytes: VALIDATION_PREFETCH_BYTES, ..limits };
    let part = BlendPart { shards: shards.to_owned(), weight: Weight::ONE };
    open_source(&DataPlace::Shards(vec![part]), spec, limits)
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
