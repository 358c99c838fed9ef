//! What can stop a command. Faults of single records never do: they are rejects.

use std::io;
use std::path::{Path, PathBuf};

use vela_processor::ProcessorError;
use vela_runtime::ConfigError;
use vela_shard::ShardError;
use vela_types::Fingerprint;

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
    /// A mix file is not what it should be.
    #[error(transparent)]
    Mix(#[from] ConfigError),
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
    /// The samples of two files would have the same ids.
    #[error(
        "the samples of `{}` and `{}` would have the same ids, `{prefix}/...`: rename one of the files, or give one of two inputs of a \
         mix a `name` of its own",
        first.display(),
        second.display()
    )]
    SameIds {
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// What all ids of both begin with.
        prefix: String,
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
    #[error("`--input`: `{}`: expected a column `{column}`, found the columns {found}", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Columns of the file.
        found: String,
    },
    /// A column or flag names a field that a file does not have as text.
    #[error("`--input`: `{}`: expected a text column `{field}`, found {found}; name it by `--column`", path.display())]
    MissingField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Fields of the file.
        found: String,
    },
    /// Another process has the ledger or cache open, or builds into the folder.
    #[error("`{}` is in use by another process; wait for it, or choose another output", path.display())]
    InUse {
        /// The file or folder.
        path: PathBuf,
    },
    /// A file where our ledger or cache should be is something else.
    #[error("`{}`: expected a journal of `{expected}`, found another file; it was left as it is", path.display())]
    ForeignJournal {
        /// The file.
        path: PathBuf,
        /// The command that keeps such a journal.
        expected: &'static str,
    },
    /// The HTTP client cannot do its work at all.
    #[error("cannot {what}: {cause}")]
    Http {
        /// What was tried.
        what: String,
        /// What the client said.
        cause: String,
    },
    /// A signal asked a fetch to stop.
    #[error(
        "stopped by a signal after {done} images; run the same command again to continue in `{}`", path.display()
    )]
    FetchStopped {
        /// The output folder.
        path: PathBuf,
        /// Images that are there.
        done: u64,
    },
    /// The language model's server refuses what everybody would ask of it, or is gone.
    #[error(
        "`--endpoint {endpoint}` gives no answers (`{cause}`): {detail}; what it has answered is kept, run again to continue"
    )]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// The last failure in one word.
        cause: String,
        /// The last failure.
        detail: String,
    },
    /// A signal asked a generation to stop.
    #[error(
        "stopped by a signal after {done} records; their answers are kept in `{}`, run the same command again to continue",
        cache.display()
    )]
    GenerateStopped {
        /// The paid answers.
        cache: PathBuf,
        /// Records settled.
        done: u64,
    },
    /// The output folder or file is in use.
    #[error(
        "`--output {}` is in use: expected {expected}, found {found}; choose another `--output`, or delete it \
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
    /// Writing the output would take finished dialogues away.
    #[error(
        "`--output {}` holds {lost} dialogues that are not among the {made} of this run; it was left as it is: give the whole input, \
         raise `--limit` or `--token-budget`, or choose another `--output`",
        path.display()
    )]
    WouldLose {
        /// The output.
        path: PathBuf,
        /// Dialogues that only the output has.
        lost: u64,
        /// Dialogues that were made.
        made: u64,
    },
    /// A task of another build, or of this one where its inputs look different.
    #[error(
        "task for shard {index}: expected the plan `{}`, found `{}`: this process sees other inputs, images or settings than the \
         one that planned; make them the same or plan again",
        expected.short(),
        found.short()
    )]
    OtherPlan {
        /// The task's plan.
        expected: Fingerprint,
        /// The plan that this process derives.
        found: Fingerprint,
        /// The task's shard.
        index: u32,
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
    /// The input is empty.
    #[error("`--input`: expected at least one record, found no record in `{}`", path.display())]
    NoRecords {
        /// The input.
        path: PathBuf,
    },
    /// Every record was rejected, so there is nothing to write.
    #[error(
        "no sample is left of {records} records; the reject list `{}` names every cause, and the folder can be used again",
        rejects.display()
    )]
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

    /// True for data below the accepted quality.
    pub fn is_quality(&self) -> bool {
        matches!(self, Self::NothingLeft { .. })
    }

    /// True for wrong use: flags, inputs or folders that the user must change.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Flag { .. }
                | Self::Mix(_)
                | Self::NoFiles { .. }
                | Self::NoRecords { .. }
                | Self::BrokenFile { .. }
                | Self::WrongFormat { .. }
                | Self::SameIds { .. }
                | Self::MissingColumn { .. }
                | Self::MissingField { .. }
                | Self::ForeignJournal { .. }
                | Self::OutputInUse { .. }
                | Self::WouldLose { .. }
                | Self::OtherPlan { .. }
                | Self::ProcessorFolder { .. }
        )
    }
}
