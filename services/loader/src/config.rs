//! Flags of `loader serve`, and what they become once checked.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use vela_dataset::DEFAULT_MAX_BATCH_BYTES;
use vela_runtime::{ByteSize, Period, clap};

use crate::LoaderError;

const DEFAULT_MAX_CONSUMERS: u32 = 64;
const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// The flags as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Shard set to serve: a folder or url (`file://`, `s3://`, `gs://`, `az://`) with a manifest.
    #[arg(long, value_name = "URL")]
    pub shards: String,
    /// Address to listen on, `IP:PORT` or `NAME:PORT`; port 0 takes a free one, which is logged.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", value_parser = resolve)]
    pub listen: SocketAddr,
    /// Listen on an address that other machines reach, without encryption or authentication.
    #[arg(long)]
    pub allow_remote_plaintext: bool,
    /// How long to wait for calls under way when told to stop.
    #[arg(long, value_name = "PERIOD", default_value_t = Period(DEFAULT_DRAIN))]
    pub drain_timeout: Period,
    /// Streams and single batches served at once; one more is told to try again later.
    #[arg(long, value_name = "NUM", default_value_t = DEFAULT_MAX_CONSUMERS)]
    pub max_consumers: u32,
    /// Largest micro-batch made; a spec that may need more is refused. Each consumer has up to two of them in memory.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(DEFAULT_MAX_BATCH_BYTES))]
    pub max_batch_bytes: ByteSize,
}

/// The address that `text` names; of a name's addresses the first of IPv4, if it has one.
fn resolve(text: &str) -> Result<SocketAddr, String> {
    let refused = |why: &dyn std::fmt::Display| format!("expected `IP:PORT` or the `NAME:PORT` of this machine: {why}");
    let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(|error| refused(&error))?.collect();
    let preferred = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    preferred.copied().ok_or_else(|| refused(&"the name has no address"))
}

/// What a server needs to know; checked again by [`crate::serve`].
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Shard set: a folder or url (file://, s3://, gs://, az://) with a manifest.
    pub shards: String,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Allows a `listen` that is not loopback.
    pub allow_remote_plaintext: bool,
    /// Longest wait for calls under way when told to stop.
    pub drain_timeout: Duration,
    /// Streams and single batches served at once; at least 1.
    pub max_consumers: u32,
    /// Bytes of the largest micro-batch made, at least 1; a spec that may need more is refused.
    pub max_batch_bytes: u64,
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
            max_batch_bytes: DEFAULT_MAX_BATCH_BYTES,
        }
    }

    pub(crate) fn check(&self) -> Result<(), LoaderError> {
        if !self.listen.ip().is_loopback() && !self.allow_remote_plaintext {
            return Err(LoaderError::RemotePlaintext { listen: self.listen });
        }
        match (self.max_consumers, self.max_batch_bytes) {
            (0, _) => Err(LoaderError::ZeroLimit { flag: "--max-consumers", unit: "" }),
            (_, 0) => Err(LoaderError::ZeroLimit { flag: "--max-batch-bytes", unit: "B" }),
            _ => Ok(()),
        }
    }
}

impl TryFrom<ServeArgs> for ServeConfig {
    type Error = LoaderError;

    fn try_from(args: ServeArgs) -> Result<Self, LoaderError> {
        let config = Self {
            shards: args.shards,
            listen: args.listen,
            allow_remote_plaintext: args.allow_remote_plaintext,
            drain_timeout: args.drain_timeout.0,
            max_consumers: args.max_consumers,
            max_batch_bytes: args.max_batch_bytes.0,
        };
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
