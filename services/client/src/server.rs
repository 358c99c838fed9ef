//! The way to a server: address, connection, description.

use std::time::Duration;

use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use vela_proto::v1::loader_client::LoaderClient;
use vela_proto::v1::{DescribeDatasetRequest, Partition};
use vela_proto::{
    MAX_FRAME_BYTES, MAX_RESPONSE_BYTES, ServiceError, WireError, decode_fingerprint, decode_info, encode_spec,
};
use vela_types::{BatchSpec, DatasetInfo, Fingerprint};

use crate::{ClientError, ClientOptions};

/// Room for a fast link with some delay; memory stays bounded by the byte credit, which is less or more.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// A server that answers no ping for this long after one is lost.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// One loader's address, ready to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    url: String,
    endpoint: Endpoint,
    timeout: Duration,
}

impl Server {
    /// Takes `http://host:port`, or `host:port` for short.
    pub(crate) fn new(url: &str, options: &ClientOptions) -> Result<Self, ClientError> {
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let address = |source| ClientError::Address { url: url.to_owned(), source };
        let endpoint = Endpoint::from_shared(full.clone())
            .map_err(address)?
            .connect_timeout(options.connect_timeout)
            // The large frames are what makes one connection fast on a short link.
            .max_frame_size(MAX_FRAME_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(2 * STREAM_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        Ok(Self { url: full, endpoint, timeout: options.connect_timeout })
    }

    pub(crate) async fn connect(&self) -> Result<LoaderClient<Channel>, ClientError> {
        let unreachable = |source| ClientError::Unreachable { url: self.url.clone(), timeout: self.timeout, source };
        let connected = tokio::time::timeout(self.timeout, self.endpoint.connect()).await;
        let channel = connected.map_err(|late| unreachable(late.into()))?.map_err(|error| unreachable(error.into()))?;
        Ok(LoaderClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES))
    }

    /// What the server has, and the fingerprint of `spec` there; refused if `spec` does not fit or cannot be shared.
    pub(crate) async fn describe(
        &self,
        spec: &BatchSpec,
        partition: Partition,
    ) -> Result<(DatasetInfo, Fingerprint), ClientError> {
        let mut client = self.connect().await?;
        let request = DescribeDatasetRequest { spec: Some(encode_spec(spec)), partition: Some(partition) };
        let answer = tokio::time::timeout(self.timeout, client.describe_dataset(request)).await;
        let unreachable =
            |late| ClientError::Unreachable { url: self.url.clone(), timeout: self.timeout, source: Box::new(late) };
        let answer = answer.map_err(unreachable)?.map_err(|status| self.service_error(status))?.into_inner();
        let info = decode_info(answer.info).map_err(|fault| self.wire_error(fault))?;
        let spec = decode_fingerprint(&answer.spec_fingerprint, "spec_fingerprint");
        Ok((info, spec.map_err(|fault| self.wire_error(fault))?))
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn service_error(&self, error: impl Into<ServiceError>) -> ClientError {
        ClientError::Service { url: self.url.clone(), source: error.into() }
    }

    pub(crate) fn wire_error(&self, source: WireError) -> ClientError {
        ClientError::Wire { url: self.url.clone(), source }
    }

    /// A stream that ended without a word: the server is gone.
    pub(crate) fn ended(&self) -> ClientError {
        self.service_error(Status::unavailable("the stream ended"))
    }
}
