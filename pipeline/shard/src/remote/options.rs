//! How remote stores are reached, and what messages advise when they are not.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, Error, ObjectStore, RetryConfig};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::ShardError;
use crate::cache::CacheSettings;

/// Names the cache folder.
const CACHE_VARIABLE: &str = "VELA_CACHE";
/// Bounds the cache.
const CACHE_BYTES_VARIABLE: &str = "VELA_CACHE_BYTES";
const DEFAULT_CACHE_BYTES: u64 = 100 << 30;
/// Threads that wait for the network; hashing and copying happen in the caller's.
const NUM_THREADS: usize = 2;

/// How remote stores are reached. Credentials come from the environment, as object_store reads it: `AWS_*`, `GOOGLE_*`,
/// `AZURE_*`, and the metadata service of a cloud machine.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Settings that go before the environment's, by object_store's names (`aws_endpoint`, `aws_access_key_id`).
    pub settings: BTreeMap<String, String>,
    /// Tries after the first of a request that the server refused for now or that was cut off.
    pub max_retries: usize,
    /// No further try after this time.
    pub retry_timeout: Duration,
    /// Longest time of one request of at most `part_bytes`.
    pub request_timeout: Duration,
    /// Bytes of one read or of one part of an upload, four of which may be under way per file. 8 to 16 MiB serve S3
    /// best; files may have 10,000 parts.
    pub part_bytes: usize,
    /// Where [`Store::map`](crate::Store::map) keeps copies.
    pub cache: CacheSettings,
    /// Whose threads wait for the network; two of the process's own without it.
    pub runtime: Option<Handle>,
}

impl std::fmt::Debug for RemoteOptions {
    /// Names of settings alone: their values may be secret.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { max_retries, retry_timeout, request_timeout, part_bytes, cache, .. } = self;
        out.debug_struct("RemoteOptions")
            .field("settings", &self.settings.keys())
            .field("max_retries", max_retries)
            .field("retry_timeout", retry_timeout)
            .field("request_timeout", request_timeout)
            .field("part_bytes", part_bytes)
            .field("cache", cache)
            .finish_non_exhaustive()
    }
}

impl RemoteOptions {
    /// Defaults with a cache in `folder`, bounded to 100 GiB.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            settings: BTreeMap::new(),
            max_retries: 10,
            retry_timeout: Duration::from_secs(180),
            request_timeout: Duration::from_secs(60),
            part_bytes: 8 << 20,
            cache: CacheSettings { folder, limit_bytes: DEFAULT_CACHE_BYTES },
            runtime: None,
        }
    }

    /// Defaults with the cache that `VELA_CACHE` (a folder) and `VELA_CACHE_BYTES` (`200GiB`) name; without them
    /// `vela` in the user's cache folder, and 100 GiB.
    pub fn from_env() -> Result<Self, ShardError> {
        let folder = match (env::var_os(CACHE_VARIABLE), env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
            (Some(folder), _, _) => PathBuf::from(folder),
            (_, Some(caches), _) => PathBuf::from(caches).join("vela"),
            (_, _, Some(home)) => PathBuf::from(home).join(".cache/vela"),
            _ => env::temp_dir().join("vela-cache"),
        };
        let mut options = Self::new(folder);
        if let Ok(found) = env::var(CACHE_BYTES_VARIABLE) {
            options.cache.limit_bytes = parse_bytes(&found).ok_or(ShardError::Setting {
                name: CACHE_BYTES_VARIABLE,
                expected: "a number of bytes, or one with KiB, MiB, GiB or TiB",
                found,
            })?;
        }
        Ok(options)
    }

    /// Where a command stages remote raw inputs: `inputs` in the cache folder, under no bound.
    pub fn input_folder(&self) -> PathBuf {
        self.cache.folder.join("inputs")
    }

    /// Where requests run.
    pub(super) fn runtime(&self) -> Result<Handle, ShardError> {
        static OWN: OnceLock<Runtime> = OnceLock::new();
        if let Some(runtime) = &self.runtime {
            return Ok(runtime.clone());
        }
        if let Some(own) = OWN.get() {
            return Ok(own.handle().clone());
        }
        let started =
            Builder::new_multi_thread().worker_threads(NUM_THREADS).thread_name("vela-store").enable_all().build();
        let started = started.map_err(ShardError::io("the network", "start threads for"))?;
        Ok(OWN.get_or_init(|| started).handle().clone())
    }

    fn retry(&self) -> RetryConfig {
        RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: self.max_retries,
            retry_timeout: self.retry_timeout,
        }
    }

    /// `timeout` unless the environment or a setting has one.
    fn timeout(&self, prefix: &str) -> Option<String> {
        let is_set = env::var_os(format!("{prefix}TIMEOUT")).is_some() || env::var_os("TIMEOUT").is_some();
        (!is_set).then(|| format!("{} seconds", self.request_timeout.as_secs().max(1)))
    }
}

