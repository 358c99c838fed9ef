//! What a client may be told besides what it streams.

use std::time::Duration;

/// Limits and patience of a [`crate::RemoteSource`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Batch bytes received and not yet handed to the consumer, under way included. Grows to one batch if that is
    /// larger.
    pub prefetch_bytes: usize,
    /// How long a server has to accept a connection and to describe its data.
    pub connect_timeout: Duration,
    /// How long the stream tries to come back before it gives up, counted from the last batch received.
    pub give_up_after: Duration,
    /// Largest batch accepted from a server.
    pub max_batch_bytes: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            prefetch_bytes: 256 << 20,
            connect_timeout: Duration::from_secs(5),
            give_up_after: Duration::from_secs(120),
            max_batch_bytes: 4 << 30,
        }
    }
}
