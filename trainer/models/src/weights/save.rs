//! Writing of `model.safetensors`, or of its shards and their index.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensorError, View};
use serde_json::json;

use super::{INDEX_FILE, WEIGHTS_FILE};
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
    write_tensors(tensors, path)
}

/// A tensor to be written, made when its turn comes, so that a model larger than the memory can be written.
pub(crate) struct Outgoing<'data> {
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    pub(crate) values: Values<'data>,
}

/// How the values of an outgoing tensor come about.
pub(crate) enum Values<'data> {
    /// The bytes of a mapped file, as they are.
    Mapped(&'data [u8]),
    /// A tensor of the outgoing shape and element type.
    Made(Box<dyn Fn() -> candle_core::Result<Tensor> + 'data>),
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.values {
            Values::Mapped(bytes) => Cow::Borrowed(bytes),
            Values::Made(make) => {
                let tensor = make().expect("shapes and element types were checked before anything is written");
                Cow::Owned(View::data(&tensor).into_owned())
            }
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes tensors into a folder as `transformers` does: one file, or, where they are more than `most` bytes, shards of at
/// most so many (a larger tensor has one of its own) and their index.
pub(crate) fn write_folder<V: View>(
    tensors: Vec<(String, V)>,
    dir: &Path,
    most: Option<u64>,
) -> Result<(), ModelError> {
    let mut shards = cut(tensors, most.unwrap_or(u64::MAX));
    if shards.len() <= 1 {
        return write_tensors(shards.pop().unwrap_or_default(), &dir.join(WEIGHTS_FILE));
    }
    let (count, mut total, mut weight_map) = (shards.len(), 0, BTreeMap::new());
    for (number, shard) in (1..).zip(shards) {
        let file = format!("model-{number:05}-of-{count:05}.safetensors");
        total += shard.iter().map(|(_, tensor)| tensor.data_len()).sum::<usize>();
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
        write_tensors(shard, &dir.join(file))?;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    let path = dir.join(INDEX_FILE);
    fs::write(&path, format!("{index:#}\n")).map_err(|source| ModelError::Write { path, source })
}

/// Tensors in their order, as many together as fit into `most` bytes.
fn cut<V: View>(tensors: Vec<(String, V)>, most: u64) -> Vec<Vec<(String, V)>> {
    let (mut shards, mut room): (Vec<Vec<(String, V)>>, u64) = (Vec::new(), 0);
    for (name, tensor) in tensors {
        let bytes = tensor.data_len() as u64;
        match shards.last_mut().filter(|_| bytes <= room) {
            Some(shard) => shard.push((name, tensor)),
            None => {
                shards.push(vec![(name, tensor)]);
                room = most;
            }
        }
        room = room.saturating_sub(bytes);
    }
    shards
}

/// Tensors that are written only until `stopped` is true: to be followed by [`check_stop`].
pub(crate) fn until<'data>(
    tensors: Vec<(String, Outgoing<'data>)>,
    stopped: &'data dyn Fn() -> bool,
) -> Vec<(String, Until<'data>)> {
    tensors.into_iter().map(|(name, tensor)| (name, Until { tensor, stopped })).collect()
}

/// An error if what was written into `dir` is not whole because `stopped` became true. To remove it is for the caller.
pub(crate) fn check_stop(stopped: &dyn Fn() -> bool, dir: &Path) -> Result<(), ModelError> {
    if stopped() { Err(ModelError::Stopped { dir: dir.to_owned() }) } else { Ok(()) }
}

/// A tensor that has no bytes any more once `stopped` is true: the only way out of the writing of a file.
pub(crate) struct Until<'data> {
    tensor: Outgoing<'data>,
    stopped: &'data dyn Fn() -> bool,
}

impl View for Until<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if (self.stopped)() { Cow::Borrowed(&[]) } else { self.tensor.data() }
    }

    fn data_len(&self) -> usize {
        self.tensor.data_len()
    }
}

/// Writes tensors with the metadata that `transformers` asks for.
pub(crate) fn write_tensors<V: View>(tensors: Vec<(String, V)>, path: &Path) -> Result<(), ModelError> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| {
        let source = match error {
            SafeTensorError::IoError(source) => source,
            other => io::Error::other(other),
        };
        ModelError::Write { path: path.to_owned(), source }
    })
}
