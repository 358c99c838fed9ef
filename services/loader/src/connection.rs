//! Connections as the service sees them: plain or encrypted, with what is known of the peer.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;
use vela_runtime::Shutdown;

use crate::LoaderError;

/// Handshakes of one address under way at once; one more is turned away, so that nobody keeps others out by saying nothing.
const HANDSHAKES_PER_ADDRESS: usize = 64;
/// What a peer must have said before it counts as one that speaks HTTP/2: the preface and the head of its first frame. From there on
/// the server asks who is silent for a sign.
const GREETING_BYTES: usize = 24 + 9;
/// Connections between the door and the server.
const QUEUED_CONNECTIONS: usize = 64;
/// How often files are looked at for newer certificates, unless told otherwise.
pub const RELOAD_EVERY: Duration = Duration::from_secs(10);

/// Where certificates lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of client certificates, PEM; with it, only clients that have one are let in.
    pub client_authority: Option<PathBuf>,
    /// How long the files are trusted before a new connection has them looked at again.
    pub reload_every: Duration,
}

/// What is known of the other side of a connection.
#[derive(Clone, Debug)]
pub(crate) struct PeerInfo {
    /// SHA-256 of its certificate, verified against the authorities.
    pub(crate) certificate_sha256: Option<[u8; 32]>,
}

/// A connection, ready for HTTP/2.
pub(crate) struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    peer: PeerInfo,
    /// Until the peer has greeted.
    greeting: Option<Greeting>,
    _place: OwnedSemaphorePermit,
}

/// What a peer still has to say for its greeting, and why it is not waited for any longer.
struct Greeting {
    num_missing: usize,
    over: Pin<Box<dyn Future<Output = io::Error> + Send>>,
}

