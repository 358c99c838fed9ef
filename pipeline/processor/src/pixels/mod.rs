//! From encoded bytes to the tower's u8 CHW tensor: decode, orient, convert to RGB, resize, crop.

mod config;
mod convert;
mod decode;
mod filter;
#[expect(unsafe_code, reason = "libjpeg-turbo is C")]
mod jpeg;
mod orientation;
mod raster;
mod resample;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "AVX2 intrinsics")]
mod resample_avx2;
mod transform;

pub(crate) use config::{PREPROCESSOR_FILE, PreprocessorConfig};
pub use decode::{MAX_PIXELS, RgbImage, check_header, decode_rgb};
pub(crate) use jpeg::encode as encode_jpeg;
pub(crate) use transform::to_tensor;
