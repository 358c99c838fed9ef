//! The way to a server: address, connection, description.

use std::net::IpAddr;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use vela_proto::v1::loader_client::LoaderClient;
use vela_proto::v1::{DescribeDatasetRequest, Partition};
use vela_proto::{
    MAX_FRAME_BYTES, MAX_RESPONSE_BYTES, Sealed, ServiceError, WireError, decode_fingerprint, decode_info, encode_spec,
};
use vela_types::{BatchSpec, DatasetInfo, Fingerprint};

use crate::connector::{AddressConnector, Addresses};
use crate::{ClientError, ClientOptions, TlsOptions, Token};

/// Room for a fast link with some delay; memory stays bounded by the byte credit, which is less or more.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// What a server says of the data under a spec.
#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) info: DatasetInfo,
    /// The spec's fingerprint.
    pub(crate) spec: Fingerprint,
    pub(crate) steps_per_epoch: u64,
}

/// A loader's calls, each with our token.
type Client = LoaderClient<InterceptedService<Channel, Bearer>>;

/// Shows the token with every call, if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    header: Option<MetadataValue<Ascii>>,
}

impl Bearer {
    fn new(token: Option<&Token>) -> Result<Self, ClientError> {
        let header = token.map(|token| format!("Bearer {}", token.as_str()).parse::<MetadataValue<Ascii>>());
        let mut header = header.transpose().map_err(|_| ClientError::Token)?;
        if let Some(header) = &mut header {
            header.set_sensitive(true);
        }
        Ok(Self { header })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// One loader's address, ready to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    url: String,
    endpoint: Endpoint,
    bearer: Bearer,
    timeout: Duration,
    patience: Duration,
    addresses: Addresses,
}

impl Server {
    /// The servers of a list with commas between: `http://host:port`, `https://host:port`, or `host:port` for the first.
    /// A name with several addresses is tried at each.
    pub(crate) fn list(urls: &str, options: &ClientOptions) -> Result<Vec<Self>, ClientError> {
        urls.split(',').map(|url| Self::new(url.trim(), options)).collect()
    }

    fn new(url: &str, options: &ClientOptions) -> Result<Self, ClientError> {
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let address = |source| ClientError::Address { url: url.to_owned(), source };
        let mut endpoint = Endpoint::from_shared(full.clone()).map_err(address)?;
        check_secrecy(url, endpoint.uri(), options)?;
        if endpoint.uri().scheme() == Some(&Scheme::HTTPS) {
            endpoint = endpoint.tls_config(tls_config(&options.tls)).map_err(address)?;
        }
        let endpoint = endpoint
            .connect_timeout(options.connect_timeout)
            // The large frames are what makes one connection fast on a short link.
            .max_frame_size(MAX_FRAME_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(2 * STREAM_WINDOW_BYTES)
            .http2_keep_alive_interval(options.keepalive)
            .keep_alive_timeout(options.keepalive)
            .keep_alive_while_idle(true);
        let bearer = Bearer::new(options.token.as_ref())?;
        let ClientOptions { connect_timeout: timeout, give_up_after: patience, .. } = *options;
        Ok(Self { url: full, endpoint, bearer, timeout, patience, addresses: Addresses::default() })
    }

    async fn connect(&self) -> Result<Client, ClientError> {
        let channel = self.channel().await?;
        Ok(LoaderClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES))
    }

    /// A connection of its own.
    pub(crate) async fn channel(&self) -> Result<InterceptedService<Channel, Bearer>, ClientError> {
        let unreachable = |source| ClientError::Unreachable { url: self.url.clone(), timeout: self.timeout, source };
        let connected =
            tokio::time::timeout(self.timeout, self.endpoint.connect_with_connector(self.connector())).await;
        let channel = connected.map_err(|late| unreachable(late.into()))?.map_err(|error| unreachable(error.into()))?;
        Ok(InterceptedService::new(channel, self.bearer.clone()))
    }

    /// [`Server::describe`], asked at each address of the name as long as another may answer better.
    pub(crate) async fn describe_at_any_address(
        &self,
        dataset: &str,
        spec: &BatchSpec,
        partition: Partition,
    ) -> Result<Description, ClientError> {
        let mut tries = 0;
        loop {
            let answer = self.describe(dataset, spec, partition).await;
            tries += 1;
            match answer {
                // The connector has tried them all.
                Err(error @ ClientError::Unreachable { .. }) => return Err(error),
                Err(error) if error.is_retryable() || error.is_of_one_server() => {
                    self.addresses.turn_to_next();
                    if tries >= self.addresses.count() {
                        return Err(error);
                    }
                }
                answer => return answer,
            }
        }
    }

