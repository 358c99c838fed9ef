//! Weights that `torch.save` wrote (`pytorch_model.bin`, `.pth`): a state dict in a zip archive. No code of the file is
//! run; a tensor of plain strides is a range of the mapped file, another is gathered into memory.

mod archive;
mod machine;

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use machine::Value;

/// What every zip archive begins with.
const ZIP: &[u8] = b"PK\x03\x04";
/// Where training scripts put the state dict, if the file has more than it.
const NESTED: [&str; 4] = ["state_dict", "model", "model_state_dict", "module"];

/// A tensor of a file.
pub(super) struct StoredTensor {
    pub(super) name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    place: Place,
}

enum Place {
    /// These bytes of the file.
    Mapped(Range<usize>),
    /// Strided in the file; row-major here.
    Gathered(Vec<u8>),
}

impl StoredTensor {
    /// `bytes` are the file's.
    pub(super) fn view<'data>(&'data self, bytes: &'data [u8]) -> TensorView<'data> {
        let data = match &self.place {
            Place::Mapped(range) => &bytes[range.clone()],
            Place::Gathered(values) => values,
        };
        TensorView::new(self.dtype, self.shape.clone(), data).expect("shape and bytes were compared when it was found")
    }
}

/// The tensors of a file. `Err` says what was expected, what was found, and what helps.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<StoredTensor>, String> {
    if !bytes.starts_with(ZIP) {
        return Err("expected a zip archive of `torch.save`, found another kind of file; one of PyTorch before 1.6 becomes one by \
                    `torch.save(torch.load(FILE), FILE)`"
            .to_owned());
    }
    let entries = archive::entries(bytes)?;
    let found = entries.keys().filter(|name| name.rsplit('/').next() == Some("data.pkl")).collect::<Vec<_>>();
    let [pickle] = found[..] else {
        return Err(format!("expected one entry `data.pkl`, found {}", found.len()));
    };
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = entries.get(&format!("{folder}byteorder"))
        && &bytes[order.clone()] != b"little"
    {
        return Err("expected little-endian numbers, found another `byteorder`".to_owned());
    }
    let root = machine::run(&bytes[entries[pickle].clone()])?;
    let file = PickledFile { bytes, entries: &entries, folder };
    let named = state_dict(&root)?;
    named.into_iter().map(|(name, value)| file.tensor(&name, &value)).collect()
}

/// Names and values of the state dict: the whole object, or what stands under one of the usual names.
fn state_dict(root: &Value) -> Result<Vec<(String, Value)>, String> {
    let found = items(root).ok_or("expected a dictionary of tensors, found another object")?;
    if found.iter().any(|(_, value)| call_of_tensor(value).is_some()) {
        return Ok(found);
    }
    let holds =
        |value: &Value| items(value).filter(|items| items.iter().any(|(_, item)| call_of_tensor(item).is_some()));
    let mut nested =
        found.iter().filter(|(name, _)| NESTED.contains(&name.as_str())).filter_map(|(_, value)| holds(value));
    match (nested.next(), nested.next()) {
        (Some(inner), None) => Ok(inner),
        (one, _) => {
            let keys = found.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let places = NESTED.map(|name| format!("`{name}`")).join(", ");
            let found = if one.is_some() { "several" } else { "none" };
            Err(format!("expected tensors by name, at the top or under one of {places}; found {found} among {keys}"))
        }
    }
}

/// Texts and values of a dictionary; a later value of a name takes the place of an earlier one, as in Python.
fn items(value: &Value) -> Option<Vec<(String, Value)>> {
    let Value::Dict(dict) = value else { return None };
    let mut items = BTreeMap::new();
    for (key, value) in dict.borrow().iter() {
        items.insert(key.text()?.to_owned(), value.clone());
    }
    Some(items.into_iter().collect())
}

/// The arguments of `torch._utils._rebuild_tensor_v2` for a tensor or a parameter.
fn call_of_tensor(value: &Value) -> Option<Value> {
    let Value::Call(call) = value else { return None };
    let (callable, arguments) = (call.0.class()?, call.1.tuple()?);
    match callable {
        "torch._utils._rebuild_tensor_v2" => Some(call.1.clone()),
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
            call_of_tensor(arguments.first()?)
        }
        // A subclass: what makes the tensor, the subclass, and the arguments.
        "torch._tensor._rebuild_from_type_v2" => {
            call_of_tensor(&Value::Call((arguments.first()?.clone(), arguments.get(2)?.clone()).into()))
        }
        _ => None,
    }
}

