//! Where the data of a recipe is.

use std::path::PathBuf;

use vela_dataset::BlendPart;

use super::{DataPlace, RawData, RemotePlace, one_of, refuse};
use crate::error::TrainError;

pub(super) fn check_data(data: &RawData) -> Result<DataPlace, TrainError> {
    if data.prefetch.is_some_and(|prefetch| prefetch.0 == 0) {
        return refuse("data.prefetch", "a positive size such as `64MiB`", 0);
    }
    if data.max_batch_bytes.is_some_and(|limit| limit.0 == 0) {
        return refuse("data.max_batch_bytes", "a positive size such as `512MiB`", 0);
    }
    if data.shuffle == Some(false) && data.shuffle_window.is_some_and(|window| window > 0) {
        return refuse(
            "data.shuffle_window",
            "nothing, since `data.shuffle` is false",
            data.shuffle_window.unwrap_or(0),
        );
    }
    match one_of("data.shards, data.loader", data.shards.as_ref(), data.loader.as_ref())? {
        true => check_shards(data),
        false => check_loader(data),
    }
}

fn check_shards(data: &RawData) -> Result<DataPlace, TrainError> {
    let plaintext = data.allow_remote_plaintext.map(|allowed| allowed.to_string());
    let of_loaders = [
        ("data.dataset", &data.dataset),
        ("data.token_file", &data.token_file),
        ("data.authority", &data.authority),
        ("data.certificate", &data.certificate),
        ("data.key", &data.key),
        ("data.allow_remote_plaintext", &plaintext),
    ];
    if let Some((key, Some(found))) = of_loaders.into_iter().find(|(_, value)| value.is_some()) {
        return refuse(key, "nothing, since `data.shards` are read without a loader", found);
    }
    let shards = data.shards.as_deref().unwrap_or_default();
    let part = |part: &str| part.trim().parse().ok().filter(|part: &BlendPart| !part.shards.is_empty());
    match shards.split(',').map(part).collect() {
        Some(parts) => Ok(DataPlace::Shards(parts)),
        None => refuse("data.shards", "`URL[*WEIGHT][,URL[*WEIGHT]...]`", shards),
    }
}

fn check_loader(data: &RawData) -> Result<DataPlace, TrainError> {
    let address = data.loader.clone().unwrap_or_default();
    let urls = || address.split(',').map(str::trim);
    if !urls().all(|url| url.starts_with("http://") || url.starts_with("https://")) {
        let expected = "addresses such as `http://127.0.0.1:50051`, with commas between";
        return refuse("data.loader", expected, address);
    }
    let is_encrypted = urls().all(|url| url.starts_with("https://"));
    if !is_encrypted && urls().any(|url| url.starts_with("https://")) {
        return refuse("data.loader", "replicas that are all encrypted, or none", address);
    }
    let path = |text: &Option<String>| text.as_ref().map(PathBuf::from);
    let identity = match (path(&data.certificate), path(&data.key)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return refuse("data.key", "the key of `data.certificate`", "nothing"),
        (None, Some(_)) => return refuse("data.certificate", "the certificate of `data.key`", "nothing"),
    };
    match (is_encrypted, &data.authority) {
        (true, None) => refuse("data.authority", "the authorities of an `https://` loader", "nothing"),
        (false, Some(found)) => refuse("data.authority", "nothing for a loader without encryption", found),
        _ if identity.is_some() && !is_encrypted => {
            refuse("data.certificate", "nothing for a loader without encryption", "a file")
        }
        _ => Ok(DataPlace::Loader(RemotePlace {
            dataset: data.dataset.clone().unwrap_or_default(),
            token_file: path(&data.token_file),
            authority: path(&data.authority),
            identity,
            allow_remote_plaintext: data.allow_remote_plaintext.unwrap_or(false),
            address,
        })),
    }
}
