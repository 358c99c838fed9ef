//! A batch from the stream as the model takes it.
//!
//! Shape suffixes: B rows, T columns, N images, C channels, H height, W width.

#![expect(non_snake_case, reason = "tensors carry shape suffixes")]

use candle_core::{Device, Tensor};
use vela_models::ModelBatch;
use vela_types::{Batch, HostTensor, ImageNormalization, ImageShape, ImageTensor, ProcessorSummary};

use crate::error::TrainError;
use crate::features::{FeatureMode, FeatureType};

/// One table per channel: the f32 a u8 pixel becomes. Computed in the order of Hugging Face's image processors: times
/// `rescale_factor` in f64, rounded to f32, then minus mean and over deviation in f32.
#[derive(Clone, Debug)]
pub(crate) struct PixelTable {
    channels: Vec<[f32; 256]>,
}

impl PixelTable {
    pub(crate) fn new(normalization: &ImageNormalization) -> Self {
        let table = |(&mean, &std): (&f64, &f64)| {
            std::array::from_fn(|pixel| {
                let rescaled = (pixel as f64 * normalization.rescale_factor) as f32;
                (rescaled - mean as f32) / std as f32
            })
        };
        Self { channels: normalization.mean.iter().zip(&normalization.std).map(table).collect() }
    }

    /// Images of one extent, at least one, as the f32 tensor the tower takes.
    pub(crate) fn apply_to<'a>(
        &self,
        images: impl IntoIterator<Item = &'a ImageTensor>,
        device: &Device,
    ) -> Result<Tensor, TrainError> {
        let images: Vec<&ImageTensor> = images.into_iter().collect();
        let ImageShape { channels, height, width } = images[0].shape;
        let bytes: Vec<u8> = images.iter().flat_map(|image| image.data.iter().copied()).collect();
        self.apply(&bytes, &[images.len(), channels as usize, height as usize, width as usize], device)
    }

    /// u8 `[N, C, H, W]` bytes as the f32 tensor the tower takes.
    pub(crate) fn apply(&self, bytes: &[u8], shape_NCHW: &[usize], device: &Device) -> Result<Tensor, TrainError> {
        let plane = shape_NCHW.iter().rev().take(2).product::<usize>().max(1);
        let mut values = Vec::with_capacity(bytes.len());
        for (plane, table) in bytes.chunks_exact(plane).zip(self.channels.iter().cycle()) {
            values.extend(plane.iter().map(|&pixel| table[usize::from(pixel)]));
        }
        Ok(Tensor::from_vec(values, shape_NCHW, device)?)
    }
}

/// What the images of a stream are, and so what the model's tower does with them.
#[derive(Clone, Debug)]
pub(crate) enum ImageInput {
    /// Pixels, to be normalised.
    Pixels(PixelTable),
    /// The tower's features: it does nothing.
    Features(FeatureType),
}

impl ImageInput {
    /// What data of the processor summary `data` holds, read with a processor that normalises as `pixels` has it.
    pub(crate) fn of(data: &ProcessorSummary, pixels: &PixelTable) -> Self {
        match FeatureMode::parse(&data.image_mode) {
            Some(mode) => Self::Features(mode.dtype),
            None => Self::Pixels(pixels.clone()),
        }
    }

    pub(crate) fn is_features(&self) -> bool {
        matches!(self, Self::Features(_))
    }

    /// Stored images as the tensor that the model takes: `[N, C, H, W]` of pixels, `[N, image tokens, width]` of features.
    fn apply(&self, bytes: &[u8], shape_NCHW: &[usize], device: &Device) -> Result<Tensor, TrainError> {
        match (self, shape_NCHW) {
            (Self::Features(dtype), &[images, _, tokens, _]) => {
                let values = dtype.to_values(bytes);
                let width = values.len() / (images * tokens).max(1);
                Ok(Tensor::from_vec(values, (images, tokens, width), device)?)
            }
            (Self::Features(_), _) => Err(candle_core::Error::Msg(format!("images of extents {shape_NCHW:?}")).into()),
            (Self::Pixels(pixels), _) => pixels.apply(bytes, shape_NCHW, device),
        }
    }
}

/// Copies a micro-batch to `device` and makes its images what the model takes.
pub(crate) fn to_model_batch(
    batch: &Batch,
    image_tokens: u32,
    images: &ImageInput,
    device: &Device,
) -> Result<ModelBatch, TrainError> {
    let (_, columns) = batch.rows_and_columns();
    let extents = batch.pixels.shape();
    let pixels_NCHW = match extents.first() {
        Some(&count) if count > 0 => Some(images.apply(batch.pixels.data(), extents, device)?),
        _ => None,
    };
    let first_rows = batch.image_spans.iter().map(|span| span.row * columns as u32 + span.start);
    Ok(ModelBatch {
        ids_BT: to_u32(batch, "input_ids", &batch.input_ids, device)?,
        labels: integers(batch, "labels", &batch.labels)?,
        positions_BT: to_u32(batch, "position_ids", &batch.position_ids, device)?,
        documents_BT: to_u32(batch, "document_ids", &batch.document_ids, device)?,
        pixels_NCHW,
        image_rows: first_rows.flat_map(|first| first..first + image_tokens).collect(),
    })
}

fn integers(batch: &Batch, name: &str, tensor: &HostTensor) -> Result<Vec<i32>, TrainError> {
    tensor.to_i32().ok_or_else(|| TrainError::Batch {
        position: batch.position,
        expected: format!("`{name}` of 32-bit integers"),
        found: format!("{:?}", tensor.dtype()),
    })
}

fn to_u32(batch: &Batch, name: &str, tensor: &HostTensor, device: &Device) -> Result<Tensor, TrainError> {
    let values = integers(batch, name, tensor)?;
    let unsigned: Result<Vec<u32>, _> = values.iter().map(|&value| u32::try_from(value)).collect();
    let unsigned = unsigned.map_err(|_| TrainError::Batch {
        position: batch.position,
        expected: format!("`{name}` from 0 up"),
        found: values.iter().min().map_or_else(String::new, i32::to_string),
    })?;
    Ok(Tensor::from_vec(unsigned, tensor.shape(), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_normalised_per_channel() {
        let normalization =
            ImageNormalization { rescale_factor: 1.0 / 255.0, mean: vec![0.5, 0.0, 0.25], std: vec![0.5, 1.0, 0.25] };
        let table = PixelTable::new(&normalization);
        let bytes: Vec<u8> = [255, 0, 51, 255, 0, 255].into_iter().chain([0; 6]).collect();
        let tensor = table.apply(&bytes, &[2, 3, 1, 2], &Device::Cpu).expect("two images");
        assert_eq!(tensor.dims(), [2, 3, 1, 2]);
        let values: Vec<f32> = tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32");
        assert_eq!(values, [1.0, -1.0, 0.2, 1.0, -1.0, 3.0, -1.0, -1.0, 0.0, 0.0, -1.0, -1.0]);
    }
}
