//! What a fetch did, and the list of what it could not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::FailedUrl;
use super::place::{FAILED_FILE, STATE_FOLDER};
use crate::PrepareError;
use crate::journal::replace_file;

/// The JSON object of `pipeline fetch`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FetchReport {
    /// URLs in the input; `fetched + kept + repeated` and the failed ones make up this number.
    pub urls: u64,
    /// Images fetched in this run.
    pub fetched: u64,
    /// Images that were there before.
    pub kept: u64,
    /// URLs that the input had named before.
    pub repeated: u64,
    /// URLs without an image, by cause.
    pub failed: BTreeMap<String, u64>,
    /// Bytes of the images fetched in this run.
    pub bytes: u64,
    /// Requests made in this run.
    pub requests: u64,
    /// Most encoded bytes that verification held at a time.
    pub peak_bytes: u64,
    /// Lines of the ledger that could not be read; their images were looked at again.
    pub damaged_lines: u64,
    /// Time of this run.
    pub seconds: f64,
    /// The first ten failures.
    #[serde(skip)]
    pub examples: Vec<FailedUrl>,
}

impl FetchReport {
    /// Share of distinct URLs without an image.
    pub fn fail_rate(&self) -> f64 {
        self.num_failed() as f64 / (self.urls - self.repeated).max(1) as f64
    }

    fn num_failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// A few lines for people.
    pub fn to_text(&self) -> String {
        let Self { urls, fetched, kept, repeated, bytes, seconds, .. } = self;
        let mut text = format!("{urls} URLs: {fetched} fetched ({bytes} bytes in {seconds:.1} s), {kept} there before");
        if *repeated > 0 {
            text.push_str(&format!(", {repeated} named twice"));
        }
        for (cause, count) in &self.failed {
            text.push_str(&format!("\n  {count} {cause}"));
        }
        for FailedUrl { url, detail, .. } in &self.examples {
            text.push_str(&format!("\n{url}: {detail}"));
        }
        text + "\n"
    }
}

/// Failures shown to people.
const NUM_EXAMPLES: usize = 10;

/// The counts so far and the failed list being written.
pub(super) struct Tally {
    pub(super) report: FetchReport,
    output: PathBuf,
    list: BufWriter<File>,
}

impl Tally {
    pub(super) fn new(output: &Path) -> Result<Self, PrepareError> {
        let path = partial_list(output);
        let list = File::create(&path).map_err(PrepareError::io("create", &path))?;
        Ok(Self { report: FetchReport::default(), output: output.to_owned(), list: BufWriter::new(list) })
    }

    pub(super) fn fail(&mut self, failed: FailedUrl) -> Result<(), PrepareError> {
        *self.report.failed.entry(failed.cause.clone()).or_default() += 1;
        let line = serde_json::to_string(&failed).expect("texts and numbers are JSON") + "\n";
        let path = partial_list(&self.output);
        self.list.write_all(line.as_bytes()).map_err(PrepareError::io("write", &path))?;
        if self.report.examples.len() < NUM_EXAMPLES {
            self.report.examples.push(failed);
        }
        Ok(())
    }

    /// Publishes the failed list.
    pub(super) fn finish(mut self) -> Result<FetchReport, PrepareError> {
        let path = partial_list(&self.output);
        self.list.flush().map_err(PrepareError::io("write", &path))?;
        replace_file(&self.output.join(FAILED_FILE), &path)?;
        Ok(self.report)
    }
}

fn partial_list(output: &Path) -> PathBuf {
    output.join(STATE_FOLDER).join("failed.partial")
}
