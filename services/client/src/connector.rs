//! TCP connections to a name with several addresses.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tonic::transport::Uri;
use tower_service::Service;

/// The addresses of a name, and whose turn it is: several replicas may stand behind one name. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    /// In a lasting order: resolvers change theirs with every answer. Empty until the name is first looked up.
    known: Arc<Mutex<Vec<SocketAddr>>>,
    turn: Arc<AtomicUsize>,
}

impl Addresses {
    /// The next connection is tried at the next address first.
    pub(crate) fn turn_to_next(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// As many turns give each a first try; one if they are not known yet.
    pub(crate) fn count(&self) -> usize {
        self.lock().len().max(1)
    }

    /// Those that were `found` now, in the order in which they are to be tried.
    pub(crate) fn in_turn(&self, found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let mut known = self.lock();
        known.retain(|address| found.contains(address));
        for address in found {
            if !known.contains(&address) {
                known.push(address);
            }
        }
        let mut addresses = known.clone();
        let turn = self.turn.load(Ordering::Relaxed);
        addresses.rotate_left(turn.checked_rem(known.len()).unwrap_or(0));
        addresses
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects to the first address of a name that accepts, beginning with the one whose turn it is: the resolver's first is not always one
/// with room.
#[derive(Clone, Debug)]
pub(crate) struct AddressConnector {
    pub(crate) addresses: Addresses,
    /// For all addresses together.
    pub(crate) timeout: Duration,
}

impl Service<Uri> for AddressConnector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { addresses, timeout } = self.clone();
        Box::pin(async move {
            let (host, port) = host_and_port(&uri)?;
            let found = lookup_host((host, port)).await?.collect();
            connect(addresses.in_turn(found), timeout).await
        })
    }
}

fn host_and_port(uri: &Uri) -> io::Result<(&str, u16)> {
    let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the address names no host"))?;
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    // An address of IPv6 stands in brackets.
    Ok((host.trim_start_matches('[').trim_end_matches(']'), uri.port_u16().unwrap_or(default)))
}

async fn connect(addresses: Vec<SocketAddr>, timeout: Duration) -> io::Result<TokioIo<TcpStream>> {
    // An address that swallows everything must not use up the time of the others.
    let of_each = timeout / (addresses.len() as u32).max(1);
    let mut fault = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match tokio::time::timeout(of_each, TcpStream::connect(address)).await.unwrap_or_else(|late| Err(late.into())) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(TokioIo::new(stream));
            }
            Err(refused) => fault = refused,
        }
    }
    Err(fault)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_host_and_port_of_a_url_are_found() {
        let parts =
            |url: &'static str| host_and_port(&Uri::from_static(url)).map(|(host, port)| (host.to_owned(), port)).ok();
        assert_eq!(parts("http://loader:50051"), Some(("loader".to_owned(), 50051)));
        assert_eq!(parts("http://[::1]:9"), Some(("::1".to_owned(), 9)));
        assert_eq!(parts("https://loader"), Some(("loader".to_owned(), 443)));
    }

    #[tokio::test]
    async fn each_address_has_its_turn_and_a_dead_one_is_passed_over() {
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            TcpListener::bind("127.0.0.2:0").await.expect("a port"),
        ];
        let dead = TcpListener::bind("127.0.0.3:0").await.expect("a port").local_addr().expect("an address");
        let live = listeners.each_ref().map(|listener| listener.local_addr().expect("an address"));
        let (found, addresses) = (vec![dead, live[0], live[1]], Addresses::default());
        for (turn, expected) in [(0, live[0]), (1, live[0]), (2, live[1]), (3, live[0])] {
            let in_turn = addresses.in_turn(found.clone());
            let stream = connect(in_turn, Duration::from_secs(5)).await.expect("a connection");
            assert_eq!(stream.inner().peer_addr().expect("an address"), expected, "turn {turn}");
            addresses.turn_to_next();
        }
    }

    #[test]
    fn each_address_has_its_turn_in_whatever_order_they_are_told() {
        let [a, b, c] = [1, 2, 3].map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
        let addresses = Addresses::default();
        assert_eq!((addresses.count(), addresses.in_turn(Vec::new())), (1, Vec::new()));
        let mut tried = Vec::new();
        for found in [[a, b, c], [b, c, a], [c, a, b]] {
            tried.push(addresses.in_turn(found.to_vec())[0]);
            addresses.turn_to_next();
        }
        assert_eq!((tried, addresses.count()), (vec![a, b, c], 3));
        // One is gone, one is new.
        assert_eq!(addresses.in_turn(vec![c, a]), [c, a]);
        assert_eq!(addresses.in_turn(vec![b, c, a]).len(), 3);
    }
}
