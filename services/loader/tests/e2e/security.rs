//! Who is let in: tokens, certificates, encryption, for every call that the service has.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use vela_client::{ClientOptions, RemoteSource, TlsOptions, Token};
use vela_loader::{HealthTls, RELOAD_EVERY, ServeConfig, TlsFiles, check_health};
use vela_proto::encode_spec;
use vela_proto::v1::{self, loader_client::LoaderClient};
use vela_types::BatchSource;

use crate::authority::{Authority, digest};
use crate::loader::{LocalLoader, loopback};
use crate::shards;

pub(crate) const SECRET: &str = "the-token-of-research";
const OTHER: &str = "the-token-of-others";

/// A shard set as `train` and `val`; `research` may read the first, `others` the second.
pub(crate) struct House {
    folder: tempfile::TempDir,
}

impl House {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let shards = folder.path().join("shards");
        shards::write(&shards, &shards::Plan::small());
        let tenants = format!(
            "[tenant.research]\ntoken_sha256 = [\"{}\"]\ndatasets = [\"train\"]\nmax_consumers = 1\n\n\
             [tenant.others]\ntoken_sha256 = [\"{}\"]\ndatasets = [\"val\"]\n",
            digest(SECRET),
            digest(OTHER)
        );
        fs::write(folder.path().join("tenants.toml"), tenants).expect("a file");
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn config(&self) -> ServeConfig {
        let shards = self.path("shards").display().to_string();
        let datasets = ["train", "val"].map(|name| format!("{name}={shards}").parse().expect("a data set"));
        let tenants = Some(self.path("tenants.toml"));
        ServeConfig { datasets: datasets.into(), tenants, ..ServeConfig::new("", loopback(0)) }
    }
}

pub(crate) fn options(dataset: &str, token: Option<&str>) -> ClientOptions {
    let give_up_after = Duration::from_secs(2);
    let token = token.map(Token::new);
    ClientOptions { dataset: dataset.to_owned(), token, give_up_after, ..ClientOptions::default() }
}

pub(crate) fn connect(url: &str, options: ClientOptions) -> Result<RemoteSource, vela_client::ClientError> {
    RemoteSource::connect_with(url, shards::spec(), 0, 1, options)
}

/// The names of all calls of the service, out of its own descriptors.
fn calls() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(vela_proto::DESCRIPTORS).expect("descriptors");
    let services = files.file.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    services
        .flat_map(|(package, service)| {
            service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
        })
        .collect()
}

/// What the service answers to the call `path` with an empty request, made by hand so that no call can be forgotten.
async fn empty_call(channel: Channel, path: &str, header: Option<&str>) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("a connection");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let mut request = Request::new(tokio_stream::once(()));
    if let Some(header) = header {
        request.metadata_mut().insert("authorization", MetadataValue::try_from(header).expect("a header"));
    }
    let path: http::uri::PathAndQuery = path.parse().expect("a path");
    match client.streaming(request, path, codec).await {
        Err(status) => status,
        Ok(answer) => match answer.into_inner().message().await {
            Err(status) => status,
            Ok(_) => Status::ok(""),
        },
    }
}

#[test]
fn every_call_asks_who_calls() {
    let house = House::new();
    let loader = LocalLoader::with(house.config());
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let calls = calls();
    assert!(calls.len() >= 4 && calls.iter().any(|call| call.ends_with("Loader/Lookup")), "{calls:?}");
    let endpoint = Endpoint::from_shared(loader.url()).expect("a url");
    for call in &calls {
        for (header, expected) in [
            (None, Code::Unauthenticated),
            (Some("Bearer wrong"), Code::Unauthenticated),
            (Some("Basic the-token-of-research"), Code::Unauthenticated),
            (Some(""), Code::Unauthenticated),
        ] {
            let status = runtime.block_on(async {
                let channel = endpoint.connect().await.expect("a connection");
                empty_call(channel, call, header).await
            });
            assert_eq!(status.code(), expected, "{call} with {header:?}: {status:?}");
        }
        let known = format!("Bearer {SECRET}");
        let status = runtime.block_on(async {
            let channel = endpoint.connect().await.expect("a connection");
            empty_call(channel, call, Some(&known)).await
        });
        let answered = !matches!(status.code(), Code::Unauthenticated | Code::Unimplemented);
        assert!(answered, "{call}: {status:?}");
    }
}

