//! Flags of `loader serve`, and what they become once checked.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use vela_dataset::{BlendPart, DEFAULT_MAX_BATCH_BYTES, DamagePolicy, Weight};
use vela_runtime::{ByteSize, Period, clap};

use crate::tenants::Offer;
use crate::{DEFAULT_DATASET, DatasetConfig, LoaderError, RELOAD_EVERY, TlsFiles};

const DEFAULT_MAX_CONSUMERS: u32 = 64;
const DEFAULT_MAX_CONNECTIONS: u32 = 512;
const DEFAULT_MAX_PLAN_BYTES: u64 = 8 << 30;
const DEFAULT_DRAIN: Duration = Duration::from_secs(10);
const GREETING: Duration = Duration::from_secs(10);

/// The flags as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Data set to serve, `[NAME=]URL[*WEIGHT][,URL...]`: a folder or url (`file://`, `s3://`, `gs://`, `az://`) with a manifest, or
    /// several to blend, each as many times an epoch as its weight says. May be given once for each name.
    #[arg(long, value_name = "SHARDS", required = true)]
    pub shards: Vec<DatasetConfig>,
    /// What to do with a damaged record: `fail` its batch, `mask` its slot, or mask up to a number of records and then fail.
    #[arg(long, value_name = "POLICY", default_value = "fail", value_parser = damage_policy)]
    pub damage: DamagePolicy,
    /// Address to listen on, `IP:PORT` or `NAME:PORT`; port 0 takes a free one, which is logged.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", value_parser = resolve)]
    pub listen: SocketAddr,
    /// Listen on an address that other machines reach, for batches or metrics, without encryption.
    #[arg(long)]
    pub allow_remote_plaintext: bool,
    /// Encrypt (TLS 1.3) with this certificate chain, a PEM file; a newer file is taken without a restart.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, a PEM file.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of these authorities, a PEM file.
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<PathBuf>,
    /// Who may read what, a TOML file: tokens or certificates, data sets and limits of each tenant. Without it, everybody may.
    #[arg(long, value_name = "FILE")]
    pub tenants: Option<PathBuf>,
    /// Show metrics for Prometheus at `http://ADDR/metrics`.
    #[arg(long, value_name = "ADDR", value_parser = resolve)]
    pub metrics_listen: Option<SocketAddr>,
    /// Answer reflection: tools such as grpcurl then need no proto files.
    #[arg(long)]
    pub reflection: bool,
    /// How long to wait for calls under way when told to stop.
    #[arg(long, value_name = "PERIOD", default_value_t = Period(DEFAULT_DRAIN))]
    pub drain_timeout: Period,
    /// Streams and single batches served at once; one more is told to try again later.
    #[arg(long, value_name = "NUM", default_value_t = DEFAULT_MAX_CONSUMERS)]
    pub max_consumers: u32,
    /// Connections open at once; one more is closed.
    #[arg(long, value_name = "NUM", default_value_t = DEFAULT_MAX_CONNECTIONS)]
    pub max_connections: u32,
    /// Largest micro-batch made; a spec that may need more is refused. Each consumer has up to three of them in memory.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(DEFAULT_MAX_BATCH_BYTES))]
    pub max_batch_bytes: ByteSize,
    /// Plans of packed rows that streams hold at once, counted at 12 bytes for each record of their data set; a spec too many is told to
    /// try again later. Streams of one spec share its plan.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(DEFAULT_MAX_PLAN_BYTES))]
    pub max_plan_bytes: ByteSize,
}

/// The address that `text` names; of a name's addresses the first of IPv4, if it has one.
fn resolve(text: &str) -> Result<SocketAddr, String> {
    let refused = |why: &dyn std::fmt::Display| format!("expected `IP:PORT` or the `NAME:PORT` of this machine: {why}");
    let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(|error| refused(&error))?.collect();
    let preferred = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    preferred.copied().ok_or_else(|| refused(&"the name has no address"))
}

/// `fail`, `mask`, or the number of records that may be masked.
fn damage_policy(text: &str) -> Result<DamagePolicy, String> {
    match text {
        "fail" => Ok(DamagePolicy::Fail),
        "mask" => Ok(DamagePolicy::Mask),
        text => text
            .parse()
            .map(DamagePolicy::Budget)
            .map_err(|_| "expected `fail`, `mask` or a number of records".to_owned()),
    }
}

fn tls_files(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_authority: Option<PathBuf>,
) -> Result<Option<TlsFiles>, LoaderError> {
    match (certificate, key, client_authority) {
        (Some(certificate), Some(key), client_authority) => {
            Ok(Some(TlsFiles { certificate, key, client_authority, reload_every: RELOAD_EVERY }))
        }
        (Some(_), None, _) => Err(LoaderError::Alone { flag: "--tls-cert", other: "--tls-key" }),
        (None, Some(_), _) => Err(LoaderError::Alone { flag: "--tls-key", other: "--tls-cert" }),
        (None, None, Some(_)) => Err(LoaderError::Alone { flag: "--client-ca", other: "--tls-cert" }),
        (None, None, None) => Ok(None),
    }
}

