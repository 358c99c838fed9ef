//! `loader healthcheck`: asks a running server whether it serves.

use std::time::Duration;

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::LoaderError;

/// The service's full name, as health checks ask for it.
const SERVICE: &str = "vela.loader.v1.Loader";

/// Succeeds if the loader at `address` (`host:port` or a url) answers within `timeout` that it serves.
pub async fn check_health(address: &str, timeout: Duration) -> Result<(), LoaderError> {
    let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(url)
        .map_err(|source| LoaderError::Address { address: address.to_owned(), source })?
        .connect_timeout(timeout)
        .timeout(timeout);
    let unreachable = |source| LoaderError::Unreachable { address: address.to_owned(), timeout, source };
    let channel = endpoint.connect().await.map_err(|error| unreachable(error.into()))?;
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let answer = HealthClient::new(channel).check(request).await.map_err(|status| unreachable(status.into()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(LoaderError::NotServing { address: address.to_owned(), status: status.as_str_name().to_owned() }),
    }
}
