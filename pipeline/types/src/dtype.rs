//! Element types that cross a file or a wire.

use serde::{Deserialize, Serialize};

/// The element type of a [`HostTensor`](crate::HostTensor), always little-endian in memory and on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// Unsigned byte: pixels after resize and crop.
    U8,
    /// Signed 32-bit integer: ids, labels, positions.
    I32,
    /// Half-width brain float: precomputed features.
    Bf16,
    /// Single precision.
    F32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_in_bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
        }
    }
}
