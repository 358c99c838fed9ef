//! Why a loader cannot serve, and what the read side's errors are on the wire.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vela_dataset::{BlendPart, DatasetError};
use vela_proto::{ErrorKind, ServiceError};
use vela_runtime::ConfigError;
use vela_shard::ShardError;

/// A failure of the service as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// Plaintext on an address that other machines reach, without the flag that allows it.
    #[error(
        "`--listen {listen}` is open to other machines without encryption; pass `--tls-cert` and `--tls-key`, listen on a loopback address, or pass `--allow-remote-plaintext`"
    )]
    RemotePlaintext {
        /// The address.
        listen: SocketAddr,
    },
    /// Metrics on an address that other machines reach, without the flag that allows it.
    #[error(
        "`--metrics-listen {listen}` shows the names of tenants and data sets to other machines, unencrypted and to whoever asks; listen on a loopback address, or pass `--allow-remote-plaintext`"
    )]
    RemoteMetrics {
        /// The address.
        listen: SocketAddr,
    },
    /// A limit that nothing could be served under.
    #[error("`{flag}`: expected at least 1{unit}, found 0{unit}")]
    ZeroLimit {
        /// The flag that sets it.
        flag: &'static str,
        /// What follows its numbers.
        unit: &'static str,
    },
    /// A certificate or key that cannot be used.
    #[error("`{flag} {}` cannot be used", path.display())]
    Tls {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// One of two flags that go together.
    #[error("`{flag}` needs `{other}`")]
    Alone {
        /// The flag that was given.
        flag: &'static str,
        /// The one that was not.
        other: &'static str,
    },
    /// The file of tenants is no such file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tenant that cannot be told from others.
    #[error("`--tenants {}`: tenant `{tenant}`: expected {expected}, found {found}", path.display())]
    Tenant {
        /// The file.
        path: PathBuf,
        /// The tenant.
        tenant: String,
        /// What it must have.
        expected: String,
        /// What it has.
        found: String,
    },
    /// The page of metrics cannot be shown.
    #[error("cannot show metrics on {listen}")]
    Metrics {
        /// The address of `--metrics-listen`.
        listen: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Two data sets under one name.
    #[error("`--shards`: two data sets are called `{name}`; give each its name as `NAME=URL`")]
    SameName {
        /// The name.
        name: String,
    },
    /// What was named as the shard set is none.
    #[error(
        "`--shards {shards}`: expected a folder, or a `file://`, `s3://`, `gs://` or `az://` url, of a finished shard set"
    )]
    NoShards {
        /// What was given.
        shards: String,
        /// What is there instead.
        source: DatasetError,
    },
    /// The shard set cannot be opened.
    #[error("shard set `{shards}` cannot be served")]
    Dataset {
        /// Where it was looked for.
        shards: String,
        /// What is wrong with it.
        source: DatasetError,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}{}", bind_hint(source))]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The server broke down while serving.
    #[error("the server on {listen} failed")]
    Transport {
        /// Where it listened.
        listen: SocketAddr,
        /// The transport's answer.
        source: tonic::transport::Error,
    },
    /// A task of the server panicked or was cancelled.
    #[error("a task of the server ended early; this is a defect of Vela")]
    Task(#[from] tokio::task::JoinError),
    /// The address given to a health check is none.
    #[error("`--address {address}`: expected `host:port` or `http://host:port`")]
    Address {
        /// What was given.
        address: String,
        /// The parser's answer.
        source: tonic::transport::Error,
    },
    /// No server answered a health check.
    #[error("no loader answers at {address} within {timeout:?}")]
    Unreachable {
        /// The address.
        address: String,
        /// How long it had.
        timeout: Duration,
        /// The transport's answer.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A server answered a health check, but does not serve.
    #[error("the loader at {address} does not serve: {status}")]
    NotServing {
        /// The address.
        address: String,
        /// What it says of itself.
        status: String,
    },
}

impl LoaderError {
    /// Whether flags are to blame: exit code 2.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::RemotePlaintext { .. }
                | Self::RemoteMetrics { .. }
                | Self::ZeroLimit { .. }
                | Self::Tls { .. }
                | Self::Alone { .. }
                | Self::Config(_)
                | Self::Tenant { .. }
                | Self::SameName { .. }
                | Self::NoShards { .. }
                | Self::Address { .. }
        )
    }

    /// Why the set of these parts did not open: not there at all, or there and not readable.
    pub(crate) fn unopened(parts: &[BlendPart], source: DatasetError) -> Self {
        let shards = parts.iter().map(|part| part.shards.as_str()).collect::<Vec<_>>().join(",");
        match source.is_wrong_place() {
            true => Self::NoShards { shards, source },
            false => Self::Dataset { shards, source },
        }
    }
}

fn bind_hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => ": the port is in use; stop the other server or choose another port",
        _ => "",
    }
}

/// Failures told to the operator so far: each has its number in the log.
static NUM_REPORTS: AtomicU64 = AtomicU64::new(0);

/// The read side's error as the consumer sees it. Of what passes it learns the file's name and what to do: what a store or the system said
/// may hold addresses, paths and keys, so it goes to the log, under the number that the consumer is told.
pub(crate) fn to_service_error(error: &DatasetError) -> ServiceError {
    let kind = match error {
        DatasetError::Cursor(_) => ErrorKind::Mismatch,
        DatasetError::Position { .. } | DatasetError::NoSuchRecord { .. } => ErrorKind::OutOfRange,
        DatasetError::BudgetSpent { .. } => ErrorKind::Damaged,
        DatasetError::Spec { .. }
        | DatasetError::Pack(_)
        | DatasetError::Unpackable { .. }
        | DatasetError::Rank { .. }
        | DatasetError::TooLarge { .. }
        | DatasetError::TooLong { .. } => ErrorKind::InvalidRequest,
        error if error.is_damage() => ErrorKind::Damaged,
        DatasetError::Thread(_) => ErrorKind::Unavailable,
        error if error.may_pass() => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    match kind {
        ErrorKind::Unavailable => ServiceError::new(kind, reported(error)),
        _ => ServiceError::new(kind, with_sources(error)),
    }
}

/// Logs `error` and says where it is to be found.
fn reported(error: &DatasetError) -> String {
    let report = NUM_REPORTS.fetch_add(1, Ordering::Relaxed) + 1;
    tracing::warn!(report, error = with_sources(error), "what was asked for cannot be had now");
    let fault = match error {
        DatasetError::Shard(fault) => Some(fault),
        error => error.source().and_then(|source| source.downcast_ref()),
    };
    let what = match fault {
        Some(ShardError::Remote { path, .. } | ShardError::Io { path, .. } | ShardError::MissingFile { path }) => {
            let file = path.rsplit('/').next().unwrap_or_default();
            format!("`{file}` cannot be read now")
        }
        Some(ShardError::CacheFull { .. }) => "the loader's cache has no room now".to_owned(),
        _ => "the loader cannot do this now".to_owned(),
    };
    format!("{what}; try again, or ask its operator, who finds the cause in the loader's log as report {report}")
}

fn with_sources(error: &DatasetError) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message.push_str(&format!(": {source}"));
        cause = source.source();
    }
    message
}
