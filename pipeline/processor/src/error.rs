//! What can go wrong in a processor: wrong files at load time, unusable samples at work.

use std::path::PathBuf;

use vela_types::SampleFault;

/// Any failure of a processor. [`ProcessorError::cause`] is the key under which a reject list counts it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// A file of the processor's folder could not be read or written.
    #[error("processor file `{}` could not be accessed", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file that a processor needs is absent.
    #[error("processor folder `{}`: expected {expected}, found none", dir.display())]
    MissingFile {
        /// The folder.
        dir: PathBuf,
        /// Which file or files would do.
        expected: &'static str,
    },
    /// A file is not the JSON that it should be.
    #[error("processor file `{file}` is not valid JSON of its kind")]
    Json {
        /// The file's name.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A setting has a value that this processor cannot honour.
    #[error("processor file `{file}`, key `{key}`: expected {expected}, found `{found}`")]
    Setting {
        /// The file's name.
        file: &'static str,
        /// The key.
        key: String,
        /// What would do.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// The tokenizer library refused its files or a text.
    #[error("tokenizer failed at {step}")]
    Tokenizer {
        /// What was being done.
        step: String,
        /// The library's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The chat template does not compile or does not render.
    #[error("chat template failed to {step}")]
    Template {
        /// `compile` or `render`.
        step: &'static str,
        /// The engine's reason, with the line.
        source: minijinja::Error,
    },
    /// The template changes or drops what the assistant says, so that labels cannot be placed.
    #[error(
        "chat template alters assistant turns: {detail}; labels need each answer verbatim (outer whitespace aside)"
    )]
    AlteredAnswer {
        /// What was expected and found.
        detail: String,
    },
    /// The template does not close an assistant turn with a token of the tokenizer's added vocabulary.
    #[error("chat template: expected an end-of-turn token after the answer, found `{found}`")]
    NoEndOfTurn {
        /// The text after the answer.
        found: String,
    },
    /// The sample breaks an invariant of its type.
    #[error("sample is not trainable")]
    Sample {
        /// Which invariant.
        #[from]
        source: SampleFault,
    },
    /// No token would be trained on.
    #[error("no token carries a label")]
    NoLabels,
    /// Even the first question and answer exceed the limit.
    #[error("expected at most {max_length} tokens, found {found} in the first question and answer")]
    TooLong {
        /// Tokens of the shortest form.
        found: usize,
        /// The limit.
        max_length: usize,
    },
    /// The rendering holds another number of image tokens than the sample has images.
    #[error("expected {expected} image tokens after rendering, found {found}")]
    ImageTokens {
        /// Images of the sample.
        expected: usize,
        /// Image tokens among the ids.
        found: usize,
    },
    /// The image file is not there.
    #[error("image `{name}` is missing")]
    MissingImage {
        /// The image.
        name: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The image is known by its network address only.
    #[error("image `{name}` is a network address: fetch it first, or name the folder that holds it")]
    RemoteImage {
        /// The address.
        name: String,
    },
    /// The image file cannot be read.
    #[error("image `{name}` could not be read")]
    UnreadableImage {
        /// The image.
        name: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file has no bytes, or the picture no pixels.
    #[error("image `{name}` is empty")]
    EmptyImage {
        /// The image.
        name: String,
    },
    /// The first bytes are those of no supported format.
    #[error("image `{name}`: expected JPEG, PNG, GIF, WebP, BMP or TIFF, not an image: starts with `{}`", head.escape_ascii())]
    UnknownImageFormat {
        /// The image.
        name: String,
        /// Its first bytes.
        head: Vec<u8>,
    },
    /// The file ends before its picture does.
    #[error("image `{name}` is truncated")]
    TruncatedImage {
        /// The image.
        name: String,
    },
    /// The picture has more pixels than the limit, which is checked before memory is taken.
    #[error("image `{name}`: expected at most {limit} pixels, found {width} x {height}")]
    ImageTooLarge {
        /// The image.
        name: String,
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit, in pixels.
        limit: u64,
    },
    /// The file is of a known format and cannot be decoded.
    #[error("image `{name}` is damaged: {detail}")]
    DamagedImage {
        /// The image.
        name: String,
        /// The decoder's reason.
        detail: String,
    },
    /// The file is of a known format in a variant that is not decoded.
    #[error("image `{name}` is not supported: {detail}")]
    UnsupportedImage {
        /// The image.
        name: String,
        /// The decoder's reason.
        detail: String,
    },
}

impl ProcessorError {
    /// The stable, short name under which rejects are counted. Load-time faults share `processor`.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Sample { source } => source.cause(),
            Self::NoLabels => "no_labels",
            Self::TooLong { .. } => "too_long",
            Self::ImageTokens { .. } => "image_tokens",
            Self::AlteredAnswer { .. } => "altered_answer",
            Self::NoEndOfTurn { .. } => "no_end_of_turn",
            Self::Template { step: "render", .. } => "template",
            Self::MissingImage { .. } => "missing_image",
            Self::RemoteImage { .. } => "remote_image",
            Self::UnreadableImage { .. } => "unreadable_image",
            Self::EmptyImage { .. } => "empty_image",
            Self::UnknownImageFormat { .. } => "unknown_image_format",
            Self::TruncatedImage { .. } => "truncated_image",
            Self::ImageTooLarge { .. } => "image_too_large",
            Self::DamagedImage { .. } => "damaged_image",
            Self::UnsupportedImage { .. } => "unsupported_image",
            _ => "processor",
        }
    }

    /// Wraps a failure of the tokenizer library.
    pub(crate) fn tokenizer(
        step: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Tokenizer { step: step.into(), source: source.into() }
    }
}
