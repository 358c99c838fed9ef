//! Flags of `loader serve`, and what they become once checked.

use std::net::SocketAddr;
use std::time::Duration;

use vela_runtime::{Period, clap};

use crate::LoaderError;

const DEFAULT_MAX_CONSUMERS: u32 = 64;
const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// The flags as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Shard set to serve: a folder or `file://` url with a manifest.
    #[arg(long, value_name = "URL")]
    pub shards: String,
    /// Address to listen on; port 0 takes a free one, which is logged.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    /// Listen on an address that other machines reach, without encryption or authentication.
    #[arg(long)]
    pub allow_remote_plaintext: bool,
    /// How long to wait for calls under way when told to stop.
    #[arg(long, value_name = "PERIOD", default_value_t = Period(DEFAULT_DRAIN))]
    pub drain_timeout: Period,
    /// Streams served at once; one more is told to try again later.
    #[arg(long, value_name = "NUM", default_value_t = DEFAULT_MAX_CONSUMERS)]
    pub max_consumers: u32,
}

/// What a server needs to know; checked again by [`crate::serve`].
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Shard set: a folder or `file://` url with a manifest.
    pub shards: String,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Allows a `listen` that is not loopback.
    pub allow_remote_plaintext: bool,
    /// Longest wait for calls under way when told to stop.
    pub drain_timeout: Duration,
    /// Streams served at once; at least 1.
    pub max_consumers: u32,
}

impl ServeConfig {
    /// The defaults, for a loopback address.
    pub fn new(shards: impl Into<String>, listen: SocketAddr) -> Self {
        Self {
            shards: shards.into(),
            listen,
            allow_remote_plaintext: false,
            drain_timeout: DEFAULT_DRAIN,
            max_consumers: DEFAULT_MAX_CONSUMERS,
        }
    }

    pub(crate) fn check(&self) -> Result<(), LoaderError> {
        if !self.listen.ip().is_loopback() && !self.allow_remote_plaintext {
            return Err(LoaderError::RemotePlaintext { listen: self.listen });
        }
        match self.max_consumers {
            0 => Err(LoaderError::NoConsumers),
            _ => Ok(()),
        }
    }
}

impl TryFrom<ServeArgs> for ServeConfig {
    type Error = LoaderError;

    fn try_from(args: ServeArgs) -> Result<Self, LoaderError> {
        let ServeArgs { shards, listen, allow_remote_plaintext, drain_timeout, max_consumers } = args;
        let config = Self { shards, listen, allow_remote_plaintext, drain_timeout: drain_timeout.0, max_consumers };
        config.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str) -> ServeConfig {
        ServeConfig::new("shards", listen.parse().expect("an address"))
    }

    #[test]
    fn an_address_that_others_reach_needs_the_flag() {
        assert!(config("127.0.0.1:0").check().is_ok() && config("[::1]:0").check().is_ok());
        let fault = config("0.0.0.0:50051").check().expect_err("refused");
        assert!(fault.is_usage() && fault.to_string().contains("--allow-remote-plaintext"), "{fault}");
        assert!(ServeConfig { allow_remote_plaintext: true, ..config("0.0.0.0:50051") }.check().is_ok());
    }

    #[test]
    fn a_server_for_nobody_is_refused() {
        let fault = ServeConfig { max_consumers: 0, ..config("127.0.0.1:0") }.check().expect_err("refused");
        assert!(fault.is_usage(), "{fault}");
    }
}
