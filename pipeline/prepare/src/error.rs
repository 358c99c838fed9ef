//! What can stop a command. Faults of single records never do: they are rejects.

use std::io;
use std::path::{Path, PathBuf};

use vela_processor::ProcessorError;
use vela_shard::ShardError;

/// A fault of a whole file, folder, flag or device.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A system call failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried: `read`, `create`.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A flag or its combination with others makes no sense.
    #[error("`{flag}`: expected {expected}, found `{found}`")]
    Flag {
        /// The flag, with its dashes.
        flag: &'static str,
        /// What it takes.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The input folder holds no file of the source's format.
    #[error("`--input {}`: expected {expected}, found none", path.display())]
    NoFiles {
        /// The input.
        path: PathBuf,
        /// Kinds of file the source reads.
        expected: &'static str,
    },
    /// A file's structure is broken as a whole, so that no record of it can be told from the next.
    #[error("`--input`: `{}`: {position}: expected {expected}, found {found}", path.display())]
    BrokenFile {
        /// The file.
        path: PathBuf,
        /// `byte 17 (line 2)`.
        position: String,
        /// What the format asks for there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A file, or all of an input, is of another format than the source's.
    #[error("`--input`: expected {expected} for `--source {source_name}`, found `{}` {found}", path.display())]
    WrongFormat {
        /// The file or folder.
        path: PathBuf,
        /// The source's name.
        source_name: &'static str,
        /// What the source reads.
        expected: &'static str,
        /// What is there instead.
        found: &'static str,
    },
    /// A Parquet file cannot be read.
    #[error("cannot read the Parquet file `{}`", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: Box<polars::error::PolarsError>,
    },
    /// A Parquet file lacks a column of the source's format.
    #[error("`--input`: `{}`: expected a text column `{column}`, found the columns {found}", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
        /// Columns of the file.
        found: String,
    },
    /// The output folder is in use.
    #[error(
        "`--output {}` is in use: expected {expected}, found {found}; choose another `--output`, or delete the folder \
         if it is no longer needed",
        path.display()
    )]
    OutputInUse {
        /// The output folder.
        path: PathBuf,
        /// What the folder may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// A signal asked to stop; what is finished stays and the same command continues.
    #[error("stopped by a signal after {done} of {total} shards; run the same command again to continue in `{}`", path.display())]
    Interrupted {
        /// The output folder.
        path: PathBuf,
        /// Shards finished.
        done: usize,
        /// Shards planned.
        total: usize,
    },
    /// A signal asked an audit to stop: what it had counted is not the whole.
    #[error(
        "stopped by a signal after {done} of {total} records; nothing can be said of the others, run the audit again"
    )]
    AuditStopped {
        /// Records looked at.
        done: u64,
        /// Records to look at.
        total: u64,
    },
    /// Every record was rejected, so there is nothing to write.
    #[error("no sample is left of {records} records; the reject list `{}` names every cause", rejects.display())]
    NothingLeft {
        /// Records read.
        records: u64,
        /// The reject list.
        rejects: PathBuf,
    },
    /// The processor folder is not usable.
    #[error("`--processor`: expected a Hugging Face processor folder, found `{}`: {source}", path.display())]
    ProcessorFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ProcessorError,
    },
    /// The processor failed in a way that is no record's fault.
    #[error("the processor failed: {0}")]
    Processor(#[from] ProcessorError),
    /// Shards or manifest cannot be written or read.
    #[error("the shard store failed: {0}")]
    Shard(#[from] ShardError),
    /// A file of our own making does not hold what it should.
    #[error("`{}` is damaged; delete it and run the command again", path.display())]
    DamagedState {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

impl PrepareError {
    /// Wraps an I/O error of `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Wraps a Parquet error of `path`.
    pub(crate) fn parquet(path: &Path) -> impl FnOnce(polars::error::PolarsError) -> Self {
        let path = path.to_owned();
        move |source| Self::Parquet { path, source: Box::new(source) }
    }

    /// True for wrong use: flags, inputs or folders that the user must change.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Flag { .. }
                | Self::NoFiles { .. }
                | Self::BrokenFile { .. }
                | Self::WrongFormat { .. }
                | Self::MissingColumn { .. }
                | Self::OutputInUse { .. }
                | Self::ProcessorFolder { .. }
        )
    }
}
