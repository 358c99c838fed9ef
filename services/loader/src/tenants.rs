//! Who may read what: tenants known by a bearer token or a client certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::{Request, Status};
use vela_proto::{ErrorKind, ServiceError};
use vela_runtime::{ByteSize, load_config};

use crate::LoaderError;
use crate::connection::PeerInfo;
use crate::service::counted;
use crate::shared::acquire;

/// SHA-256 of a token's bytes or of a certificate's DER form.
type Digest32 = [u8; 32];

/// Descriptions of one tenant at once, and as many lookups; more wait.
const QUESTIONS_AT_ONCE: usize = 4;

/// The file of `--tenants` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTenants {
    tenant: BTreeMap<String, RawTenant>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTenant {
    /// SHA-256 of each of its tokens, in hexadecimal digits: `printf %s TOKEN | sha256sum`.
    #[serde(default)]
    token_sha256: Vec<String>,
    /// SHA-256 of each of its client certificates: `openssl x509 -noout -fingerprint -sha256`.
    #[serde(default)]
    certificate_sha256: Vec<String>,
    /// Names of data sets, or `*` for all.
    datasets: BTreeSet<String>,
    /// Streams and single batches at once.
    max_consumers: Option<u32>,
    /// Payload bytes a second over all its consumers.
    max_rate: Option<ByteSize>,
}

/// What a server has to offer to tenants.
pub(crate) struct Offer<'a> {
    pub(crate) datasets: &'a [String],
    /// Whether clients are asked for certificates.
    pub(crate) asks_certificates: bool,
}

impl RawTenant {
    /// What of it cannot work on `server`: expected and found.
    fn fault(&self, server: &Offer<'_>) -> Option<(String, String)> {
        let is_known = |name: &str| name == "*" || server.datasets.iter().any(|known| known == name);
        if let Some(name) = self.datasets.iter().find(|name| !is_known(name)) {
            return Some((format!("`datasets` among {:?}, or `*`", server.datasets), format!("`{name}`")));
        }
        if self.max_consumers == Some(0) {
            return Some(("`max_consumers` of at least 1".to_owned(), "0".to_owned()));
        }
        if self.max_rate.is_some_and(|rate| rate.0 == 0) {
            return Some(("`max_rate` above 0".to_owned(), "0B".to_owned()));
        }
        let cannot_show = self.token_sha256.is_empty() && !self.certificate_sha256.is_empty();
        (cannot_show && !server.asks_certificates)
            .then(|| ("`--client-ca`, as it has certificates alone".to_owned(), "none".to_owned()))
    }
}

/// One tenant.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    /// `None`: all.
    datasets: Option<BTreeSet<String>>,
    consumers: Arc<Semaphore>,
    max_consumers: usize,
    pace: Option<Pace>,
    /// The permit to plan an epoch's rows anew: what a spec may cost beyond its batches.
    planner: Arc<Semaphore>,
    /// One permit per description that is being made.
    descriptions: Arc<Semaphore>,
    /// One permit per lookup, which may fetch a shard: apart from the descriptions, which every new consumer waits for.
    lookups: Arc<Semaphore>,
}

impl Tenant {
    /// Everybody, where no tenants are configured.
    fn anonymous() -> Self {
        Self::new("anonymous".to_owned(), None, Semaphore::MAX_PERMITS, None)
    }

    fn new(name: String, datasets: Option<BTreeSet<String>>, max_consumers: usize, pace: Option<Pace>) -> Self {
        let [consumers, planner, descriptions, lookups] =
            [max_consumers, 1, QUESTIONS_AT_ONCE, QUESTIONS_AT_ONCE].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { name, datasets, consumers, max_consumers, pace, planner, descriptions, lookups }
    }

    fn check(name: String, raw: &RawTenant) -> Self {
        let max_consumers = raw.max_consumers.map_or(Semaphore::MAX_PERMITS, |max| max as usize);
        let datasets = (!raw.datasets.contains("*")).then(|| raw.datasets.clone());
        let pace = raw.max_rate.map(|rate| Pace::new(rate.0));
        Self::new(name, datasets, max_consumers, pace)
    }

    /// Whether it may read the data set `name`.
    pub(crate) fn may_read(&self, name: &str) -> bool {
        self.datasets.as_ref().is_none_or(|datasets| datasets.contains(name))
    }

    /// Whether it may read whatever there is.
    pub(crate) fn may_read_all(&self) -> bool {
        self.datasets.is_none()
    }

    /// Waits for the permit to plan rows.
    pub(crate) async fn begin_plan(&self) -> OwnedSemaphorePermit {
        acquire(&self.planner).await
    }

    /// Waits for a permit to describe data under a spec. Who must plan rows first waits for that before this.
    pub(crate) async fn begin_description(&self) -> OwnedSemaphorePermit {
        acquire(&self.descriptions).await
    }

    /// Waits for a permit to look a record up.
    pub(crate) async fn begin_lookup(&self) -> OwnedSemaphorePermit {
        acquire(&self.lookups).await
    }

