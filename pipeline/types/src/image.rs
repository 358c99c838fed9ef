//! Where an image is, and what it is once processed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Fingerprint;

/// Where a raw image is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRef {
    /// A file, absolute or relative to where the process runs: sources have already joined their image folder.
    Path(String),
    /// A network address that no local file was mapped to.
    Url(String),
    /// The encoded file itself, with the name it had in its container.
    Bytes {
        /// Name for messages.
        name: String,
        /// The encoded bytes (JPEG, PNG, ...).
        data: Bytes,
    },
}

impl ImageRef {
    /// What messages and reject rows call the image.
    pub fn name(&self) -> &str {
        match self {
            Self::Path(name) | Self::Url(name) | Self::Bytes { name, .. } => name,
        }
    }

    /// Bytes that the reference itself holds: the encoded file, or none.
    pub fn embedded_bytes(&self) -> usize {
        match self {
            Self::Path(_) | Self::Url(_) => 0,
            Self::Bytes { data, .. } => data.len(),
        }
    }
}

/// Channels, height and width of a processed image, in that order of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageShape {
    /// Colour planes; 3 for RGB.
    pub channels: u32,
    /// Rows of pixels.
    pub height: u32,
    /// Pixels in a row.
    pub width: u32,
}

impl ImageShape {
    /// Elements of one image; bytes too, for u8 pixels.
    pub const fn num_elements(self) -> usize {
        self.channels as usize * self.height as usize * self.width as usize
    }
}

/// One processed image: u8 pixels, channel-height-width, after resize and crop and before mean and deviation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageTensor {
    /// Extent of `data`.
    pub shape: ImageShape,
    /// `shape.num_elements()` bytes.
    pub data: Bytes,
    /// blake3 of `data`: images equal in every pixel share it, and a shard stores them once.
    pub hash: Fingerprint,
}
