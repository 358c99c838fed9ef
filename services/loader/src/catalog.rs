//! The data sets of a server, by name.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use vela_dataset::{BlendPart, DamagePolicy, Dataset};
use vela_proto::{ErrorKind, ServiceError};

use crate::LoaderError;
use crate::tenants::Tenant;

/// What a data set is called that was given no name.
pub const DEFAULT_DATASET: &str = "default";

/// A data set to serve: one shard set, or a blend of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetConfig {
    /// What consumers call it.
    pub name: String,
    /// Its shard sets.
    pub parts: Vec<BlendPart>,
}

impl FromStr for DatasetConfig {
    type Err = String;

    /// `[NAME=]URL[*WEIGHT][,URL[*WEIGHT]]...`; a name is letters, digits, `-` and `_`.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_name =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        let (name, parts) = match text.split_once('=') {
            Some((name, parts)) if is_name(name) => (name, parts),
            _ => (DEFAULT_DATASET, text),
        };
        if let Some(empty) = parts.split(',').find(|part| part.trim().is_empty()) {
            return Err(format!("expected `[NAME=]URL[*WEIGHT][,URL...]`, found the url `{empty}`"));
        }
        let parts = parts.split(',').map(str::parse).collect::<Result<_, String>>()?;
        Ok(Self { name: name.to_owned(), parts })
    }
}

/// Batches of one data set whose shards are fetched at once.
const FETCHES_AT_ONCE: usize = 8;

/// A data set as it is served.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) dataset: Arc<Dataset>,
    /// One permit per batch whose shards are being opened: a store that is slow holds up its own data set alone.
    pub(crate) fetchers: Arc<Semaphore>,
}

/// Open data sets.
pub(crate) struct Catalog {
    datasets: BTreeMap<String, Arc<Served>>,
}

impl Catalog {
    /// Opens each of `configs`.
    ///
    /// # Errors
    /// If one cannot be opened, or two have the same name.
    pub(crate) fn open(
        configs: Vec<DatasetConfig>,
        max_batch_bytes: u64,
        damage: DamagePolicy,
    ) -> Result<Self, LoaderError> {
        let mut datasets = BTreeMap::new();
        for DatasetConfig { name, parts } in configs {
            let dataset = Dataset::open_blend(&parts).map_err(|source| LoaderError::unopened(&parts, source))?;
            let dataset = dataset.with_max_batch_bytes(max_batch_bytes).with_damage_policy(damage);
            let info = dataset.info();
            tracing::info!(name, shards = dataset.url(), samples = info.num_samples, fingerprint = %info.fingerprint.short(), "data set open");
            let fetchers = Arc::new(Semaphore::new(FETCHES_AT_ONCE));
            let served = Served { name: name.clone(), dataset: Arc::new(dataset), fetchers };
            if datasets.insert(name.clone(), Arc::new(served)).is_some() {
                return Err(LoaderError::SameName { name });
            }
        }
        Ok(Self { datasets })
    }

    /// The names of all.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.datasets.keys().map(String::as_str)
    }

    /// The data set that `tenant` calls `name`; of an empty name the only one, or the default.
    ///
    /// # Errors
    /// If there is none, naming those the tenant may read. One that the tenant may not read is refused in the same words as one that is not
    /// there, so that nobody learns the names of others' data.
    pub(crate) fn find(&self, tenant: &Tenant, name: &str) -> Result<&Arc<Served>, ServiceError> {
        let found = match name {
            "" if self.datasets.len() == 1 => self.datasets.values().next(),
            "" => self.datasets.get(DEFAULT_DATASET),
            name => self.datasets.get(name),
        };
        if let Some(served) = found.filter(|served| tenant.may_read(&served.name)) {
            return Ok(served);
        }
        let names = self.names().filter(|name| tenant.may_read(name));
        let names = names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        Err(match tenant.may_read_all() {
            true => ServiceError::new(
                ErrorKind::NotFound,
                format_args!("`dataset`: expected one of {names}, found `{name}`"),
            ),
            false => ServiceError::new(
                ErrorKind::Forbidden,
                format_args!("tenant `{}` may read the data sets {names} and no `{name}`", tenant.name),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_set_is_written_as_name_urls_and_weights() {
        let parse = |text: &str| text.parse::<DatasetConfig>();
        let config = |name: &str, parts: &[&str]| DatasetConfig {
            name: name.to_owned(),
            parts: parts.iter().map(|part| part.parse().expect("a part")).collect(),
        };
        assert_eq!(parse("/data/a"), Ok(config("default", &["/data/a"])));
        assert_eq!(parse("val=s3://b/a,/data/c*0.5"), Ok(config("val", &["s3://b/a", "/data/c*0.5"])));
        assert_eq!(parse("/data/x=1"), Ok(config("default", &["/data/x=1"])), "a path may hold the sign");
        assert!(parse("train=").is_err() && parse("a,,b").is_err() && parse("").is_err());
    }
}
