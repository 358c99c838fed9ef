//! What can be wrong with the inputs of an op.

use candle_core::{DType, Tensor};

/// The result of an op.
pub type Result<T> = std::result::Result<T, KernelError>;

/// Why an op refused its inputs or failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A tensor's shape, or a slice's length, does not fit the others.
    #[error("`{op}`: expected {expected}, found {found}")]
    Shape {
        /// The op.
        op: &'static str,
        /// The shape or length that fits, with the argument's name.
        expected: String,
        /// The shape or length given.
        found: String,
    },
    /// A tensor's element type is not the one the op computes in.
    #[error("`{op}`: expected `{name}` of dtype {expected:?}, found {found:?}; convert it first")]
    Dtype {
        /// The op.
        op: &'static str,
        /// The argument.
        name: &'static str,
        /// The dtype the op computes in.
        expected: DType,
        /// The dtype given.
        found: DType,
    },
    /// The op has no code for the tensor's device in this build.
    #[error("`{op}` is not built for this device: expected `{name}` on the cpu, found {found}")]
    Device {
        /// The op.
        op: &'static str,
        /// The argument.
        name: &'static str,
        /// The device's location.
        found: String,
    },
    /// A row, token id, label or position beyond the table it points into.
    #[error("`{op}`: expected each of `{name}` below {limit}, found {found} at index {index}")]
    Index {
        /// The op.
        op: &'static str,
        /// The argument that holds the index.
        name: &'static str,
        /// The number of rows of the table.
        limit: usize,
        /// The value found.
        found: i64,
        /// Where in the argument it was found (flat).
        index: usize,
    },
    /// Candle could not allocate, copy, multiply or differentiate.
    #[error("`{op}` failed in candle")]
    Candle {
        /// The op.
        op: &'static str,
        /// Candle's account.
        #[source]
        source: candle_core::Error,
    },
}

/// Adds the op's name to a candle error.
pub(crate) trait InOp<T> {
    fn in_op(self, op: &'static str) -> Result<T>;
}

impl<T> InOp<T> for candle_core::Result<T> {
    fn in_op(self, op: &'static str) -> Result<T> {
        self.map_err(|source| KernelError::Candle { op, source })
    }
}

/// Refuses a tensor that is not `dtype` on the CPU.
pub(crate) fn check_cpu(op: &'static str, name: &'static str, tensor: &Tensor, dtype: DType) -> Result<()> {
    if !tensor.device().is_cpu() {
        return Err(KernelError::Device { op, name, found: format!("{:?}", tensor.device().location()) });
    }
    if tensor.dtype() != dtype {
        return Err(KernelError::Dtype { op, name, expected: dtype, found: tensor.dtype() });
    }
    Ok(())
}

/// Refuses a tensor that is not f32 on the CPU.
pub(crate) fn check_f32(op: &'static str, name: &'static str, tensor: &Tensor) -> Result<()> {
    check_cpu(op, name, tensor, DType::F32)
}

/// Refuses a tensor whose shape is not `dims`.
pub(crate) fn check_dims(op: &'static str, name: &'static str, tensor: &Tensor, dims: &[usize]) -> Result<()> {
    if tensor.dims() == dims {
        return Ok(());
    }
    Err(KernelError::Shape { op, expected: format!("`{name}` {dims:?}"), found: format!("{:?}", tensor.dims()) })
}

/// The size of the last dimension; refuses a scalar.
pub(crate) fn last_dim(op: &'static str, name: &'static str, tensor: &Tensor) -> Result<usize> {
    tensor.dims().last().copied().ok_or_else(|| KernelError::Shape {
        op,
        expected: format!("`{name}` of at least one dimension"),
        found: "a scalar".to_owned(),
    })
}
