//! `loader healthcheck`: asks a running server whether it serves.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::LoaderError;

/// The service's full name, as health checks ask for it.
const SERVICE: &str = "vela.loader.v1.Loader";

/// How an encrypted loader is asked: PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthTls {
    /// Authorities of the server.
    pub authority: PathBuf,
    /// Our certificate and key, for a server that asks for them.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl HealthTls {
    fn config(&self) -> Result<ClientTlsConfig, LoaderError> {
        let read = |flag, path: &PathBuf| {
            fs::read(path).map_err(|source| LoaderError::Tls { flag, path: path.clone(), source: source.into() })
        };
        let config =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--authority", &self.authority)?));
        Ok(match &self.identity {
            None => config,
            Some((certificate, key)) => {
                config.identity(Identity::from_pem(read("--tls-cert", certificate)?, read("--tls-key", key)?))
            }
        })
    }
}

/// Succeeds if the loader at `address` (`host:port` or a url) answers within `timeout` that it serves.
pub async fn check_health(address: &str, timeout: Duration, tls: Option<&HealthTls>) -> Result<(), LoaderError> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = if address.contains("://") { address.to_owned() } else { format!("{scheme}://{address}") };
    let wrong = |source| LoaderError::Address { address: address.to_owned(), source };
    let mut endpoint = Endpoint::from_shared(url).map_err(wrong)?.connect_timeout(timeout).timeout(timeout);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.config()?).map_err(wrong)?;
    }
    let unreachable = |source| LoaderError::Unreachable { address: address.to_owned(), timeout, source };
    let channel = endpoint.connect().await.map_err(|error| unreachable(error.into()))?;
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let answer = HealthClient::new(channel).check(request).await.map_err(|status| unreachable(status.into()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(LoaderError::NotServing { address: address.to_owned(), status: status.as_str_name().to_owned() }),
    }
}
