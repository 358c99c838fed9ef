//! What can go wrong between a model folder and a loss.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// An error of this crate: where it happened, what was expected, what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file or folder could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Told to stop before all tensors were written.
    #[error("`{}`: told to stop before it was written", dir.display())]
    Stopped {
        /// The folder, which is not whole.
        dir: PathBuf,
    },
    /// A JSON file does not have the expected form.
    #[error("`{}`: not the expected JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where in the file, and why.
        #[source]
        source: serde_json::Error,
    },
    /// A TOML preset does not have the expected form.
    #[error("`{}`: not a model preset", path.display())]
    Preset {
        /// The file.
        path: PathBuf,
        /// Where in the file, and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value of a model config is unknown or contradicts another.
    #[error("model config: `{key}`: expected {expected}, found {found}")]
    Config {
        /// Dotted key, as in `config.json`.
        key: String,
        /// What would have been right.
        expected: String,
        /// The value.
        found: String,
    },
    /// A folder holds no weights.
    #[error(
        "`{}`: expected `model.safetensors`, `pytorch_model.bin`, the index of either, or one `.pth` file; found {found} `.pth` files",
        dir.display()
    )]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// Files that end in `.pth`.
        found: usize,
    },
    /// A weight file is not what `torch.save` writes of a state dict.
    #[error("`{}`: {what}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// A weight file is damaged or is not a safetensors file.
    #[error("`{}` ({bytes} bytes): not a whole safetensors file", path.display())]
    SafeTensors {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
        /// What the parser said.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// Tensors are missing, unexpected or misshapen; all of them are listed.
    #[error("{} tensors do not fit the model:{}", problems.len(), list(problems))]
    Weights {
        /// Every tensor that does not fit, in name order.
        problems: Vec<WeightProblem>,
    },
    /// A parameter was asked for that the model's config does not have.
    #[error("no parameter is named `{name}`")]
    UnknownParam {
        /// The name.
        name: String,
    },
    /// A batch or prompt contradicts itself or the model.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// Which part of the input.
        what: &'static str,
        /// What would have been right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An op refused its inputs or failed.
    #[error("op failed")]
    Kernel(#[from] vela_kernels::KernelError),
    /// A reshape, copy or addition failed.
    #[error("tensor op failed")]
    Tensor(#[from] candle_core::Error),
}

/// One tensor of a weight file that does not fit the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightProblem {
    /// The file (the folder, where no file has it).
    pub file: PathBuf,
    /// The tensor's name in the file, or the name that is missing.
    pub name: String,
    /// What the config asks for.
    pub expected: String,
    /// What the file has.
    pub found: String,
}

impl fmt::Display for WeightProblem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, name, expected, found } = self;
        write!(out, "`{}`: `{name}`: expected {expected}, found {found}", file.display())
    }
}

fn list(problems: &[WeightProblem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

impl ModelError {
    pub(crate) fn config(key: &str, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self::Config { key: key.to_owned(), expected: expected.to_string(), found: found.to_string() }
    }

    pub(crate) fn input(what: &'static str, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self::Input { what, expected: expected.to_string(), found: found.to_string() }
    }
}