/// `512`, `512MiB`.
fn parse_bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("", 0)];
    let (number, shift) = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    number.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A kind of remote store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    S3,
    Google,
    Azure,
}

impl Scheme {
    pub(super) fn parse(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" => Some(Self::S3),
            "gs" => Some(Self::Google),
            "az" => Some(Self::Azure),
            _ => None,
        }
    }

    /// A client of `bucket`.
    pub(super) fn connect(self, bucket: &str, options: &RemoteOptions) -> Result<Arc<dyn ObjectStore>, Error> {
        // The builders share their methods but no trait.
        macro_rules! build {
            ($builder:ty, $key:ident, $prefix:literal, $name:ident) => {{
                let mut builder = <$builder>::from_env().$name(bucket).with_retry(options.retry());
                if let Some(timeout) = options.timeout($prefix) {
                    builder = builder.with_config($key::Client(ClientConfigKey::Timeout), timeout);
                }
                for (name, value) in &options.settings {
                    builder = builder.with_config(name.parse::<$key>()?, value);
                }
                Arc::new(builder.build()?)
            }};
        }
        Ok(match self {
            Self::S3 => build!(AmazonS3Builder, AmazonS3ConfigKey, "AWS_", with_bucket_name),
            Self::Google => build!(GoogleCloudStorageBuilder, GoogleConfigKey, "GOOGLE_", with_bucket_name),
            Self::Azure => build!(MicrosoftAzureBuilder, AzureConfigKey, "AZURE_", with_container_name),
        })
    }

    /// What to do about `fault`.
    pub(super) fn remedy(self, fault: &Error) -> &'static str {
        match (fault, self) {
            (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, _) => self.credentials_remedy(),
            (Error::NotFound { .. }, Self::S3) => "check the bucket's name, `AWS_REGION` and `AWS_ENDPOINT_URL`",
            (Error::NotFound { .. }, _) => "check the bucket's name",
            (Error::Precondition { .. }, _) => "the object changed while it was read; run the command again",
            (Error::NotImplemented { .. } | Error::NotSupported { .. }, _) => {
                "the store must support conditional puts (`If-None-Match`)"
            }
            (_, Self::S3) => {
                "check the network, `AWS_REGION`, `AWS_ENDPOINT_URL` (with `AWS_ALLOW_HTTP=true` for plain http) and the \
                 credentials (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`), then run the command again"
            }
            (_, Self::Google) => "check the network and `GOOGLE_APPLICATION_CREDENTIALS`, then run the command again",
            (_, Self::Azure) => {
                "check the network, `AZURE_STORAGE_ACCOUNT_NAME` and the credentials, then run the command again"
            }
        }
    }

    fn credentials_remedy(self) -> &'static str {
        match self {
            Self::S3 => {
                "check the credentials (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`; profiles in \
                 `~/.aws` are not read) and what they may do with the bucket"
            }
            Self::Google => {
                "check the credentials (`GOOGLE_APPLICATION_CREDENTIALS` or `GOOGLE_SERVICE_ACCOUNT`) and what they may do \
                 with the bucket"
            }
            Self::Azure => {
                "check the credentials (`AZURE_STORAGE_ACCOUNT_NAME` with `AZURE_STORAGE_ACCOUNT_KEY`, or a client id, \
                 secret and tenant) and what they may do with the container"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_or_without_a_unit() {
        let cases = [("512", Some(512)), ("2KiB", Some(2048)), ("3 GiB", Some(3 << 30)), ("1TiB", Some(1 << 40))];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
        for text in ["", "GiB", "-1", "1GB", "99999999999TiB"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn secrets_among_the_settings_are_not_printed() {
        let mut options = RemoteOptions::new(PathBuf::from("cache"));
        options.settings.insert("aws_secret_access_key".to_owned(), "hidden".to_owned());
        let shown = format!("{options:?}");
        assert!(shown.contains("aws_secret_access_key") && !shown.contains("hidden"), "{shown}");
    }
}
