//! An S3 server on a loopback port for tests: it holds objects in memory, answers what object stores are asked for, and
//! fails on demand. Google's XML API is near enough to be answered too.

mod answer;
mod http;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use http::{Request, Response};

const ACCESS_KEY: &str = "test-access-key";
/// Nothing checks it; it may stand in no message.
pub const SECRET_KEY: &str = "test-secret-key";
/// The one bucket.
const BUCKET: &str = "bucket";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server answers with this status and does nothing.
    Status(u16),
    /// The connection is cut after half of the answer's body.
    CutAnswer,
    /// The request is carried out, and the connection cut without an answer.
    LoseAnswer,
    /// The answer comes late.
    Delay(Duration),
    /// The answer has the entity tag of another content.
    WrongTag,
    /// One bit of the answer's body is wrong.
    FlipBit,
    /// The answer to a range has half of its bytes, and says so.
    ShortAnswer,
}

/// What a flaky server does to requests that read.
const FLAKES: [Fault; 7] = [
    Fault::Status(429),
    Fault::Status(500),
    Fault::Status(503),
    Fault::CutAnswer,
    Fault::LoseAnswer,
    Fault::ShortAnswer,
    Fault::Delay(Duration::from_millis(60)),
];

/// Faults by chance, the same for the same seed and order of requests.
#[derive(Clone, Copy, Debug)]
struct Flakiness {
    seed: u64,
    /// Of a hundred requests that read.
    percent: u64,
}

/// Which requests a fault strikes.
#[derive(Clone, Debug)]
struct Trouble {
    method: &'static str,
    /// Somewhere in the key or the query.
    mark: String,
    fault: Fault,
    /// Requests still to strike.
    times: usize,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Arc<Vec<u8>>>,
    /// Parts by number of each unfinished upload, with its key.
    uploads: BTreeMap<String, (String, BTreeMap<u32, Vec<u8>>)>,
    num_uploads: usize,
    troubles: Vec<Trouble>,
    flakiness: Option<Flakiness>,
    /// Reads so far, and faults of them by chance.
    num_reads: u64,
    flakes: BTreeMap<String, u64>,
    /// Method, key and query of every request.
    requests: Vec<String>,
    page_keys: Option<usize>,
    /// Requests need no key.
    is_open: bool,
}

/// The server. It ends when it is dropped.
pub struct S3Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stopping: Arc<AtomicBool>,
}

