//! From encoded bytes to the tower's u8 CHW tensor: decode, orient, convert to RGB, pad, resize, crop.

mod config;
mod convert;
mod decode;
mod filter;
mod gif;
mod images;
#[expect(unsafe_code, reason = "libjpeg-turbo is C")]
mod jpeg;
#[cfg(target_arch = "x86_64")]
mod machine;
mod mode;
mod orientation;
mod png;
mod raster;
mod resample;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "AVX2 intrinsics")]
mod resample_avx2;
mod transform;
mod webp;
mod weights;

pub(crate) use config::{PREPROCESSOR_FILE, PreprocessorConfig};
pub(crate) use decode::load_tensor;
pub use decode::{MAX_PIXELS, RgbImage, check_header, decode_rgb};
pub use images::ImageProcessor;
pub(crate) use jpeg::encode as encode_jpeg;
pub use mode::ImageMode;