struct PickledFile<'a> {
    bytes: &'a [u8],
    entries: &'a BTreeMap<String, Range<usize>>,
    /// What the names of entries begin with.
    folder: &'a str,
}

/// A storage that tensors share.
struct Storage {
    dtype: Dtype,
    data: Range<usize>,
}

impl PickledFile<'_> {
    fn tensor(&self, name: &str, value: &Value) -> Result<StoredTensor, String> {
        let arguments =
            call_of_tensor(value).ok_or_else(|| format!("expected a tensor as `{name}`, found another object"))?;
        let arguments = arguments.tuple().unwrap_or_default();
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(format!("`{name}`: expected storage, offset, shape and strides, found fewer"));
        };
        let storage = self.storage(storage).map_err(|what| format!("`{name}`: {what}"))?;
        let sizes = |value: &Value| -> Option<Vec<usize>> { value.tuple()?.iter().map(Value::size).collect() };
        let numbers = offset.size().zip(sizes(shape)).zip(sizes(strides));
        let outside = || format!("`{name}`: expected shape and strides within its storage, found others");
        let ((offset, shape), strides) = numbers.ok_or_else(outside)?;
        let place = self.place(&storage, offset, &shape, &strides).ok_or_else(outside)?;
        Ok(StoredTensor { name: name.to_owned(), dtype: storage.dtype, shape, place })
    }

    /// `("storage", class, key, device, length)` of a persistent id.
    fn storage(&self, value: &Value) -> Result<Storage, String> {
        let parts = match value {
            Value::Outside(id) => id.tuple().unwrap_or_default(),
            _ => &[],
        };
        let [kind, class, key, _, _] = parts else { return Err("expected a storage, found another object".to_owned()) };
        let (Some("storage"), Some(class), Some(key)) = (kind.text(), class.class(), key.text()) else {
            return Err("expected a storage of one element type, found another".to_owned());
        };
        let dtype = element_type(class).ok_or_else(|| format!("expected numbers, found a `{class}`"))?;
        let entry = format!("{}data/{key}", self.folder);
        let data = self.entries.get(&entry).ok_or_else(|| format!("expected the entry `{entry}`, found no such"))?;
        Ok(Storage { dtype, data: data.clone() })
    }

    /// `None` if it reaches beyond the storage, or the numbers contradict one another.
    fn place(&self, storage: &Storage, offset: usize, shape: &[usize], strides: &[usize]) -> Option<Place> {
        let size = storage.dtype.bitsize() / 8;
        let count = shape.iter().try_fold(1usize, |count, extent| count.checked_mul(*extent))?;
        (shape.len() == strides.len()).then_some(())?;
        if count == 0 {
            return Some(Place::Gathered(Vec::new()));
        }
        let steps = shape.iter().zip(strides);
        let last = steps
            .clone()
            .try_fold(offset, |last, (extent, stride)| last.checked_add((extent - 1).checked_mul(*stride)?))?;
        // No element stands for several, so there are no more of them than the storage has.
        let needed = last.checked_add(1)?.max(count).checked_mul(size)?;
        (needed <= storage.data.len()).then_some(())?;
        let start = storage.data.start + offset * size;
        let mut row_major = 1;
        let is_plain = steps.rev().all(|(extent, stride)| {
            let follows = *extent == 1 || *stride == row_major;
            row_major *= extent;
            follows
        });
        match is_plain {
            true => Some(Place::Mapped(start..start + count * size)),
            false => Some(Place::Gathered(gathered(&self.bytes[start..storage.data.end], shape, strides, size))),
        }
    }
}

/// The elements of `size` bytes in row-major order; the first is at the start of `bytes`.
fn gathered(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let (mut values, mut index) = (Vec::with_capacity(shape.iter().product::<usize>() * size), vec![0; shape.len()]);
    loop {
        let at: usize = index.iter().zip(strides).map(|(index, stride)| index * stride).sum();
        values.extend_from_slice(&bytes[at * size..][..size]);
        let Some(axis) = (0..shape.len()).rev().find(|&axis| index[axis] + 1 < shape[axis]) else { return values };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

fn element_type(class: &str) -> Option<Dtype> {
    let name = class.strip_prefix("torch.")?.strip_suffix("Storage")?;
    Some(match name {
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Double" => Dtype::F64,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::BOOL,
        _ => return None,
    })
}