impl Greeting {
    /// It is waited for `patience` long, and no longer than the server runs: who has not begun to speak holds up no stop.
    fn new(patience: Duration, stop: Shutdown) -> Self {
        let over = async move {
            let (kind, told) = tokio::select! {
                () = tokio::time::sleep(patience) => (io::ErrorKind::TimedOut, "the peer did not begin to speak HTTP/2"),
                () = stop.wait() => (io::ErrorKind::ConnectionAborted, "the loader is stopping"),
            };
            io::Error::new(kind, told)
        };
        Self { num_missing: GREETING_BYTES, over: Box::pin(over) }
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some(greeting) = &mut self.greeting else { return read };
        let num_read = buffer.filled().len() - before;
        greeting.num_missing = greeting.num_missing.saturating_sub(num_read);
        if greeting.num_missing == 0 {
            self.greeting = None;
            return read;
        }
        match read {
            Poll::Pending => greeting.over.as_mut().poll(context).map(Err),
            read => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Certificates that are read again when their files change; connections that are open keep theirs.
pub(crate) struct Certificates {
    files: TlsFiles,
    current: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<rustls::ServerConfig>,
    stamps: Vec<Option<SystemTime>>,
    looked_at: SystemTime,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// If one is missing, is not PEM, or the key does not belong to the certificate.
    pub(crate) fn load(files: TlsFiles) -> Result<Self, LoaderError> {
        let loaded = Loaded { config: server_config(&files)?, stamps: stamps(&files), looked_at: SystemTime::now() };
        Ok(Self { files, current: Mutex::new(loaded) })
    }

    /// What a new connection is accepted with. Files that cannot be used any more leave what there was.
    fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked_at.elapsed().is_ok_and(|since| since >= self.files.reload_every) {
            current.looked_at = SystemTime::now();
            let stamps = stamps(&self.files);
            if stamps != current.stamps {
                match server_config(&self.files) {
                    Ok(config) => {
                        tracing::info!("certificates read again");
                        (current.config, current.stamps) = (config, stamps);
                    }
                    Err(error) => tracing::warn!(%error, "new certificates cannot be used; the old ones are kept"),
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&current.config))
    }
}

fn stamps(files: &TlsFiles) -> Vec<Option<SystemTime>> {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_authority.as_ref()];
    paths.into_iter().flatten().map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok()).collect()
}

/// TLS 1.3 alone, HTTP/2 alone.
fn server_config(files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>, LoaderError> {
    let certificates = read_certificates("--tls-cert", &files.certificate)?;
    let unusable = |flag, path: &PathBuf, source: Box<dyn std::error::Error + Send + Sync>| LoaderError::Tls {
        flag,
        path: path.clone(),
        source,
    };
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|fault| unusable("--tls-key", &files.key, fault.into()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has the suites of TLS 1.3");
    let builder = match &files.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let refused = |fault: Box<dyn std::error::Error + Send + Sync>| unusable("--client-ca", path, fault);
            let mut authorities = RootCertStore::empty();
            for certificate in read_certificates("--client-ca", path)? {
                authorities.add(certificate).map_err(|fault| refused(fault.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|fault| refused(fault.into()))?)
        }
    };
    let config = builder.with_single_cert(certificates, key);
    let mut config = config.map_err(|fault| unusable("--tls-key", &files.key, fault.into()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn read_certificates(flag: &'static str, path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, LoaderError> {
    let unusable =
        |source: Box<dyn std::error::Error + Send + Sync>| LoaderError::Tls { flag, path: path.clone(), source };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|fault| unusable(fault.into()))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|fault| unusable(fault.into()))?;
    match certificates.is_empty() {
        true => Err(unusable("expected a certificate, found none".into())),
        false => Ok(certificates),
    }
}

/// Who is let in: so many connections in all, so many handshakes of one address.
struct Door {
    certificates: Option<Arc<Certificates>>,
    /// How long a handshake may take, and then the greeting.
    patience: Duration,
    stop: Shutdown,
    places: Arc<Semaphore>,
    /// Handshakes under way by address.
    greeted: Mutex<HashMap<IpAddr, usize>>,
}

impl Door {
    /// The connection of `stream`, or why it was turned away.
    async fn let_in(&self, stream: TcpStream, address: IpAddr) -> io::Result<Connection> {
        let turned_away = |told: &'static str| io::Error::new(io::ErrorKind::ConnectionRefused, told);
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| turned_away("as many connections as `--max-connections` are open"))?;
        let under_way = *self.greeted().entry(address).and_modify(|num| *num += 1).or_insert(1);
        let greeted = match under_way <= HANDSHAKES_PER_ADDRESS {
            true => self.greet(stream, place).await,
            false => Err(turned_away("too many handshakes of this address are under way")),
        };
        let mut addresses = self.greeted();
        let left = addresses.get(&address).map_or(0, |num| num.saturating_sub(1));
        match left {
            0 => drop(addresses.remove(&address)),
            left => drop(addresses.insert(address, left)),
        }
        greeted
    }

    async fn greet(&self, stream: TcpStream, place: OwnedSemaphorePermit) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let (stream, certificate_sha256) = match &self.certificates {
            None => (Either::Left(stream), None),
            Some(certificates) => {
                let stream = tokio::time::timeout(self.patience, certificates.acceptor().accept(stream)).await??;
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let digest = shown.map(|certificate| Sha256::digest(certificate).into());
                (Either::Right(Box::new(stream)), digest)
            }
        };
        let greeting = Some(Greeting::new(self.patience, self.stop.clone()));
        Ok(Connection { stream, peer: PeerInfo { certificate_sha256 }, greeting, _place: place })
    }

    fn greeted(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.greeted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts connections until `stop`, `max_connections` at once, each with `patience` to begin; those whose handshake is done come out of the channel.
pub(crate) fn accept(
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    max_connections: u32,
    patience: Duration,
    stop: Shutdown,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(QUEUED_CONNECTIONS);
    let places = Arc::new(Semaphore::new(max_connections as usize));
    let door = Arc::new(Door { certificates, patience, stop: stop.clone(), places, greeted: Mutex::default() });
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.wait() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                // Of a connection that was gone again, or of too many open files: neither ends the server.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (ready, door) = (ready.clone(), Arc::clone(&door));
            tokio::spawn(async move {
                match door.let_in(stream, address.ip()).await {
                    Ok(connection) => _ = ready.send(Ok(connection)).await,
                    Err(error) => tracing::info!(%address, %error, "connection refused"),
                }
            });
        }
    });
    connections
}