/// What a server needs to know; checked again by [`crate::serve`].
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// What to serve, at least one.
    pub datasets: Vec<DatasetConfig>,
    /// What to do with a damaged record.
    pub damage: DamagePolicy,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Allows a `listen` that is not loopback without `tls`, and a `metrics_listen` that is not.
    pub allow_remote_plaintext: bool,
    /// Certificates to encrypt with.
    pub tls: Option<TlsFiles>,
    /// The file of tenants; `None`: everybody may read everything.
    pub tenants: Option<PathBuf>,
    /// Where to show metrics; of use once per process.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether to answer reflection.
    pub reflection: bool,
    /// Longest wait for calls under way when told to stop.
    pub drain_timeout: Duration,
    /// Streams and single batches served at once; at least 1.
    pub max_consumers: u32,
    /// Connections open at once; at least 1.
    pub max_connections: u32,
    /// How long a new connection has for its handshake, and then to begin to speak HTTP/2.
    pub greeting_timeout: Duration,
    /// Bytes of the largest micro-batch made, at least 1; a spec that may need more is refused.
    pub max_batch_bytes: u64,
    /// Bytes of the plans of packed rows that consumers hold at once, at least 1.
    pub max_plan_bytes: u64,
}

impl ServeConfig {
    /// The defaults, for the one shard set at the path or url `shards` and a loopback address.
    pub fn new(shards: impl Into<String>, listen: SocketAddr) -> Self {
        let parts = vec![BlendPart { shards: shards.into(), weight: Weight::ONE }];
        Self {
            datasets: vec![DatasetConfig { name: DEFAULT_DATASET.to_owned(), parts }],
            damage: DamagePolicy::Fail,
            listen,
            allow_remote_plaintext: false,
            tls: None,
            tenants: None,
            metrics_listen: None,
            reflection: false,
            drain_timeout: DEFAULT_DRAIN,
            max_consumers: DEFAULT_MAX_CONSUMERS,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            greeting_timeout: GREETING,
            max_batch_bytes: DEFAULT_MAX_BATCH_BYTES,
            max_plan_bytes: DEFAULT_MAX_PLAN_BYTES,
        }
    }

    /// What tenants may be promised; `names` are those of the data sets.
    pub(crate) fn offer<'a>(&self, names: &'a [String]) -> Offer<'a> {
        let asks_certificates = self.tls.as_ref().is_some_and(|tls| tls.client_authority.is_some());
        Offer { datasets: names, asks_certificates }
    }

    pub(crate) fn check(&self) -> Result<(), LoaderError> {
        if !self.listen.ip().is_loopback() && !self.allow_remote_plaintext && self.tls.is_none() {
            return Err(LoaderError::RemotePlaintext { listen: self.listen });
        }
        if let Some(listen) = self.metrics_listen
            && !listen.ip().is_loopback()
            && !self.allow_remote_plaintext
        {
            return Err(LoaderError::RemoteMetrics { listen });
        }
        let limits = [
            ("--max-consumers", "", u64::from(self.max_consumers)),
            ("--max-connections", "", u64::from(self.max_connections)),
            ("--max-batch-bytes", "B", self.max_batch_bytes),
            ("--max-plan-bytes", "B", self.max_plan_bytes),
        ];
        match limits.into_iter().find(|&(_, _, limit)| limit == 0) {
            Some((flag, unit, _)) => Err(LoaderError::ZeroLimit { flag, unit }),
            None => Ok(()),
        }
    }
}

impl TryFrom<ServeArgs> for ServeConfig {
    type Error = LoaderError;

    fn try_from(args: ServeArgs) -> Result<Self, LoaderError> {
        let config = Self {
            datasets: args.shards,
            damage: args.damage,
            listen: args.listen,
            allow_remote_plaintext: args.allow_remote_plaintext,
            tls: tls_files(args.tls_cert, args.tls_key, args.client_ca)?,
            tenants: args.tenants,
            metrics_listen: args.metrics_listen,
            reflection: args.reflection,
            drain_timeout: args.drain_timeout.0,
            max_consumers: args.max_consumers,
            max_connections: args.max_connections,
            greeting_timeout: GREETING,
            max_batch_bytes: args.max_batch_bytes.0,
            max_plan_bytes: args.max_plan_bytes.0,
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
    fn metrics_that_others_reach_need_the_flag_whether_or_not_batches_are_encrypted() {
        let file = || PathBuf::from("file.pem");
        let tls = TlsFiles { certificate: file(), key: file(), client_authority: None, reload_every: RELOAD_EVERY };
        let shown = |listen: &str| Some(listen.parse().expect("an address"));
        for tls in [None, Some(tls)] {
            let config = ServeConfig { tls, metrics_listen: shown("0.0.0.0:9464"), ..config("127.0.0.1:0") };
            let fault = config.check().expect_err("refused");
            let told = fault.to_string();
            assert!(fault.is_usage() && told.contains("--metrics-listen 0.0.0.0:9464"), "{told}");
            assert!(ServeConfig { allow_remote_plaintext: true, ..config.clone() }.check().is_ok());
            assert!(ServeConfig { metrics_listen: shown("[::1]:9464"), ..config }.check().is_ok());
        }
    }

    #[test]
    fn a_server_for_nobody_is_refused() {
        let fault = ServeConfig { max_consumers: 0, ..config("127.0.0.1:0") }.check().expect_err("refused");
        assert!(fault.is_usage(), "{fault}");
    }
}