    /// What the server has under the name `dataset`, and what `spec` makes of it; refused if `spec` does not fit or cannot be shared.
    pub(crate) async fn describe(
        &self,
        dataset: &str,
        spec: &BatchSpec,
        partition: Partition,
    ) -> Result<Description, ClientError> {
        let mut client = self.connect().await?;
        let (spec, partition) = (Some(encode_spec(spec)), Some(partition));
        let request = DescribeDatasetRequest { spec, partition, dataset: dataset.to_owned(), checksum: None }.sealed();
        let answer = tokio::time::timeout(self.patience, client.describe_dataset(request)).await;
        let silent = |_| ClientError::Silent { url: self.url.clone(), timeout: self.patience };
        let answer = answer.map_err(silent)?.map_err(|status| self.service_error(status))?.into_inner();
        let answer = answer.check().map_err(|fault| self.wire_error(fault))?;
        let info = decode_info(answer.info).map_err(|fault| self.wire_error(fault))?;
        let spec = decode_fingerprint(&answer.spec_fingerprint, "spec_fingerprint");
        let spec = spec.map_err(|fault| self.wire_error(fault))?;
        match answer.steps_per_epoch {
            0 => Err(self.wire_error(WireError::Missing { field: "steps_per_epoch" })),
            steps_per_epoch => Ok(Description { info, spec, steps_per_epoch }),
        }
    }

    fn connector(&self) -> AddressConnector {
        // Less than the whole time, so that this ends before the connection's own limit.
        AddressConnector { addresses: self.addresses.clone(), timeout: self.timeout * 9 / 10 }
    }

    /// What it is called may have several addresses, and replicas at each.
    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Whether nothing turns a bit on the way: encrypted, or inside this machine.
    pub(crate) fn is_guarded(&self) -> bool {
        self.url.starts_with("https://") || is_this_machine(self.endpoint.uri())
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

/// Tries after which each replica of `servers` was asked, turn after turn, at each address that its name is known to have.
pub(crate) fn num_replicas(servers: &[Server]) -> usize {
    servers.len() * servers.iter().map(|server| server.addresses.count()).max().unwrap_or(1)
}

/// Refuses to send in plain text what is meant to be secret.
fn check_secrecy(url: &str, uri: &Uri, options: &ClientOptions) -> Result<(), ClientError> {
    let url = || url.to_owned();
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => Ok(()),
        _ if options.tls != TlsOptions::default() => Err(ClientError::Unencrypted { url: url() }),
        _ if options.token.is_some() && !options.allow_remote_plaintext && !is_this_machine(uri) => {
            Err(ClientError::PlaintextToken { url: url() })
        }
        _ => Ok(()),
    }
}

fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn tls_config(options: &TlsOptions) -> ClientTlsConfig {
    let mut config = ClientTlsConfig::new();
    if let Some(authorities) = &options.authorities {
        config = config.ca_certificate(Certificate::from_pem(authorities));
    }
    if let Some((certificate, key)) = &options.identity {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    config
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn listed(urls: &str, tls: TlsOptions, token: Option<&str>) -> Result<usize, ClientError> {
        let options = ClientOptions { tls, token: token.map(Token::new), ..ClientOptions::default() };
        Server::list(urls, &options).map(|servers| servers.len())
    }

    #[test]
    fn what_is_meant_for_encrypted_connections_is_sent_on_no_other() {
        let authorities = TlsOptions { authorities: Some("PEM".to_owned()), identity: None };
        let identity = TlsOptions { authorities: None, identity: Some(("PEM".to_owned(), "PEM".to_owned())) };
        for tls in [authorities, identity] {
            for url in ["http://127.0.0.1:1", "localhost:1", "http://loader:2,https://loader:1"] {
                let error = listed(url, tls.clone(), None).expect_err(url);
                assert!(matches!(error, ClientError::Unencrypted { .. }), "{url}: {error}");
            }
        }
        assert!(matches!(listed("https://loader:1,HTTPS://loader:2", TlsOptions::default(), Some("token")), Ok(2)));
    }

    #[test]
    fn a_token_goes_to_another_machine_in_plain_text_only_where_that_is_allowed() {
        let plain = |url| listed(url, TlsOptions::default(), Some("token"));
        for url in
            ["http://loader:1", "loader:1", "http://10.0.0.1:1", "http://[2001:db8::1]:1", "localhost:1,loader:1"]
        {
            let error = plain(url).expect_err(url);
            assert!(matches!(error, ClientError::PlaintextToken { .. }), "{url}: {error}");
            assert!(listed(url, TlsOptions::default(), None).is_ok(), "{url}: there is no token");
            let options = ClientOptions { token: Some(Token::new("token")), ..ClientOptions::default() };
            assert!(Server::list(url, &ClientOptions { allow_remote_plaintext: true, ..options }).is_ok(), "{url}");
        }
        for url in ["http://localhost:1", "LOCALHOST:1", "http://127.0.0.2:1", "http://[::1]:1", "https://loader:1"] {
            assert!(plain(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn replicas_behind_one_name_are_counted_by_their_addresses() {
        let servers = Server::list("http://a:1,http://b:1", &ClientOptions::default()).expect("two urls");
        assert_eq!(num_replicas(&servers), 2, "no name was looked up");
        servers[1].addresses().in_turn((1..=3).map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect());
        assert_eq!(num_replicas(&servers), 6, "three turns of both");
        assert_eq!(num_replicas(&servers[..1]), 1);
    }
}
