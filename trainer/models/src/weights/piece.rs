//! What becomes of a mapped tensor on its way into another file: some of its rows, merged with an adapter, grown by
//! rows, in another element type. Nothing is computed before its turn to be written.

use std::ops::Range;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, tensor::TensorView};

use super::dtype;
use super::save::{Outgoing, Values};
use crate::ModelError;

/// Element type of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32 bits.
    F32,
    /// 16 bits with the range of `f32`.
    Bf16,
    /// 16 bits, IEEE half.
    F16,
}

impl WeightDtype {
    const ALL: [(Self, &'static str); 3] = [(Self::F32, "f32"), (Self::Bf16, "bf16"), (Self::F16, "f16")];

    /// As `transformers` calls it.
    pub(crate) fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    pub(crate) fn of_file(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    fn of_tensor(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    fn of_view(view: &TensorView<'_>) -> Self {
        match dtype(view.dtype()) {
            Some(DType::BF16) => Self::Bf16,
            Some(DType::F16) => Self::F16,
            _ => Self::F32,
        }
    }
}

impl FromStr for WeightDtype {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found
            .map(|(dtype, _)| *dtype)
            .ok_or_else(|| ModelError::input("element type", "`f32`, `bf16` or `f16`", format!("`{text}`")))
    }
}

/// A mapped tensor, or some of its rows, and what is added to it.
#[derive(Clone)]
pub(crate) struct Piece<'data> {
    view: TensorView<'data>,
    rows: Range<usize>,
    adapter: Option<Added<'data>>,
    grown: usize,
}

/// An adapter to merge: `scale * B A`.
#[derive(Clone)]
struct Added<'data> {
    a: TensorView<'data>,
    b: TensorView<'data>,
    scale: f32,
}

impl<'data> Piece<'data> {
    pub(crate) fn whole(view: TensorView<'data>) -> Self {
        let rows = 0..view.shape().first().copied().unwrap_or(1);
        Self { view, rows, adapter: None, grown: 0 }
    }

    /// Merged with `scale * B A`.
    pub(crate) fn merged(self, a: TensorView<'data>, b: TensorView<'data>, scale: f32) -> Self {
        Self { adapter: Some(Added { a, b, scale }), ..self }
    }

    /// A third of the rows each.
    pub(crate) fn thirds(&self) -> [Self; 3] {
        let third = self.rows.len() / 3;
        [0, 1, 2].map(|part| {
            let start = self.rows.start + part * third;
            Self { rows: start..start + third, ..self.clone() }
        })
    }

    /// `rows` more rows, each the mean of those that are there.
    pub(crate) fn grown(self, rows: usize) -> Self {
        Self { grown: rows, ..self }
    }

    /// In `dtype`, else as it is in its file.
    pub(crate) fn outgoing(self, dtype: Option<WeightDtype>) -> Outgoing<'data> {
        let own = WeightDtype::of_view(&self.view);
        let wanted = dtype.unwrap_or(own);
        let mut shape = self.view.shape().to_vec();
        if let Some(first) = shape.first_mut() {
            *first = self.rows.len() + self.grown;
        }
        let plain = self.adapter.is_none() && self.grown == 0 && wanted == own;
        let values = match plain {
            true => Values::Mapped(bytes_of(&self.view, &self.rows)),
            false => Values::Made(Box::new(move || self.make(wanted.of_tensor()))),
        };
        Outgoing { shape, dtype: wanted.of_file(), values }
    }

    fn make(&self, dtype: DType) -> candle_core::Result<Tensor> {
        let mut tensor = f32_rows(&self.view, &self.rows)?;
        if let Some(Added { a, b, scale }) = &self.adapter {
            let every = 0..a.shape()[0];
            let delta = f32_rows(b, &self.rows)?.matmul(&f32_rows(a, &every)?)?;
            tensor = (tensor + (delta * f64::from(*scale))?)?;
        }
        if self.grown > 0 {
            let mean = tensor.mean_keepdim(0)?.repeat((self.grown, 1))?;
            tensor = Tensor::cat(&[&tensor, &mean], 0)?;
        }
        tensor.to_dtype(dtype)
    }
}

/// The bytes of some rows.
fn bytes_of<'data>(view: &TensorView<'data>, rows: &Range<usize>) -> &'data [u8] {
    let all = view.shape().first().copied().unwrap_or(1).max(1);
    let width = view.data().len() / all;
    &view.data()[rows.start * width..rows.end * width]
}

fn f32_rows(view: &TensorView<'_>, rows: &Range<usize>) -> candle_core::Result<Tensor> {
    let mut shape = view.shape().to_vec();
    if let Some(first) = shape.first_mut() {
        *first = rows.len();
    }
    let own = dtype(view.dtype()).unwrap_or(DType::F32);
    Tensor::from_raw_buffer(bytes_of(view, rows), own, &shape, &Device::Cpu)?.to_dtype(DType::F32)
}

/// Values that come from no file: `tensor`, in `dtype` or f32.
pub(crate) fn made(tensor: Tensor, dtype: Option<WeightDtype>) -> Outgoing<'static> {
    let wanted = dtype.unwrap_or(WeightDtype::F32);
    let shape = tensor.dims().to_vec();
    let make = move || tensor.to_dtype(wanted.of_tensor());
    Outgoing { shape, dtype: wanted.of_file(), values: Values::Made(Box::new(make)) }
}

/// The element type of all of `tensors`, or f32 if they have several.
pub(crate) fn shared_dtype(tensors: &[(String, Outgoing<'_>)]) -> WeightDtype {
    let is_all = |dtype: WeightDtype| tensors.iter().all(|(_, tensor)| tensor.dtype == dtype.of_file());
    WeightDtype::ALL.iter().map(|(dtype, _)| *dtype).find(|dtype| is_all(*dtype)).unwrap_or(WeightDtype::F32)
}
