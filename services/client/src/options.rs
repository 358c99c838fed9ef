//! What a client may be told besides what it streams.

use std::fmt;
use std::time::Duration;

/// Limits and patience of a [`crate::RemoteSource`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Which of the server's data sets; empty: its only one, or the one called `default`.
    pub dataset: String,
    /// The token to show, for a loader with tenants.
    pub token: Option<Token>,
    /// Authorities to trust and the certificate to show, for `https://` addresses; refused for others.
    pub tls: TlsOptions,
    /// Allows the token to go to another machine without encryption.
    pub allow_remote_plaintext: bool,
    /// Batch bytes received and not yet handed to the consumer, under way included. Grows to one batch if that is
    /// larger. Headers may take 16 MiB more.
    pub prefetch_bytes: usize,
    /// How long a server has to accept a connection.
    pub connect_timeout: Duration,
    /// How long a server may send nothing though it could: it is left for another then.
    pub stall_after: Duration,
    /// How long the stream tries to come back before it gives up, counted from the moment a working stream was lost; and how long a server
    /// has to describe its data, which takes long where it has to plan packed rows first.
    pub give_up_after: Duration,
    /// How long a silent connection is trusted: then the server is asked, and given up if it does not answer in as long.
    pub keepalive: Duration,
    /// Largest batch accepted from a server.
    pub max_batch_bytes: usize,
    /// Whether the checksums of images are compared. Those of headers and tokens always are.
    pub verify_images: VerifyImages,
}

/// When a client compares the checksum of each image with the one that its shard was written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyImages {
    /// On connections that are not encrypted and leave the machine: elsewhere nothing turns a bit on the way.
    #[default]
    OpenConnections,
    /// On all: also what the server reads wrong after its own check.
    Always,
}

/// A bearer token; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token as the tenant got it.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

/// How an encrypted connection is trusted.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM text of the authorities of servers; `None` trusts no server.
    pub authorities: Option<String>,
    /// PEM texts of our own certificate chain and key, for a loader that asks for one.
    pub identity: Option<(String, String)>,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { authorities, identity } = self;
        out.debug_struct("TlsOptions")
            .field("authorities", &authorities.is_some())
            .field("identity", &identity.is_some())
            .finish()
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            dataset: String::new(),
            token: None,
            tls: TlsOptions::default(),
            allow_remote_plaintext: false,
            prefetch_bytes: 256 << 20,
            connect_timeout: Duration::from_secs(5),
            give_up_after: Duration::from_secs(120),
            keepalive: Duration::from_secs(10),
            stall_after: Duration::from_secs(300),
            max_batch_bytes: 4 << 30,
            verify_images: VerifyImages::default(),
        }
    }
}