    /// A place among this tenant's consumers.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, ServiceError> {
        let full = |_| {
            let told = format!("tenant `{}` has its {} consumers; try later", self.name, self.max_consumers);
            ServiceError::new(ErrorKind::Busy, told)
        };
        Arc::clone(&self.consumers).try_acquire_owned().map_err(full)
    }

    /// Waits until `num_bytes` more fit this tenant's rate.
    pub(crate) async fn spend(&self, num_bytes: usize) {
        if let Some(pace) = &self.pace {
            pace.spend(num_bytes).await;
        }
    }
}

/// So many bytes a second: each piece takes its share of time, and who comes waits for those before.
#[derive(Debug)]
struct Pace {
    bytes_per_second: f64,
    free_from: Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second as f64, free_from: Mutex::new(Instant::now()) }
    }

    /// The lock, which is given in the order of asking, is kept while this waits: who leaves before has taken nothing.
    async fn spend(&self, num_bytes: usize) {
        let mut free_from = self.free_from.lock().await;
        let start = (*free_from).max(Instant::now());
        tokio::time::sleep_until(start).await;
        *free_from = start + Duration::from_secs_f64(num_bytes as f64 / self.bytes_per_second);
    }
}

/// All tenants, or everybody.
#[derive(Debug)]
pub(crate) struct Tenants {
    by_token: Vec<(Digest32, Arc<Tenant>)>,
    by_certificate: Vec<(Digest32, Arc<Tenant>)>,
    /// Where no tenants are configured.
    anonymous: Option<Arc<Tenant>>,
}

impl Tenants {
    /// Everybody may read everything.
    pub(crate) fn everybody() -> Self {
        Self { by_token: Vec::new(), by_certificate: Vec::new(), anonymous: Some(Arc::new(Tenant::anonymous())) }
    }

    /// Reads the TOML file at `path`.
    ///
    /// # Errors
    /// If it is no such file, a digest is none, two tenants share one, or a tenant has nothing to show itself by.
    pub(crate) fn load(path: &Path, server: &Offer<'_>) -> Result<Self, LoaderError> {
        Self::check(path, load_config(path, &[])?, server)
    }

