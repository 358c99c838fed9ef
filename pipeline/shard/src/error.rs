//! What can be wrong with a shard set.

use std::ops::Range;

use parquet::errors::ParquetError;
use vela_types::Fingerprint;

/// A failure while writing or reading a shard set: where, what was expected, what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// The operating system refused.
    #[error("`{path}`: cannot {action}")]
    Io {
        /// The file or folder.
        path: String,
        /// What was tried: `open`, `write`, ...
        action: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The Parquet library refused to write or to parse.
    #[error("`{path}`: Parquet error")]
    Parquet {
        /// The shard.
        path: String,
        /// The library's answer.
        #[source]
        source: ParquetError,
    },
    /// Bytes of a file are not those that were written.
    #[error(
        "`{path}` is damaged: {what}: expected {expected}, found {found}; rename a good copy into its place or build the shards again"
    )]
    DamagedFile {
        /// The file.
        path: String,
        /// The part that is wrong.
        what: &'static str,
        /// What the manifest or format says.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A row of a shard cannot be trusted.
    #[error(
        "`{path}` row {row} (id `{id}`) is damaged: {what}; rename a good copy into its place or build the shards again"
    )]
    DamagedRow {
        /// The shard.
        path: String,
        /// Zero-based row in it.
        row: u64,
        /// The record's id as far as it could be read; `?` otherwise.
        id: String,
        /// The part that is wrong, with what was expected and found.
        what: String,
    },
    /// A block of the lengths index is not what was written.
    #[error(
        "`{path}` block {block} (records {} to {}) is damaged: expected its sum {expected}, found {found}; build the shards again into the same place, which mends it, or rename a good copy into its place",
        records.start, records.end.saturating_sub(1)
    )]
    DamagedLengths {
        /// The index.
        path: String,
        /// Zero-based block.
        block: u64,
        /// Its records, in the manifest's order.
        records: Range<u64>,
        /// What `lengths.sums` says.
        expected: String,
        /// What the block has.
        found: String,
    },
    /// A row outside the shard or the lengths index was asked for.
    #[error("`{path}` has {rows} rows, there is no row {row}")]
    NoSuchRow {
        /// The file.
        path: String,
        /// The row asked for.
        row: u64,
        /// Rows of the file.
        rows: u64,
    },
    /// A record breaks an invariant of the format and was not written.
    #[error("record `{id}` cannot be stored: {what}: expected {expected}, found {found}")]
    Record {
        /// The record.
        id: String,
        /// The part that is wrong.
        what: &'static str,
        /// The invariant.
        expected: String,
        /// The record's value.
        found: String,
    },
    /// The folder holds no manifest.
    #[error(
        "`{path}` does not exist: the folder holds no finished shard set; run `pipeline build-shards --output` on it, a stopped build resumes"
    )]
    MissingManifest {
        /// Where it was looked for.
        path: String,
    },
    /// A file that the manifest names is not there.
    #[error("`{path}` is missing: the manifest names it; rename a good copy into its place or build the shards again")]
    MissingFile {
        /// The file.
        path: String,
    },
    /// A JSON file does not have the form of its version.
    #[error("`{path}` is not a valid {what}; build the shards again")]
    Json {
        /// The file.
        path: String,
        /// `manifest` or `shard completion`.
        what: &'static str,
        /// The parser's answer.
        #[source]
        source: serde_json::Error,
    },
    /// The file is of a version this build does not read.
    #[error(
        "`{path}` has version {found}, this build reads version {expected}; build the shards again into another folder, or use a build of Vela that reads it"
    )]
    Version {
        /// The file.
        path: String,
        /// The version of this build.
        expected: u32,
        /// The file's version.
        found: u32,
    },
    /// The output folder already holds another finished shard set.
    #[error(
        "`{path}` was built from other inputs, images or settings: expected plan `{expected}`, found `{found}`; choose another output folder or remove this one"
    )]
    ForeignBuild {
        /// Its manifest.
        path: String,
        /// The plan of this build.
        expected: Fingerprint,
        /// The plan found.
        found: Fingerprint,
    },
    /// A commit was asked for before every shard was there.
    #[error("`{path}`: shard {index} is not complete, the build cannot be committed")]
    Incomplete {
        /// The folder.
        path: String,
        /// The first shard without a valid completion.
        index: u32,
    },
    /// A location that this build cannot open.
    #[error(
        "`{url}`: expected a local path, a `file://` url, or a bucket and a prefix without credentials: `s3://`, `gs://` or `az://`"
    )]
    UnsupportedUrl {
        /// The location, secrets left out.
        url: String,
    },
    /// A remote store refused, or could not be reached as often as it was tried.
    #[error("`{path}`: cannot {action}; {remedy}")]
    Remote {
        /// The url of the object.
        path: String,
        /// What was tried: `read`, `write`, ...
        action: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// The store's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A url below which there is nothing.
    #[error("`{url}`: there is no object of this name and none below it; check the url")]
    NoObjects {
        /// The url.
        url: String,
    },
    /// Another build finished the set first.
    #[error(
        "`{path}` was committed by another build, plan `{found}`, while this one, plan `{expected}`, was at work; use that set, or choose another output"
    )]
    CommitLost {
        /// The manifest.
        path: String,
        /// The plan of this build.
        expected: Fingerprint,
        /// The plan of the build that won.
        found: Fingerprint,
    },
    /// The local cache has no room for a remote file.
    #[error(
        "cache `{path}`: expected room for {needed} bytes within {limit}, found {held} in use; raise `VELA_CACHE_BYTES`, or name a larger disk by `VELA_CACHE`"
    )]
    CacheFull {
        /// The folder.
        path: String,
        /// Bytes it may hold.
        limit: u64,
        /// Bytes that are in use by running processes.
        held: u64,
        /// Bytes of the file.
        needed: u64,
    },
    /// An environment variable makes no sense.
    #[error("environment variable `{name}`: expected {expected}, found `{found}`")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
}

impl ShardError {
    /// Wraps an I/O failure with the file and the action.
    pub(crate) fn io(path: impl Into<String>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, action, source }
    }

    /// Wraps a failure to write with the file; what a remote store said comes out as it was.
    pub(crate) fn write(path: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| match source.downcast::<Self>() {
            Ok(fault) => fault,
            Err(source) => Self::Io { path, action: "write", source },
        }
    }

    /// Wraps a Parquet failure with the file.
    pub(crate) fn parquet(path: &str) -> impl FnOnce(ParquetError) -> Self + '_ {
        move |source| match source {
            // What the library passes on of the file that it writes to.
            ParquetError::External(fault) if fault.is::<std::io::Error>() => {
                Self::write(path)(*fault.downcast().expect("looked at above"))
            }
            source => Self::Parquet { path: path.to_owned(), source },
        }
    }

    /// True if stored bytes are wrong or gone, as against a wrong request or a full disk.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::DamagedFile { .. }
                | Self::DamagedRow { .. }
                | Self::DamagedLengths { .. }
                | Self::MissingFile { .. }
                | Self::Parquet { .. }
        )
    }
}
