//! TCP connections to a name with several addresses.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tonic::transport::Uri;
use tower_service::Service;

/// Connects to the first address of a name that accepts, beginning with its `turn`-th: several replicas may stand behind one name, and the
/// resolver's first is not always one with room.
#[derive(Clone, Debug)]
pub(crate) struct AddressConnector {
    pub(crate) turn: usize,
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
        let Self { turn, timeout } = *self;
        Box::pin(async move {
            let (host, port) = host_and_port(&uri)?;
            let addresses = lookup_host((host, port)).await?.collect();
            connect(in_turn(addresses, turn), timeout).await
        })
    }
}

fn host_and_port(uri: &Uri) -> io::Result<(&str, u16)> {
    let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the address names no host"))?;
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    // An address of IPv6 stands in brackets.
    Ok((host.trim_start_matches('[').trim_end_matches(']'), uri.port_u16().unwrap_or(default)))
}

fn in_turn(mut addresses: Vec<SocketAddr>, turn: usize) -> Vec<SocketAddr> {
    if !addresses.is_empty() {
        let first = turn % addresses.len();
        addresses.rotate_left(first);
    }
    addresses
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
        let addresses = vec![dead, live[0], live[1]];
        for (turn, expected) in [(0, live[0]), (1, live[0]), (2, live[1]), (3, live[0])] {
            let stream = connect(in_turn(addresses.clone(), turn), Duration::from_secs(5)).await.expect("a connection");
            assert_eq!(stream.inner().peer_addr().expect("an address"), expected, "turn {turn}");
        }
    }
}
