//! Weights in safetensors files, or in those of `torch.save`: mapped, matched name by name against what the config asks for, converted to f32; and
//! written back under the names `transformers` 4 and 5 both open.

mod map;
mod names;
mod pickle;
mod piece;
mod save;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;

use crate::params::{PARAM_DTYPE, Param, ParamSpec, Params};
use crate::{ModelError, WeightProblem};
use map::MappedFile;
pub(crate) use names::HEAD_NAME;
pub use names::Layout;
pub use piece::WeightDtype;
pub(crate) use piece::{Piece, made, shared_dtype};
pub(crate) use save::{Outgoing, check_stop, save, until, write_folder, write_tensors};

/// The file of an unsharded folder.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// Files of a folder, the first that is there: the list of its shards, or the one file.
const WHOLE_FILES: [(&str, &str); 2] =
    [(INDEX_FILE, WEIGHTS_FILE), ("pytorch_model.bin.index.json", "pytorch_model.bin")];
/// What other files of `torch.save` end with.
const PICKLED: &str = "pth";
/// The embedding tables of the families.
const EMBEDDING_NAMES: [&str; 2] =
    ["language_model.model.embed_tokens.weight", "language_model.transformer.wte.weight"];

/// Parameters that start fresh although folders with weights are given.
#[derive(Clone, Copy)]
pub struct Fresh<'a> {
    /// Whether the parameter of this name starts fresh; what a folder has under it is passed over.
    pub names: &'a dyn Fn(&str) -> bool,
    /// Seed they are drawn from.
    pub seed: u64,
}

impl Fresh<'_> {
    /// Every parameter comes from a folder.
    pub const NONE: Fresh<'static> = Fresh { names: &|_| false, seed: 0 };
}

/// A tensor in a file, under its canonical name elsewhere.
struct Found<'data> {
    file: &'data Path,
    name: String,
    view: TensorView<'data>,
}

/// The opened weight files of some folders.
pub(crate) struct Files<'a> {
    folders: &'a [(Layout, &'a Path)],
    mapped: Vec<(Layout, MappedFile)>,
}

/// Where a parameter comes from.
pub(crate) enum Origin<'data> {
    /// A tensor of a file, of the parameter's shape.
    File(TensorView<'data>),
    /// A seed.
    Fresh,
}

impl<'a> Files<'a> {
    /// Maps every weight file of the folders.
    pub(crate) fn open(folders: &'a [(Layout, &'a Path)]) -> Result<Self, ModelError> {
        let mut mapped = Vec::new();
        for (layout, dir) in folders {
            for path in weight_files(dir)? {
                mapped.push((*layout, MappedFile::open(&path)?));
            }
        }
        Ok(Self { folders, mapped })
    }

    /// The origin of every parameter of `specs`.
    ///
    /// Errors: [`ModelError::Weights`] lists all missing, unexpected, doubled and misshapen tensors at once.
    pub(crate) fn resolve<'data>(
        &'data self,
        specs: &BTreeMap<String, ParamSpec>,
        fresh: Fresh<'_>,
    ) -> Result<BTreeMap<String, Origin<'data>>, ModelError> {
        let mut problems = Vec::new();
        let found = match_names(&self.mapped, fresh, &mut problems)?;
        check_unexpected(specs, &found, &mut problems);
        let mut origins = BTreeMap::new();
        for (name, spec) in specs {
            if (fresh.names)(name) {
                origins.insert(name.clone(), Origin::Fresh);
            } else if let Some(tensor) = found.get(name) {
                match fits(spec, tensor) {
                    Ok(view) => _ = origins.insert(name.clone(), Origin::File(view.clone())),
                    Err(problem) => problems.push(problem),
                }
            } else {
                let (file, found) = (missing_from(name, self.folders), "no such tensor".to_owned());
                problems.push(WeightProblem { file, name: name.clone(), expected: expected(spec), found });
            }
        }
        if problems.is_empty() {
            return Ok(origins);
        }
        problems.sort_by(|left, right| left.name.cmp(&right.name));
        Err(ModelError::Weights { problems })
    }
}

/// Loads every parameter of `specs`; errors as [`Files::resolve`].
pub(crate) fn load(
    specs: &BTreeMap<String, ParamSpec>,
    folders: &[(Layout, &Path)],
    fresh: Fresh<'_>,
    trainable: &dyn Fn(&str) -> bool,
    device: &Device,
) -> Result<Params, ModelError> {
    let files = Files::open(folders)?;
    let mut entries = BTreeMap::new();
    for (name, origin) in files.resolve(specs, fresh)? {
        let spec = &specs[&name];
        let tensor = match origin {
            Origin::Fresh => {
                let values = spec.init.draw(fresh.seed, &name, spec.shape.iter().product());
                Tensor::from_vec(values, spec.shape.as_slice(), device)?
            }
            Origin::File(view) => to_tensor(&view, device)?,
        };
        let param = Param::new(tensor, spec.used && trainable(&name))?;
        entries.insert(name, param);
    }
    Ok(Params::new(entries))
}

