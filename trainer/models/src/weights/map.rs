//! Mapping of weight files: the only unsafe code of the crate.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::pickle::{self, StoredTensor};
use crate::ModelError;

/// A weight file in the address space, read page by page as its tensors are used.
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
    /// Of a file of `torch.save`.
    pickled: Option<Vec<StoredTensor>>,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let error = |source| ModelError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        #[expect(unsafe_code, reason = "weights are gigabytes; mapping reads them once, without a copy of the file")]
        // SAFETY: weight files are written once and replaced by rename, never changed in place while they are read;
        // the map is read-only and lives as long as every slice taken from it.
        let map = unsafe { Mmap::map(&file) }.map_err(error)?;
        let pickled = match path.extension().is_some_and(|extension| extension == "safetensors") {
            true => None,
            false => Some(pickle::read(&map).map_err(|what| ModelError::Pickle { path: path.to_owned(), what })?),
        };
        Ok(Self { path: path.to_owned(), map, pickled })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors of the file; a truncated or foreign file is an error.
    pub(super) fn tensors(&self) -> Result<Vec<(String, TensorView<'_>)>, ModelError> {
        if let Some(stored) = &self.pickled {
            return Ok(stored.iter().map(|tensor| (tensor.name.clone(), tensor.view(&self.map))).collect());
        }
        let (path, bytes) = (&self.path, self.map.len());
        let file = SafeTensors::deserialize(&self.map);
        let file = file.map_err(|source| ModelError::SafeTensors { path: path.clone(), bytes, source })?;
        Ok(file.tensors())
    }
}