impl S3Server {
    /// An empty bucket on a free port.
    ///
    /// # Panics
    /// If the system gives no port.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (state, stopping) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (serving, stop) = (Arc::clone(&state), Arc::clone(&stopping));
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&serving);
                thread::spawn(move || serve(connection, &state));
            }
        });
        Self { address, state, stopping }
    }

    /// The url of `prefix` in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// What a client must know, by the names of object_store's settings; in upper case they are environment variables.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let settings = [
            ("aws_endpoint_url", format!("http://{}", self.address)),
            ("aws_allow_http", "true".to_owned()),
            ("aws_access_key_id", ACCESS_KEY.to_owned()),
            ("aws_secret_access_key", SECRET_KEY.to_owned()),
            ("aws_region", "us-east-1".to_owned()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The same for a client of `gs://bucket`, which does not sign.
    pub fn google_settings(&self) -> BTreeMap<String, String> {
        self.lock().is_open = true;
        let account = format!(
            r#"{{"gcs_base_url": "http://{}", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}}"#,
            self.address
        );
        let settings = [("google_service_account_key", account), ("allow_http", "true".to_owned())];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Strikes the next `times` requests of `method` with `mark` somewhere in their key or query.
    pub fn strike(&self, method: &'static str, mark: &str, fault: Fault, times: usize) {
        self.lock().troubles.push(Trouble { method, mark: mark.to_owned(), fault, times });
    }

    /// From now on `percent` of the requests that read meet a fault: 429, 500, 503, a cut, lost, short or late answer.
    pub fn make_flaky(&self, seed: u64, percent: u64) {
        self.lock().flakiness = Some(Flakiness { seed, percent });
    }

    /// Faults so far that came by chance, by kind.
    pub fn flakes(&self) -> BTreeMap<String, u64> {
        self.lock().flakes.clone()
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.troubles.clear();
        state.flakiness = None;
    }

    /// Lists at most `keys` keys per answer.
    pub fn set_page_keys(&self, keys: usize) {
        self.lock().page_keys = Some(keys);
    }

    /// All objects below `prefix`, by the rest of their keys.
    pub fn objects(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.lock();
        let below = state.objects.iter().filter_map(|(key, content)| Some((key.strip_prefix(prefix)?, content)));
        below.map(|(name, content)| (name.trim_start_matches('/').to_owned(), content.to_vec())).collect()
    }

    /// Puts an object past all checks.
    pub fn put(&self, key: &str, content: impl Into<Vec<u8>>) {
        self.lock().objects.insert(key.to_owned(), Arc::new(content.into()));
    }

    /// Removes an object past all checks.
    pub fn remove(&self, key: &str) {
        self.lock().objects.remove(key);
    }

    /// Uploads in parts that were neither completed nor aborted.
    pub fn num_unfinished_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    /// Forgets the requests so far and gives them: `PUT key?query`.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().requests)
    }

    /// Requests so far whose line starts with `start` and contains `mark`.
    pub fn count_requests(&self, start: &str, mark: &str) -> usize {
        self.lock().requests.iter().filter(|line| line.starts_with(start) && line.contains(mark)).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the listener; if it has gone already, there is nobody to wake.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers the requests of one connection until the client or a fault closes it.
fn serve(connection: TcpStream, state: &Mutex<State>) {
    // Without it, an answer of two writes waits for the client's delayed acknowledgement.
    if connection.set_nodelay(true).is_err() {
        return;
    }
    let Ok(mut writer) = connection.try_clone() else { return };
    let mut reader = BufReader::new(connection);
    while let Some(request) = Request::read(&mut reader) {
        if respond(&request, state, &mut writer).is_none() {
            return;
        }
    }
}

/// Carries out one request; `None` if the connection is to be cut.
fn respond(request: &Request, state: &Mutex<State>, writer: &mut TcpStream) -> Option<()> {
    let fault = lock(state).note(request);
    let mut response = match fault {
        Some(Fault::Status(status)) => {
            Response::error(status, if status == 503 { "SlowDown" } else { "InternalError" })
        }
        _ if !lock(state).allows(request) => Response::error(403, "AccessDenied"),
        _ => lock(state).answer(request),
    };
    // A whole object that comes short by its own length cannot be told from a short object.
    let is_ranged = request.header("range").is_some();
    let fault = if fault == Some(Fault::ShortAnswer) && !is_ranged { Some(Fault::CutAnswer) } else { fault };
    if fault == Some(Fault::ShortAnswer) {
        response.body.truncate(response.body.len() / 2);
    }
    response.is_head = request.method == "HEAD";
    match fault {
        Some(Fault::LoseAnswer) => return None,
        Some(Fault::CutAnswer) => {
            let half = response.body.len() / 2;
            response.write(writer, Some(half)).ok()?;
            return None;
        }
        Some(Fault::Delay(time)) => thread::sleep(time),
        Some(Fault::WrongTag) => {
            response.headers.retain(|(name, _)| *name != "ETag");
            response = response.with("ETag", "\"of another content\"");
        }
        Some(Fault::FlipBit) if !response.body.is_empty() => {
            let middle = response.body.len() / 2;
            response.body[middle] ^= 1;
        }
        _ => {}
    }
    response.write(writer, None).ok()
}

impl State {
    fn allows(&self, request: &Request) -> bool {
        let authorization = request.header("authorization").unwrap_or_default();
        self.is_open || authorization.contains(&format!("Credential={ACCESS_KEY}/"))
    }

    /// Writes the request down and finds the fault that strikes it.
    fn note(&mut self, request: &Request) -> Option<Fault> {
        let query: Vec<String> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let line = format!("{} {}?{}", request.method, request.path, query.join("&"));
        let strikes = |trouble: &&mut Trouble| {
            trouble.times > 0 && trouble.method == request.method && line.contains(&trouble.mark)
        };
        let trouble = self.troubles.iter_mut().find(strikes);
        let fault = trouble.map(|trouble| {
            trouble.times -= 1;
            trouble.fault
        });
        self.requests.push(line);
        fault.or_else(|| self.draw_flake(request))
    }

    fn draw_flake(&mut self, request: &Request) -> Option<Fault> {
        let Flakiness { seed, percent } = self.flakiness?;
        if !["GET", "HEAD"].contains(&request.method.as_str()) {
            return None;
        }
        self.num_reads += 1;
        let mut hasher = DefaultHasher::new();
        (seed, self.num_reads).hash(&mut hasher);
        let draw = hasher.finish();
        if draw % 100 >= percent {
            return None;
        }
        let fault = FLAKES[(draw / 100) as usize % FLAKES.len()];
        *self.flakes.entry(format!("{fault:?}")).or_default() += 1;
        Some(fault)
    }
}

/// Equal contents have equal tags.
fn tag_of(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}