    fn check(path: &Path, raw: RawTenants, server: &Offer<'_>) -> Result<Self, LoaderError> {
        let refuse = |tenant: &str, expected: &str, found: String| LoaderError::Tenant {
            path: path.to_owned(),
            tenant: tenant.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let (mut by_token, mut by_certificate) = (Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for (name, raw) in raw.tenant {
            if let Some((expected, found)) = raw.fault(server) {
                return Err(refuse(&name, &expected, found));
            }
            let tenant = Arc::new(Tenant::check(name.clone(), &raw));
            if raw.token_sha256.is_empty() && raw.certificate_sha256.is_empty() {
                return Err(refuse(&name, "`token_sha256` or `certificate_sha256`", "neither".to_owned()));
            }
            let kinds = [(&raw.token_sha256, &mut by_token), (&raw.certificate_sha256, &mut by_certificate)];
            for (texts, known) in kinds {
                for text in texts {
                    let digest = parse_digest(text);
                    let digest = digest.ok_or_else(|| refuse(&name, "64 hexadecimal digits", format!("`{text}`")))?;
                    if !seen.insert(digest) {
                        return Err(refuse(&name, "a digest of its own", format!("`{text}` twice")));
                    }
                    known.push((digest, Arc::clone(&tenant)));
                }
            }
        }
        match seen.is_empty() {
            true => Err(refuse("*", "at least one tenant", "none".to_owned())),
            false => Ok(Self { by_token, by_certificate, anonymous: None }),
        }
    }

    /// Who makes this call: by its token if it brings one, else by its connection's certificate.
    pub(crate) fn identify<T>(&self, request: &Request<T>) -> Result<Arc<Tenant>, ServiceError> {
        if let Some(anonymous) = &self.anonymous {
            return Ok(Arc::clone(anonymous));
        }
        let unknown = |told: &str| ServiceError::new(ErrorKind::Unauthenticated, told);
        if let Some(header) = request.metadata().get("authorization") {
            let bytes = header.as_bytes();
            let token = match bytes.split_at_checked(7) {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token,
                _ => return Err(unknown("`authorization`: expected `Bearer TOKEN`")),
            };
            let found = find(&self.by_token, &Sha256::digest(token).into());
            return found.ok_or_else(|| unknown("`authorization`: the token is none of this loader's"));
        }
        let certificate = request.extensions().get::<PeerInfo>().and_then(|peer| peer.certificate_sha256);
        match certificate.and_then(|certificate| find(&self.by_certificate, &certificate)) {
            Some(tenant) => Ok(tenant),
            None => Err(unknown("expected `authorization: Bearer TOKEN` or the certificate of a tenant")),
        }
    }

    /// Puts the caller's tenant into the request, or refuses it: before every call of the service.
    pub(crate) fn admit_call(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let tenant = counted(self.identify(&request))?;
        request.extensions_mut().insert(tenant);
        Ok(request)
    }
}

/// Compares all digests, each in constant time, so that the time tells nothing of them.
fn find(known: &[(Digest32, Arc<Tenant>)], digest: &Digest32) -> Option<Arc<Tenant>> {
    let mut found = None;
    for (other, tenant) in known {
        if bool::from(other.ct_eq(digest)) {
            found = Some(tenant);
        }
    }
    found.map(Arc::clone)
}

/// 64 hexadecimal digits, with or without colons between.
fn parse_digest(text: &str) -> Option<Digest32> {
    let digits: Vec<u32> = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use vela_runtime::parse_config;

    use super::*;

    fn tenants(text: &str) -> Result<Tenants, LoaderError> {
        let datasets = ["train", "val"].map(str::to_owned);
        let server = Offer { datasets: &datasets, asks_certificates: false };
        Tenants::check(Path::new("tenants.toml"), parse_config(text, "tenants.toml", &[])?, &server)
    }

    fn digest(token: &str) -> String {
        Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn call(header: Option<&str>) -> Request<()> {
        let mut request = Request::new(());
        if let Some(header) = header {
            request.metadata_mut().insert("authorization", header.parse().expect("a header"));
        }
        request
    }

    #[test]
    fn a_caller_is_who_its_token_says() {
        let text = format!(
            "[tenant.a]\ntoken_sha256 = [\"{}\"]\ndatasets = [\"train\"]\n[tenant.b]\ntoken_sha256 = [\"{}\"]\ndatasets = [\"*\"]\n",
            digest("secret-a"),
            digest("secret-b")
        );
        let tenants = tenants(&text).expect("good tenants");
        let name = |header| tenants.identify(&call(header)).map(|tenant| tenant.name.clone());
        assert_eq!(name(Some("Bearer secret-a")), Ok("a".to_owned()));
        assert_eq!(name(Some("bearer secret-b")), Ok("b".to_owned()));
        for header in [None, Some("Bearer secret"), Some("Bearer "), Some("Basic secret-a"), Some("secret-a")] {
            assert_eq!(name(header).map_err(|error| error.kind), Err(ErrorKind::Unauthenticated), "{header:?}");
        }
        let a = tenants.identify(&call(Some("Bearer secret-a"))).expect("a");
        assert!(a.may_read("train") && !a.may_read("val"));
        assert!(tenants.identify(&call(Some("Bearer secret-b"))).expect("b").may_read("val"));
    }

    #[test]
    fn a_file_that_lets_nobody_or_anybody_in_is_refused_by_name() {
        let one = digest("x");
        for (text, named) in [
            ("[tenant]\n".to_owned(), "at least one"),
            ("[tenant.a]\ndatasets = []\n".to_owned(), "`certificate_sha256`"),
            ("[tenant.a]\ntoken_sha256 = [\"12\"]\ndatasets = []\n".to_owned(), "64 hexadecimal"),
            (format!("[tenant.a]\ntoken_sha256 = [\"{one}\", \"{one}\"]\ndatasets = []\n"), "twice"),
            (format!("[tenant.a]\ntoken_sha256 = [\"{one}\"]\ndataset = []\n"), "dataset"),
            (format!("[tenant.a]\ntoken_sha256 = [\"{one}\"]\ndatasets = [\"trian\"]\n"), "`trian`"),
            (format!("[tenant.a]\ntoken_sha256 = [\"{one}\"]\ndatasets = []\nmax_consumers = 0\n"), "`max_consumers`"),
            (format!("[tenant.a]\ntoken_sha256 = [\"{one}\"]\ndatasets = []\nmax_rate = \"0B\"\n"), "`max_rate`"),
            (format!("[tenant.a]\ncertificate_sha256 = [\"{one}\"]\ndatasets = []\n"), "`--client-ca`"),
        ] {
            let fault = tenants(&text).expect_err(named);
            assert!(fault.is_usage() && fault.to_string().contains(named), "{fault}");
        }
    }

    #[tokio::test]
    async fn a_pace_is_kept_over_all_who_share_it() {
        let pace = Pace::new(100_000);
        let started = Instant::now();
        for _ in 0..5 {
            pace.spend(5_000).await;
        }
        assert!(started.elapsed() >= Duration::from_millis(200), "the fifth waits for four before it");
    }

    #[tokio::test]
    async fn who_leaves_while_waiting_takes_nothing_of_the_rate() {
        let pace = Pace::new(100_000);
        let started = Instant::now();
        pace.spend(10_000).await;
        for _ in 0..100 {
            let left = tokio::time::timeout(Duration::from_micros(100), pace.spend(10_000)).await;
            assert!(left.is_err() || started.elapsed() >= Duration::from_millis(100), "the first takes 100 ms");
        }
        pace.spend(10_000).await;
        assert!(started.elapsed() >= Duration::from_millis(100), "still behind the first");
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}: behind those who left, too", started.elapsed());
    }
}
