//! A small HTTP server that misbehaves on request: bytes go out as the test writes them, after the pauses it wants.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a client asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path with query.
    pub target: String,
    /// Header lines by lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// How many requests for this target came before.
    pub earlier: usize,
    /// Since the server started.
    pub at: Duration,
}

/// What goes out: pieces of bytes with a pause before each; then the connection is closed.
#[derive(Clone, Debug, Default)]
pub struct Answer(pub Vec<(Duration, Vec<u8>)>);

impl Answer {
    /// A whole answer with a true `Content-Length`.
    pub fn of(status: u16, headers: &str, body: &[u8]) -> Self {
        Self::with_length(status, headers, body.len(), body)
    }

    /// An answer whose `Content-Length` may lie.
    pub fn with_length(status: u16, headers: &str, length: usize, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        Self(vec![(Duration::ZERO, [head.as_bytes(), body].concat())])
    }

    /// The same answer in pieces of `size` bytes with a pause before each.
    pub fn dripping(self, size: usize, pause: Duration) -> Self {
        let bytes: Vec<u8> = self.0.into_iter().flat_map(|(_, bytes)| bytes).collect();
        Self(bytes.chunks(size).map(|piece| (pause, piece.to_vec())).collect())
    }

    /// The same answer after a pause.
    pub fn after(mut self, pause: Duration) -> Self {
        if let Some(first) = self.0.first_mut() {
            first.0 += pause;
        }
        self
    }
}

/// A running server; dropping it stops it.
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    stopped: AtomicBool,
    requests: Mutex<Vec<Request>>,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

impl Server {
    /// Serves with `answer`, each connection on a thread of its own.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let zero = || AtomicUsize::new(0);
        let shared = Shared {
            stopped: AtomicBool::new(false),
            requests: Mutex::new(Vec::new()),
            running: zero(),
            most_running: zero(),
        };
        let shared = Arc::new(shared);
        let (started, seen, answer) = (Instant::now(), Arc::clone(&shared), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen.stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                // A client that hangs up is not this server's business.
                std::thread::spawn(move || serve(stream, started, &seen, &*answer));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// Everything asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().expect("no panic").clone()
    }

    /// Requests by target.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        self.requests().into_iter().for_each(|request| *counts.entry(request.target).or_default() += 1);
        counts
    }

    /// Most requests that waited for their last byte at a time.
    pub fn most_running(&self) -> usize {
        self.shared.most_running.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    started: Instant,
    shared: &Shared,
    answer: &dyn Fn(&Request) -> Answer,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => _ = headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        }
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if target.is_empty() {
        return Ok(());
    }
    let request = {
        let mut requests = shared.requests.lock().expect("no panic");
        let earlier = requests.iter().filter(|earlier| earlier.target == target).count();
        let request = Request { target, headers, body, earlier, at: started.elapsed() };
        requests.push(request.clone());
        request
    };
    let running = shared.running.fetch_add(1, Ordering::Relaxed) + 1;
    shared.most_running.fetch_max(running, Ordering::Relaxed);
    let mut answer = answer(&request).0;
    let last = answer.pop();
    let mut stream = stream;
    let written = answer.into_iter().try_for_each(|(pause, bytes)| {
        std::thread::sleep(pause);
        stream.write_all(&bytes)
    });
    std::thread::sleep(last.as_ref().map_or(Duration::ZERO, |(pause, _)| *pause));
    // Before the last piece: with it the client may go on to its next request.
    shared.running.fetch_sub(1, Ordering::Relaxed);
    written.and_then(|()| stream.write_all(&last.unwrap_or_default().1))?;
    // Closing with unread bytes would reset the connection and could take the answer with it.
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let _ = stream.read(&mut [0; 64]);
    Ok(())
}