/// The weight files of a folder: the shards of the index, or the one file; of `torch.save` only where there is no safetensors file.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    for (index, single) in WHOLE_FILES.map(|(index, single)| (dir.join(index), dir.join(single))) {
        if index.is_file() {
            return shards_of(index, dir);
        }
        if single.is_file() {
            return Ok(vec![single]);
        }
    }
    let error = |source| ModelError::Read { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|extension| extension == PICKLED) {
            files.push(path);
        }
    }
    match files.len() {
        1 => Ok(files),
        found => Err(ModelError::NoWeights { dir: dir.to_owned(), found }),
    }
}

/// The files that an index names.
fn shards_of(index_path: PathBuf, dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read(&index_path).map_err(|source| ModelError::Read { path: index_path.clone(), source })?;
    let index: Index = serde_json::from_slice(&text).map_err(|source| ModelError::Json { path: index_path, source })?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

/// Every tensor of the files by canonical name, less those that no model of ours has (buffers, the text half of CLIP).
fn match_names<'data>(
    files: &'data [(Layout, MappedFile)],
    fresh: Fresh<'_>,
    problems: &mut Vec<WeightProblem>,
) -> Result<BTreeMap<String, Found<'data>>, ModelError> {
    let mut found: BTreeMap<String, Found<'data>> = BTreeMap::new();
    for (layout, file) in files {
        for (name, view) in file.tensors()? {
            let Some(canonical) = layout.canonical(&name).filter(|canonical| !(fresh.names)(canonical)) else {
                continue;
            };
            if let Some(other) = found.get(&canonical) {
                let expected = format!("once, as `{}` of `{}`", other.name, other.file.display());
                problems.push(WeightProblem {
                    file: file.path().to_owned(),
                    name,
                    expected,
                    found: "twice".to_owned(),
                });
                continue;
            }
            found.insert(canonical, Found { file: file.path(), name, view });
        }
    }
    Ok(found)
}

/// Whether the parameter is the table of token embeddings.
pub(crate) fn is_embedding(name: &str) -> bool {
    EMBEDDING_NAMES.contains(&name)
}

/// Notes tensors that the config does not ask for. The head of a tied model may stand in the file if it is the
/// embedding table.
fn check_unexpected(
    specs: &BTreeMap<String, ParamSpec>,
    found: &BTreeMap<String, Found<'_>>,
    problems: &mut Vec<WeightProblem>,
) {
    for (canonical, tensor) in found.iter().filter(|(canonical, _)| !specs.contains_key(*canonical)) {
        let table = EMBEDDING_NAMES.iter().find_map(|name| found.get(*name));
        let is_head = canonical == HEAD_NAME;
        if is_head && table.is_some_and(|table| table.view.data() == tensor.view.data()) {
            continue;
        }
        let expected = if is_head { "the embedding table's values (`tie_word_embeddings`)" } else { "no such tensor" };
        problems.push(WeightProblem {
            file: tensor.file.to_owned(),
            name: tensor.name.clone(),
            expected: expected.to_owned(),
            found: describe(&tensor.view),
        });
    }
}

/// The tensor of a file, if it has the shape and an element type of the parameter.
fn fits<'found, 'data>(
    spec: &ParamSpec,
    tensor: &'found Found<'data>,
) -> Result<&'found TensorView<'data>, WeightProblem> {
    if tensor.view.shape() == spec.shape && dtype(tensor.view.dtype()).is_some() {
        return Ok(&tensor.view);
    }
    let (file, name) = (tensor.file.to_owned(), tensor.name.clone());
    Err(WeightProblem { file, name, expected: expected(spec), found: describe(&tensor.view) })
}

fn expected(spec: &ParamSpec) -> String {
    format!("{:?}, f32, bf16 or f16", spec.shape)
}

/// The folder that should have had the parameter.
fn missing_from(name: &str, folders: &[(Layout, &Path)]) -> PathBuf {
    let holder = folders.iter().find(|(layout, _)| layout.holds(name)).or(folders.first());
    holder.map_or_else(PathBuf::new, |(_, dir)| dir.to_path_buf())
}

fn describe(view: &TensorView<'_>) -> String {
    format!("{:?} {}", view.shape(), format!("{:?}", view.dtype()).to_lowercase())
}

/// The element type, if parameters may have it.
pub(crate) fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        _ => None,
    }
}

fn to_tensor(view: &TensorView<'_>, device: &Device) -> Result<Tensor, ModelError> {
    let dtype = dtype(view.dtype()).unwrap_or(PARAM_DTYPE);
    let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), device)?;
    Ok(tensor.to_dtype(PARAM_DTYPE)?)
}