#[test]
fn a_tenant_reads_its_own_data_sets_alone_and_is_told_so() {
    let house = House::new();
    let loader = LocalLoader::with(house.config());
    let mut own = connect(&loader.url(), options("train", Some(SECRET))).expect("its own");
    own.next_batch().expect("a batch");
    for (dataset, token, named) in [
        ("val", Some(SECRET), "may read the data sets `train` and no `val`"),
        ("train", Some(OTHER), "may read the data sets `val` and no `train`"),
        ("absent", Some(SECRET), "may read the data sets `train` and no `absent`"),
        ("train", None, "expected `authorization: Bearer TOKEN`"),
        ("train", Some("guess"), "none of this loader's"),
    ] {
        let error = connect(&loader.url(), options(dataset, token)).expect_err(named);
        let told = format!("{error:?}");
        assert!(told.contains(named) && !error.is_retryable(), "{told}");
        assert!(!told.contains(SECRET) && !told.contains("guess"), "{told}");
    }
}

/// A good request of each call for the data set `train`, by the token of whoever may not read it.
#[test]
fn no_call_gives_a_tenant_what_is_not_its_own() {
    let house = House::new();
    let loader = LocalLoader::with(house.config());
    let url = loader.url();
    let cursor = connect(&url, options("train", Some(SECRET))).expect("its own").start_cursor();
    let dataset = "train".to_owned();
    let (spec, partition) = (Some(encode_spec(&shards::spec())), Some(v1::Partition { rank: 0, world: 1 }));
    let describe = v1::DescribeDatasetRequest { spec, partition, dataset: dataset.clone(), checksum: None };
    let lookup = v1::LookupRequest { index: 0, dataset: dataset.clone() };
    let position = Some(v1::Position { epoch: 0, step: 0, micro: 0 });
    let get = v1::GetBatchRequest { dataset: dataset.clone(), spec, partition, position, checksum: None };
    let cursor = Some(vela_proto::encode_cursor(&cursor));
    let open = v1::OpenStream { spec, partition, cursor, micro: 0, credit_bytes: 1 << 20, dataset, checksum: None };
    let open = v1::StreamBatchesRequest { request: Some(v1::stream_batches_request::Request::Open(open)) };
    let ask = |token: &str| {
        let header: MetadataValue<_> = format!("Bearer {token}").parse().expect("a header");
        let show = move |mut request: Request<()>| {
            request.metadata_mut().insert("authorization", header.clone());
            Ok(request)
        };
        let endpoint = Endpoint::from_shared(url.clone()).expect("a url");
        let (describe, lookup, get, open) = (describe.clone(), lookup.clone(), get.clone(), open.clone());
        tokio::runtime::Runtime::new().expect("an event loop").block_on(async move {
            let mut client = LoaderClient::with_interceptor(endpoint.connect().await.expect("a connection"), show);
            let codes = [
                client.describe_dataset(describe).await.map(drop),
                client.lookup(lookup).await.map(drop),
                client.get_batch(get).await.map(drop),
                client.stream_batches(tokio_stream::once(open)).await.map(drop),
            ];
            codes.map(|answer| answer.map_or_else(|status| status.code(), |()| Code::Ok))
        })
    };
    assert_eq!(calls().len(), 4, "a new call belongs here");
    assert_eq!(ask(SECRET), [Code::Ok; 4]);
    assert_eq!(ask(OTHER), [Code::PermissionDenied; 4]);
}

