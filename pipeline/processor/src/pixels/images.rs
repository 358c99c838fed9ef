//! A tower's image settings without the rest of a processor.

use vela_types::ImageShape;

use crate::ProcessorError;

use super::{ImageMode, PreprocessorConfig, load_tensor};

/// What a `preprocessor_config.json` makes of image files, without a tokenizer: the same pixels as those of a
/// [`Processor`](crate::Processor) whose folder holds that file.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    config: PreprocessorConfig,
}

impl ImageProcessor {
    /// Reads and checks the text of a `preprocessor_config.json`.
    ///
    /// # Errors
    /// If it is malformed or asks for what is not supported.
    pub fn parse(preprocessor_config: &[u8], mode: ImageMode) -> Result<Self, ProcessorError> {
        PreprocessorConfig::parse(preprocessor_config, mode).map(|config| Self { config })
    }

    /// Extent of every result.
    pub fn shape(&self) -> ImageShape {
        self.config.shape
    }

    /// Decodes a file by its first bytes, sets it upright, makes it RGB, pads, resizes and crops it: u8,
    /// channel-height-width of [`ImageProcessor::shape`]. `name` is for messages.
    ///
    /// # Errors
    /// The image variants of [`ProcessorError`].
    pub fn tensor(&self, encoded: &[u8], name: &str) -> Result<Vec<u8>, ProcessorError> {
        load_tensor(encoded, name, &self.config)
    }
}
