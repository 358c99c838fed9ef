//! Writing of `model.safetensors`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensorError, View};

use crate::ModelError;
use crate::params::Params;

/// A parameter on the host, contiguous.
struct HostParam(Tensor);

impl View for HostParam {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values: Vec<f32> = self
            .0
            .flatten_all()
            .and_then(|flat| flat.to_vec1())
            .expect("parameters are f32 and were brought to the host");
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.0.elem_count() * size_of::<f32>()
    }
}

/// Writes every parameter, in name order, with the metadata that `transformers` asks for. Bytes depend on the values
/// alone.
pub(crate) fn save(params: &Params, path: &Path) -> Result<(), ModelError> {
    let mut tensors = Vec::new();
    for (name, tensor, _) in params.iter() {
        tensors.push((name.to_owned(), HostParam(tensor.detach().to_device(&Device::Cpu)?.contiguous()?)));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| {
        let source = match error {
            SafeTensorError::IoError(source) => source,
            other => io::Error::other(other),
        };
        ModelError::Write { path: path.to_owned(), source }
    })
}
