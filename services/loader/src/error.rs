//! Why a loader cannot serve, and what the read side's errors are on the wire.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use vela_dataset::{BlendPart, DatasetError};
use vela_proto::{ErrorKind, ServiceError};
use vela_runtime::ConfigError;

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

/// The read side's error as the consumer sees it, sources included.
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
        // The store may be back in a moment, or another replica may reach it.
        error if error.may_pass() => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message.push_str(&format!(": {source}"));
        cause = source.source();
    }
    ServiceError::new(kind, message)
}
