//! The description of a data set.

use vela_types::{DatasetInfo, ImageNormalization, ImageShape, ProcessorSummary};

use crate::spec::{decode_fingerprint, encode_fingerprint, required};
use crate::{WireError, v1};

/// Elements of one image: far above any tower's input.
const MAX_IMAGE_ELEMENTS: u64 = 1 << 30;

/// The description as a message.
pub fn encode_info(info: &DatasetInfo) -> v1::DatasetInfo {
    v1::DatasetInfo {
        fingerprint: encode_fingerprint(&info.fingerprint),
        num_samples: info.num_samples,
        num_images: info.num_images,
        num_tokens: info.num_tokens,
        processor: Some(encode_processor(&info.processor)),
    }
}

fn encode_processor(processor: &ProcessorSummary) -> v1::ProcessorSummary {
    let ImageShape { channels, height, width } = processor.image_shape;
    let ImageNormalization { rescale_factor, mean, std } = processor.normalization.clone();
    v1::ProcessorSummary {
        fingerprint: encode_fingerprint(&processor.fingerprint),
        image_channels: channels,
        image_height: height,
        image_width: width,
        rescale_factor,
        mean,
        std,
        image_mode: processor.image_mode.clone(),
        template: processor.template.clone(),
        template_date: processor.template_date.clone(),
        vocab_size: processor.vocab_size,
        image_token_id: processor.image_token_id,
        pad_token_id: processor.pad_token_id,
        end_of_turn_id: processor.end_of_turn_id,
    }
}

/// The description in a message.
pub fn decode_info(info: Option<v1::DatasetInfo>) -> Result<DatasetInfo, WireError> {
    let info = required(info, "info")?;
    Ok(DatasetInfo {
        fingerprint: decode_fingerprint(&info.fingerprint, "info.fingerprint")?,
        num_samples: info.num_samples,
        num_images: info.num_images,
        num_tokens: info.num_tokens,
        processor: decode_processor(required(info.processor, "info.processor")?)?,
    })
}

fn decode_processor(processor: v1::ProcessorSummary) -> Result<ProcessorSummary, WireError> {
    let image_shape = decode_image_shape(&processor)?;
    for (field, values) in [("processor.mean", &processor.mean), ("processor.std", &processor.std)] {
        if values.len() != image_shape.channels as usize {
            return Err(WireError::value(field, format_args!("{} values", image_shape.channels), values.len()));
        }
    }
    let v1::ProcessorSummary { rescale_factor, mean, std, .. } = processor;
    Ok(ProcessorSummary {
        fingerprint: decode_fingerprint(&processor.fingerprint, "processor.fingerprint")?,
        image_shape,
        normalization: ImageNormalization { rescale_factor, mean, std },
        image_mode: processor.image_mode,
        template: processor.template,
        template_date: processor.template_date,
        vocab_size: processor.vocab_size,
        image_token_id: processor.image_token_id,
        pad_token_id: processor.pad_token_id,
        end_of_turn_id: processor.end_of_turn_id,
    })
}

fn decode_image_shape(processor: &v1::ProcessorSummary) -> Result<ImageShape, WireError> {
    let (channels, height, width) = (processor.image_channels, processor.image_height, processor.image_width);
    let extents = [channels, height, width].map(u64::from);
    let elements = extents.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent));
    match elements {
        Some(elements) if elements <= MAX_IMAGE_ELEMENTS => Ok(ImageShape { channels, height, width }),
        _ => {
            let found = format!("{channels}x{height}x{width}");
            Err(WireError::value("processor.image", format_args!("at most {MAX_IMAGE_ELEMENTS} elements"), found))
        }
    }
}
