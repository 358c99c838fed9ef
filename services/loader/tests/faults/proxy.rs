//! A proxy between a client and a loader that does to connections what networks do, by a seed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use vela_types::SeedStream;

use crate::loader::loopback;

/// What happens to a connection once some bytes have passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Both sides get a reset.
    Reset,
    /// Both sides get an end of stream.
    Close,
    /// The side that receives gets an end of stream; the other direction goes on.
    HalfClose,
    /// Nothing passes for this time, in this direction.
    Stall(Duration),
    /// From now on each piece comes late.
    Delay(Duration),
    /// From now on everything is taken and nothing given, in both directions.
    Swallow,
    /// One bit is turned.
    FlipBit,
}

/// The direction in which the bytes are counted that bring a fault on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToClient,
    ToServer,
}

/// One connection's fate.
#[derive(Clone, Copy, Debug)]
struct Fate {
    fault: Fault,
    way: Way,
    /// Bytes that pass before.
    after: u64,
    /// Which bit of the byte is turned.
    bit: u8,
}

/// What a proxy does to the connections that come to it.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) seed: u64,
    /// One is drawn for each connection.
    pub(crate) faults: Vec<Fault>,
    /// Most bytes that pass before it strikes.
    pub(crate) most_bytes: u64,
}

#[derive(Default)]
struct Shared {
    num_connections: AtomicU64,
    is_calm: AtomicBool,
    struck: Mutex<BTreeMap<&'static str, u64>>,
}

/// The proxy, on an event loop of its own; its connections are cut when it is dropped.
pub(crate) struct FaultProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

impl FaultProxy {
    pub(crate) fn start(target: SocketAddr, weather: Weather) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("an event loop");
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a free port");
        let addr = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = accepting.num_connections.fetch_add(1, Ordering::SeqCst);
                let fate = if accepting.is_calm.load(Ordering::SeqCst) { Fate::CALM } else { weather.fate(number) };
                tokio::spawn(connect(client, target, fate, Arc::clone(&accepting)));
            }
        });
        Self { addr, shared, _runtime: runtime }
    }

    /// One for each of two loaders on this machine, the second with the next seed.
    pub(crate) fn pair(ports: [u16; 2], weather: &Weather) -> [Self; 2] {
        [0, 1].map(|number| {
            let weather = Weather { seed: weather.seed + number as u64, ..weather.clone() };
            Self::start(loopback(ports[number]), weather)
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Leaves the connections that come from now on alone, or no longer.
    pub(crate) fn set_calm(&self, is_calm: bool) {
        self.shared.is_calm.store(is_calm, Ordering::SeqCst);
    }

    /// How often each kind of fault struck.
    pub(crate) fn struck(&self) -> BTreeMap<&'static str, u64> {
        self.shared.struck.lock().expect("no panic").clone()
    }
}

impl Weather {
    fn fate(&self, connection: u64) -> Fate {
        let mut draws = SeedStream::named(self.seed, "connection", &connection.to_string());
        let fault = *draws.choose(&self.faults);
        let way = if draws.below(4) == 0 { Way::ToServer } else { Way::ToClient };
        // Few bytes as often as many: greetings, headers and the middle of frames are all met.
        let most = 1 << draws.below(1 + u64::from(self.most_bytes.max(2).ilog2()));
        let after = draws.below(if way == Way::ToServer { 400 } else { most + 1 });
        Fate { fault, way, after, bit: draws.below(8) as u8 }
    }
}

impl Fate {
    const CALM: Self = Self { fault: Fault::None, way: Way::ToClient, after: 0, bit: 0 };
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reset => "reset",
            Self::Close => "close",
            Self::HalfClose => "half close",
            Self::Stall(_) => "stall",
            Self::Delay(_) => "delay",
            Self::Swallow => "swallow",
            Self::FlipBit => "flipped bit",
        }
    }
}

/// How one direction of a connection ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// By its own sender, who was followed.
    Done,
    /// By a fault that takes the whole connection.
    Cut { reset: bool },
}

async fn connect(mut client: TcpStream, target: SocketAddr, fate: Fate, shared: Arc<Shared>) {
    // A server that is away is a connection that ends at once.
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let end = carry_both(&mut client, &mut server, fate, &shared).await;
    if end == (End::Cut { reset: true }) {
        // Closed without lingering: the other side gets a reset instead of an end.
        let _ = client.set_zero_linger().and_then(|()| server.set_zero_linger());
    }
}

async fn carry_both(client: &mut TcpStream, server: &mut TcpStream, fate: Fate, shared: &Shared) -> End {
    let swallows = AtomicBool::new(false);
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let carry = |from, to, way| {
        let fate = (fate.way == way).then_some(fate);
        Carrier { from, to, fate, swallows: &swallows, shared }.run()
    };
    let (down, up) = (carry(from_server, to_client, Way::ToClient), carry(from_client, to_server, Way::ToServer));
    tokio::pin!(down, up);
    tokio::select! {
        end = &mut down => if end == End::Done { up.await } else { end },
        end = &mut up => if end == End::Done { down.await } else { end },
    }
}

struct Carrier<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    /// What happens in this direction, if it has not happened yet.
    fate: Option<Fate>,
    swallows: &'a AtomicBool,
    shared: &'a Shared,
}

impl Carrier<'_> {
    /// Carries bytes until an end. A side that does not take them any more is an end, too.
    async fn run(mut self) -> End {
        let mut buffer = vec![0; 32 << 10];
        let (mut carried, mut delay) = (0, Duration::ZERO);
        loop {
            let Ok(length @ 1..) = self.from.read(&mut buffer).await else {
                let _ = self.to.shutdown().await;
                return End::Done;
            };
            let piece = &mut buffer[..length];
            let struck = self.fate.take_if(|fate| carried + length as u64 > fate.after);
            if let Some(fate) = struck {
                let before = (fate.after - carried) as usize;
                *self.shared.struck.lock().expect("no panic").entry(fate.fault.name()).or_default() += 1;
                match fate.fault {
                    Fault::None => {}
                    Fault::FlipBit => piece[before] ^= 1 << fate.bit,
                    Fault::Delay(each) => delay = each,
                    Fault::Swallow => self.swallows.store(true, Ordering::SeqCst),
                    Fault::Stall(time) => {
                        let _ = self.to.write_all(&piece[..before]).await;
                        tokio::time::sleep(time).await;
                        if self.to.write_all(&piece[before..]).await.is_err() {
                            return End::Done;
                        }
                        carried += length as u64;
                        continue;
                    }
                    Fault::HalfClose => {
                        let _ = self.to.write_all(&piece[..before]).await;
                        let _ = self.to.shutdown().await;
                        while let Ok(1..) = self.from.read(&mut buffer).await {}
                        return End::Done;
                    }
                    Fault::Reset | Fault::Close => {
                        let _ = self.to.write_all(&piece[..before]).await;
                        return End::Cut { reset: fate.fault == Fault::Reset };
                    }
                }
            }
            carried += length as u64;
            tokio::time::sleep(delay).await;
            if !self.swallows.load(Ordering::SeqCst) && self.to.write_all(piece).await.is_err() {
                return End::Done;
            }
        }
    }
}
