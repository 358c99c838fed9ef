//! Going through the list: what needs no request is settled here, on the reader's own thread.

use std::fs;
use std::ops::ControlFlow;

use tokio::sync::mpsc::Sender;

use super::keep::Place;
use super::ledger::{Admission, Known, Paths, partial_path};
use super::place::{of_name, of_url};
use super::{FailedUrl, Failure, FetchConfig, ImageUrl, ImageUrls};
use crate::PrepareError;

/// Longer ones are no URLs of images, but images written into the text.
const MAX_URL_BYTES: usize = 8192;

/// What is to be done for one URL of the list.
#[derive(Debug)]
pub(super) enum Item {
    /// Ask for it.
    Fetch(Target),
    /// Its image is there.
    Kept,
    /// The list named it before.
    Repeated,
    /// It cannot be asked for, or was in vain in an earlier run.
    Failed(FailedUrl),
}

/// A URL to ask for.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) url: String,
    pub(super) host: String,
    pub(super) place: Place,
    /// A file has its name already; the ledger does not know it.
    pub(super) is_there: bool,
}

/// Sends every URL of `urls` up to the limit, until nobody listens.
pub(super) fn read(
    urls: &dyn ImageUrls,
    config: &FetchConfig,
    paths: &mut Paths,
    sender: Sender<Item>,
) -> Result<(), PrepareError> {
    let mut left = config.limit.unwrap_or(u64::MAX);
    let mut failed = None;
    urls.read(&mut |image| {
        let item = settle(&image, config, paths).unwrap_or_else(|failure| {
            let Failure { cause, detail, .. } = failure;
            Ok(Item::Failed(FailedUrl { url: image.url, path: None, cause, detail, attempts: 0 }))
        });
        left -= 1;
        let is_sent = match item {
            Ok(item) => sender.blocking_send(item).is_ok(),
            Err(fault) => {
                failed = Some(fault);
                false
            }
        };
        if is_sent && left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    failed.map_or(Ok(()), Err)
}

fn settle(image: &ImageUrl, config: &FetchConfig, paths: &mut Paths) -> Result<Result<Item, PrepareError>, Failure> {
    let ImageUrl { url, name } = image;
    let url = url.trim();
    let host = host_of(url)?;
    let path = name.as_ref().map_or_else(|| of_url(url), |name| of_name(name))?;
    let known = match paths.admit(&path, url) {
        Admission::Repeated => return Ok(Ok(Item::Repeated)),
        Admission::Own(known) => known,
        Admission::Taken => {
            let detail = format!("`{path}` is the file of another URL; fetch this one into a folder of its own");
            return Ok(Ok(failed_item(url, path, "name_taken", detail)));
        }
    };
    if let Known::Failed(cause) = known
        && !config.retry_failed
    {
        let detail = "failed for good in an earlier run; `--retry-failed` asks again".to_owned();
        return Ok(Ok(failed_item(url, path, paths.cause(cause), detail)));
    }
    let place = Place { file: config.output.join(&path), partial: partial_path(&config.output, &path), path };
    Ok(match known {
        Known::Finished(bytes) if size(&place.file) == Some(bytes) => Ok(Item::Kept),
        // Killed between the ledger's line and the file's name.
        Known::Finished(bytes) if size(&place.partial) == Some(bytes) && size(&place.file).is_none() => {
            fs::rename(&place.partial, &place.file)
                .map_err(PrepareError::io("rename", &place.file))
                .map(|()| Item::Kept)
        }
        _ => {
            let is_there = size(&place.file).is_some();
            Ok(Item::Fetch(Target { url: url.to_owned(), host, place, is_there }))
        }
    })
}

fn failed_item(url: &str, path: String, cause: &str, detail: String) -> Item {
    Item::Failed(FailedUrl { url: url.to_owned(), path: Some(path), cause: cause.to_owned(), detail, attempts: 0 })
}

/// Bytes of the regular file at `path`.
fn size(path: &std::path::Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|data| data.len())
}

/// Host and port of an http URL.
fn host_of(url: &str) -> Result<String, Failure> {
    let wrong = |found: &str| Failure::lasting("bad_url", format!("expected an http or https URL, found {found}"));
    match url.len() {
        0 => return Err(Failure::lasting("no_url", "the record has no URL")),
        found if found > MAX_URL_BYTES => return Err(wrong(&format!("{found} bytes"))),
        _ => {}
    }
    let parsed = reqwest::Url::parse(url).map_err(|fault| wrong(&format!("one with a fault: {fault}")))?;
    match (parsed.scheme(), parsed.host_str()) {
        ("http" | "https", Some(host)) => Ok(format!("{host}:{}", parsed.port_or_known_default().unwrap_or_default())),
        (scheme, _) => Err(wrong(&format!("scheme `{scheme}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart_by_name_and_port() {
        assert_eq!(host_of("https://H.example/1.jpg").expect("sound"), "h.example:443");
        assert_eq!(host_of("http://u:p@[::1]:8080/1.jpg").expect("sound"), "[::1]:8080");
        let long = format!("http://h/{}", "x".repeat(MAX_URL_BYTES));
        for (url, cause) in [
            ("", "no_url"),
            ("1.jpg", "bad_url"),
            ("data:image/png;base64,AAAA", "bad_url"),
            ("file:///etc/passwd", "bad_url"),
            ("http://", "bad_url"),
            (long.as_str(), "bad_url"),
        ] {
            assert_eq!(host_of(url).expect_err(url).cause, cause, "{url}");
        }
    }
}
