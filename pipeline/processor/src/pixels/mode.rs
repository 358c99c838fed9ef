//! Whose pixels are reproduced.

use serde::{Deserialize, Serialize};

/// Whose pixels are reproduced, bit for bit. Files are decoded as Pillow decodes them in either mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageMode {
    /// Pillow's: what Hugging Face calls slow (PIL) image processors.
    #[default]
    Pillow,
    /// torchvision's for u8 tensors with antialiasing: what Hugging Face calls fast image processors.
    Torchvision,
}

impl ImageMode {
    /// The name in manifests and flags.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pillow => "pillow",
            Self::Torchvision => "torchvision",
        }
    }
}
