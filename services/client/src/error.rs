//! Why a remote stream fails.

use std::error::Error;
use std::time::Duration;

use vela_proto::{ErrorKind, ServiceError, WireError};
use vela_types::{CursorMismatch, Position};

/// A failure of the remote stream. Every variant about a server names its address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is no url.
    #[error("loader address `{url}`: expected `http://host:port` or `https://host:port`")]
    Address {
        /// What was given.
        url: String,
        /// The parser's answer.
        source: tonic::transport::Error,
    },
    /// The token holds characters that no header may have.
    #[error("the token is no text that a header may carry: expected visible ASCII characters")]
    Token,
    /// What is meant for encrypted connections, and an address without encryption.
    #[error("loader address `{url}`: expected `https://`, as authorities or a certificate are given")]
    Unencrypted {
        /// The address.
        url: String,
    },
    /// A token that others on the way could read.
    #[error(
        "loader address `{url}`: the token would go to another machine without encryption; use `https://`, or set `allow_remote_plaintext` (in a recipe `data.allow_remote_plaintext`) if nobody can read along"
    )]
    PlaintextToken {
        /// The address.
        url: String,
    },
    /// No server accepts connections there.
    #[error("no loader answers at `{url}` within {timeout:?}; is `loader serve` running there?")]
    Unreachable {
        /// The address.
        url: String,
        /// How long it had.
        timeout: Duration,
        /// The transport's answer.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server answers, but not this.
    #[error(
        "the loader at `{url}` did not describe its data within {timeout:?}; it may be planning packed rows or waiting for its store: try later, or longer"
    )]
    Silent {
        /// The address.
        url: String,
        /// How long it had.
        timeout: Duration,
    },
    /// The server is there and sends nothing.
    #[error("the loader at `{url}` sent nothing for {after:?}, though it had credit")]
    Stalled {
        /// The address.
        url: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server refused, or the connection to it was lost.
    #[error("loader at `{url}`")]
    Service {
        /// The address.
        url: String,
        /// What it said.
        source: ServiceError,
    },
    /// The server sent something that breaks the contract.
    #[error("loader at `{url}` broke the protocol")]
    Wire {
        /// The address.
        url: String,
        /// What was wrong.
        source: WireError,
    },
    /// The server sent another micro-batch than the next one.
    #[error("loader at `{url}` broke the order: expected {expected:?}, found {found:?}")]
    Order {
        /// The address.
        url: String,
        /// The position that comes next.
        expected: Position,
        /// The position of the batch that came.
        found: Position,
    },
    /// The cursor belongs to other data or another spec.
    #[error(transparent)]
    Cursor(#[from] CursorMismatch),
    /// The cursor points past the end of its epoch.
    #[error("cursor step: expected at most {steps_per_epoch}, found {step}")]
    CursorStep {
        /// Steps of an epoch.
        steps_per_epoch: u64,
        /// The cursor's.
        step: u64,
    },
    /// The stream did not come back in time.
    #[error("gave up on {position:?} after {after:?} without a batch")]
    GaveUp {
        /// The micro-batch that was waited for.
        position: Position,
        /// How long it was tried.
        after: Duration,
        /// What the last try failed with.
        source: Box<ClientError>,
    },
    /// The operating system gave no thread or no event loop.
    #[error("cannot start the client thread")]
    Thread(#[source] std::io::Error),
    /// The client thread ended without a batch or an error.
    #[error("the client thread ended early; this is a defect of Vela")]
    ThreadLost,
}

impl ClientError {
    /// Whether another try, at this server or its successor, may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Stalled { .. } => true,
            Self::Service { source, .. } => source.is_retryable(),
            // What was sent may arrive another time.
            Self::Wire { source: WireError::Checksum { .. }, .. } => true,
            _ => false,
        }
    }

    /// Whether it is of one server, so that a replica may do better: its disk, its defects.
    pub(crate) fn is_of_one_server(&self) -> bool {
        let Self::Service { source, .. } = self else { return false };
        matches!(source.kind, ErrorKind::Damaged | ErrorKind::Internal)
    }
}