/// A consumer that says no more but takes nothing either still holds what was made for it.
#[test]
fn a_place_is_held_until_the_last_part_is_taken() {
    let house = House::new();
    let loader = LocalLoader::with(ServeConfig { tenants: None, max_consumers: 1, ..house.config() });
    let mut other = connect(&loader.url(), options("train", None)).expect("described");
    let cursor = Some(vela_proto::encode_cursor(&other.start_cursor()));
    let (spec, partition) = (Some(encode_spec(&shards::spec())), Some(v1::Partition { rank: 0, world: 1 }));
    let open = v1::OpenStream {
        spec,
        partition,
        cursor,
        micro: 0,
        credit_bytes: 1 << 40,
        dataset: "train".to_owned(),
        checksum: None,
    };
    let open = v1::StreamBatchesRequest { request: Some(v1::stream_batches_request::Request::Open(open)) };
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let endpoint = Endpoint::from_shared(loader.url()).expect("a url").initial_stream_window_size(Some(1));
    let (requests, outbound) = tokio::sync::mpsc::channel(1);
    let held = runtime.block_on(async {
        let mut client = LoaderClient::new(endpoint.connect().await.expect("a connection"));
        requests.send(open).await.expect("room for one");
        let parts = client.stream_batches(ReceiverStream::new(outbound)).await.expect("a stream");
        (client, parts)
    });
    std::thread::sleep(Duration::from_millis(300));
    drop(requests);
    std::thread::sleep(Duration::from_millis(300));
    let told = format!("{:?}", other.next_batch().expect_err("the place is taken"));
    assert!(told.contains("serves as many consumers as it may"), "{told}");
    drop(held);
    let started = Instant::now();
    while other.next_batch().is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "the place was not given back");
    }
}

#[test]
fn a_connection_too_many_is_closed_and_let_in_when_there_is_room() {
    let house = House::new();
    let loader = LocalLoader::with(ServeConfig { tenants: None, max_connections: 2, ..house.config() });
    let idle = [(); 2].map(|()| TcpStream::connect(loader.addr()).expect("a connection"));
    std::thread::sleep(Duration::from_millis(200));
    assert!(connect(&loader.url(), options("train", None)).is_err(), "both places are taken");
    drop(idle);
    let started = Instant::now();
    while connect(&loader.url(), options("train", None)).is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "the places were not given back");
    }
}

#[test]
fn a_watcher_of_the_health_does_not_hold_up_a_stop() {
    let house = House::new();
    let loader = LocalLoader::with(ServeConfig { tenants: None, ..house.config() });
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let endpoint = Endpoint::from_shared(loader.url()).expect("a url");
    let mut states = runtime.block_on(async {
        let mut client = HealthClient::new(endpoint.connect().await.expect("a connection"));
        let service = "vela.loader.v1.Loader".to_owned();
        client.watch(HealthCheckRequest { service }).await.expect("a watch").into_inner()
    });
    let mut next = || runtime.block_on(states.message()).map(|state| state.map(|state| state.status()));
    assert_eq!(next().expect("a state"), Some(ServingStatus::Serving));
    let started = Instant::now();
    assert!(loader.stop().drained && started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_tenant_at_its_limit_waits_and_holds_nobody_else_up() {
    let house = House::new();
    let loader = LocalLoader::with(house.config());
    let mut first = connect(&loader.url(), options("train", Some(SECRET))).expect("a place");
    first.next_batch().expect("a batch");
    let mut second = connect(&loader.url(), options("train", Some(SECRET))).expect("described");
    let told = format!("{:?}", second.next_batch().expect_err("one consumer at once"));
    assert!(told.contains("has its 1 consumers"), "{told}");
    connect(&loader.url(), options("val", Some(OTHER))).expect("another").next_batch().expect("a batch");
    drop(first);
    let started = Instant::now();
    while second.next_batch().is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "the place was not given back");
    }
}

pub(crate) fn tls_config(house: &House, authority: &Authority, asks_clients: bool) -> ServeConfig {
    let (certificate, key, _) = authority.issue("localhost");
    fs::write(house.path("server.pem"), certificate).expect("a file");
    fs::write(house.path("server.key"), key).expect("a file");
    fs::write(house.path("ca.pem"), authority.pem()).expect("a file");
    let client_authority = asks_clients.then(|| house.path("ca.pem"));
    let tls = TlsFiles {
        certificate: house.path("server.pem"),
        key: house.path("server.key"),
        client_authority,
        reload_every: RELOAD_EVERY,
    };
    ServeConfig { tls: Some(tls), ..house.config() }
}

