//! Peers that reach the port and do not speak, or do not go on: they keep nobody out for long, and hold up no stop.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use vela_client::ClientOptions;
use vela_loader::ServeConfig;
use vela_types::BatchSource;

use crate::authority::Authority;
use crate::loader::LocalLoader;
use crate::security::{House, SECRET, connect, options, tls_config, trusting};

/// What a client of HTTP/2 says first: the preface, and an empty frame of settings.
const GREETING: &[u8; 33] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Nothing, a byte, half of the preface, all of it, all but the last byte.
const BEGINNINGS: [usize; 5] = [0, 1, 12, 24, 32];

/// Something to read from and write to.
trait Peer: Read + Write + Send {}
impl<T: Read + Write + Send> Peer for T {}

/// A connection on which the first `said` bytes of the greeting were said.
fn begin(address: SocketAddr, authority: Option<&Authority>, said: usize) -> Box<dyn Peer> {
    let socket = TcpStream::connect(address).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let mut peer: Box<dyn Peer> = match authority {
        None => Box::new(socket),
        Some(authority) => Box::new(rustls::StreamOwned::new(session(authority), socket)),
    };
    peer.write_all(&GREETING[..said]).expect("a place");
    peer.flush().expect("the handshake");
    peer
}

fn session(authority: &Authority) -> rustls::ClientConnection {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der()).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("a version").with_root_certificates(roots).with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    rustls::ClientConnection::new(Arc::new(config), name).expect("a session")
}

/// Whether the other side closes; what it says before does not count.
fn is_closed(peer: &mut dyn Peer) -> bool {
    let mut buffer = [0; 256];
    loop {
        match peer.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(fault) => return fault.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// Tries until there is a place.
fn connect_in_time(url: &str, options: &ClientOptions) {
    let started = Instant::now();
    loop {
        let source = connect(url, options.clone()).map_err(|error| format!("{error:?}"));
        match source.and_then(|mut source| source.next_batch().map_err(|error| format!("{error:?}"))) {
            Ok(_) => return,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "the places are kept: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn peers_that_begin_and_do_not_go_on_give_their_places_back() {
    let (house, authority) = (House::new(), Authority::new());
    let encrypted = tls_config(&house, &authority, false);
    let give_back = |config: ServeConfig, authority: Option<&Authority>, said: usize| {
        let loader =
            LocalLoader::with(ServeConfig { max_connections: 2, greeting_timeout: Duration::from_secs(2), ..config });
        let mut peers = [(); 2].map(|()| begin(loader.addr(), authority, said));
        match authority {
            None => connect_in_time(&loader.url(), &options("train", Some(SECRET))),
            Some(authority) => {
                let url = format!("https://localhost:{}", loader.addr().port());
                connect_in_time(&url, &trusting(authority, Some(SECRET), None));
            }
        }
        let closed = peers.each_mut().map(|peer| is_closed(&mut **peer));
        assert_eq!(closed, [true; 2], "{said} bytes said, encrypted: {}", authority.is_some());
    };
    std::thread::scope(|scope| {
        for said in BEGINNINGS {
            let (give_back, house, encrypted, authority) = (&give_back, &house, &encrypted, &authority);
            scope.spawn(move || give_back(house.config(), None, said));
            scope.spawn(move || give_back(encrypted.clone(), Some(authority), said));
        }
    });
}

#[test]
fn a_peer_that_has_begun_to_speak_is_not_cut_off() {
    let house = House::new();
    let loader = LocalLoader::with(ServeConfig { greeting_timeout: Duration::from_millis(200), ..house.config() });
    let mut peer = begin(loader.addr(), None, GREETING.len());
    std::thread::sleep(Duration::from_millis(600));
    // A ping, which must be answered: a frame of type 6 with flag 1 and the same eight bytes.
    peer.write_all(b"\0\0\x08\x06\0\0\0\0\0pingpong").expect("an open connection");
    let mut heard = Vec::new();
    while !heard.ends_with(b"\0\0\x08\x06\x01\0\0\0\0pingpong") {
        let mut byte = [0];
        peer.read_exact(&mut byte).expect("an answer");
        heard.push(byte[0]);
    }
}

#[test]
fn peers_that_have_not_begun_hold_up_no_stop() {
    let house = House::new();
    for said in BEGINNINGS {
        let loader = LocalLoader::with(ServeConfig { greeting_timeout: Duration::from_secs(60), ..house.config() });
        let mut peer = begin(loader.addr(), None, said);
        // Its connection stands when a later one does.
        connect_in_time(&loader.url(), &options("train", Some(SECRET)));
        let started = Instant::now();
        let report = loader.stop();
        assert!(report.drained && started.elapsed() < Duration::from_secs(5), "{said} bytes said: {report:?}");
        assert!(is_closed(&mut *peer));
    }
}

#[test]
fn handshakes_of_one_address_leave_places_to_others() {
    /// More than one address may have under way, less than there are peers.
    const PLACES: u32 = 66;
    let (house, authority) = (House::new(), Authority::new());
    let config = tls_config(&house, &authority, false);
    let config = ServeConfig { max_connections: PLACES, greeting_timeout: Duration::from_secs(60), ..config };
    let loader = LocalLoader::with(config);
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let from_elsewhere = async || {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).expect("another loopback address");
        socket.connect(loader.addr()).await.expect("a connection")
    };
    let silent: Vec<_> = (0..PLACES + 14).map(|_| runtime.block_on(from_elsewhere())).collect();
    let url = format!("https://localhost:{}", loader.addr().port());
    connect_in_time(&url, &trusting(&authority, Some(SECRET), None));
    drop(silent);
}
