//! The CPU backend's access to tensor memory.

use candle_core::{CpuStorage, Layout, Storage, Tensor, bail};

/// The values of a contiguous f32 tensor as an op receives them.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("expected a contiguous tensor, found strides {:?}", layout.stride()),
    }
}

/// Like [`contiguous`], writable.
pub(crate) fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(&mut values[start..end]),
        (None, _) => bail!("expected a contiguous tensor, found strides {:?}", layout.stride()),
        (_, storage) => bail!("expected f32, found {:?}", candle_core::backend::BackendStorage::dtype(storage)),
    }
}

/// Calls `body` with the values of a contiguous f32 tensor, without a copy.
pub(crate) fn with_values<R>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(body(contiguous(storage, layout)?)),
        _ => bail!("expected a tensor on the cpu"),
    }
}

/// [`with_values`] for two tensors.
pub(crate) fn with_two<R>(a: &Tensor, b: &Tensor, body: impl FnOnce(&[f32], &[f32]) -> R) -> candle_core::Result<R> {
    with_values(a, |a| with_values(b, |b| body(a, b)))?
}

/// [`with_values`] for three tensors.
pub(crate) fn with_three<R>(
    [a, b, c]: [&Tensor; 3],
    body: impl FnOnce(&[f32], &[f32], &[f32]) -> R,
) -> candle_core::Result<R> {
    with_values(a, |a| with_two(b, c, |b, c| body(a, b, c)))?
}

/// A new f32 tensor shaped like `like`.
pub(crate) fn shaped(values: Vec<f32>, like: &Tensor) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// Calls `body` with the whole memory of an f32 tensor and the layout that finds its elements.
pub(crate) fn with_strided<R>(tensor: &Tensor, body: impl FnOnce(&[f32], &Layout) -> R) -> candle_core::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(body(storage.as_slice::<f32>()?, layout)),
        _ => bail!("expected a tensor on the cpu"),
    }
}