pub(crate) fn trusting(
    authority: &Authority,
    token: Option<&str>,
    identity: Option<(String, String)>,
) -> ClientOptions {
    ClientOptions { tls: TlsOptions { authorities: Some(authority.pem()), identity }, ..options("train", token) }
}

#[test]
fn an_encrypted_stream_gives_the_same_batches_to_who_trusts_the_authority() {
    let (house, authority) = (House::new(), Authority::new());
    let loader = LocalLoader::with(tls_config(&house, &authority, false));
    let url = format!("https://localhost:{}", loader.addr().port());
    let mut encrypted = connect(&url, trusting(&authority, Some(SECRET), None)).expect("a connection");
    let plain = LocalLoader::with(house.config());
    let mut open = connect(&plain.url(), options("train", Some(SECRET))).expect("a connection");
    for _ in 0..8 {
        assert_eq!(encrypted.next_batch().expect("a batch"), open.next_batch().expect("a batch"));
    }
    for (url, options) in [
        (url.clone(), trusting(&Authority::new(), Some(SECRET), None)),
        (format!("https://127.0.0.1:{}", loader.addr().port()), trusting(&authority, Some(SECRET), None)),
        (format!("http://localhost:{}", loader.addr().port()), options("train", Some(SECRET))),
    ] {
        assert!(connect(&url, options).is_err(), "{url}");
    }
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let address = format!("localhost:{}", loader.addr().port());
    let ask = |tls: Option<HealthTls>| {
        let asked = runtime.block_on(check_health(&address, Duration::from_secs(5), tls.as_ref()));
        asked.map_err(|fault| fault.is_usage())
    };
    assert_eq!(ask(Some(HealthTls { authority: house.path("ca.pem"), identity: None })), Ok(()));
    assert_eq!(ask(None), Err(false), "not in plain text");
    assert_eq!(ask(Some(HealthTls { authority: house.path("absent.pem"), identity: None })), Err(true));
}

#[test]
fn an_older_protocol_than_tls_1_3_is_refused() {
    let (house, authority) = (House::new(), Authority::new());
    let loader = LocalLoader::with(tls_config(&house, &authority, false));
    let mut roots = rustls::RootCertStore::empty();
    let der = authority.der();
    roots.add(der).expect("an authority");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let handshake = |version: &'static rustls::SupportedProtocolVersion| {
        let config = rustls::ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[version]);
        let config = config.expect("a version").with_root_certificates(roots.clone()).with_no_client_auth();
        let name = "localhost".try_into().expect("a name");
        let mut session = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("a session");
        let mut socket = TcpStream::connect(loader.addr()).expect("a connection");
        let mut stream = rustls::Stream::new(&mut session, &mut socket);
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .and_then(|()| stream.read_exact(&mut [0; 9]))
    };
    handshake(&rustls::version::TLS13).expect("a settings frame");
    assert!(handshake(&rustls::version::TLS12).is_err());
}

#[test]
fn a_client_certificate_says_who_calls() {
    let (house, authority) = (House::new(), Authority::new());
    let (certificate, key, digest) = authority.issue("research");
    let (stranger, stranger_key, _) = authority.issue("stranger");
    let tenants = format!("[tenant.research]\ncertificate_sha256 = [\"{digest}\"]\ndatasets = [\"*\"]\n");
    fs::write(house.path("tenants.toml"), tenants).expect("a file");
    let loader = LocalLoader::with(tls_config(&house, &authority, true));
    let url = format!("https://localhost:{}", loader.addr().port());
    let try_with =
        |identity| connect(&url, trusting(&authority, None, identity)).map(|mut source| source.next_batch().is_ok());
    assert!(matches!(try_with(Some((certificate, key))), Ok(true)));
    let refused = try_with(Some((stranger, stranger_key))).expect_err("a certificate of nobody");
    assert!(format!("{refused:?}").contains("the certificate of a tenant"), "{refused:?}");
    assert!(try_with(None).is_err(), "a certificate is asked for");
    let (foreign, foreign_key, _) = Authority::new().issue("research");
    assert!(try_with(Some((foreign, foreign_key))).is_err(), "of an authority that is not trusted");
}
