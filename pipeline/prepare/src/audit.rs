//! The audit: every record and image looked at before anything is built, without a processor or a model.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use serde::Serialize;
use vela_processor::{ImageCheck, check_image};
use vela_runtime::{Progress, Shutdown};

use crate::PrepareError;
use crate::build::{InputConfig, Reject, check_share, counted};
use crate::sources::{Entry, Fault, ImageFolder, InputFile, InputSet, RawContent};

/// Records looked at together: the threads share them, and their faults are told in the order of the records.
const BATCH: usize = 1024;
/// Image files inside the records that are looked at together, unless a single record has more.
const BATCH_BYTES: usize = 64 << 20;

/// What to look at.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditConfig {
    /// The raw input; its dialogue is of no effect.
    pub input: InputConfig,
    /// How far images are read.
    pub images: ImageCheck,
    /// Threads that look at images.
    pub workers: usize,
    /// Records to read, from the first; all without it.
    pub limit: Option<u64>,
    /// File for the list of rejects, one JSON object per line.
    pub rejects: Option<PathBuf>,
    /// Accepted share of rejected records, 0 to 1; the caller compares it.
    pub max_reject: f64,
}

impl AuditConfig {
    /// Headers of all images, with all cores and no list.
    pub fn new(input: InputConfig) -> Self {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        Self { input, images: ImageCheck::Header, workers, limit: None, rejects: None, max_reject: 0.05 }
    }

    /// The list must not replace a raw file, nor become one.
    fn check_list(&self) -> Result<(), PrepareError> {
        let Some(list) = &self.rejects else { return Ok(()) };
        let wrong = |expected: &str| {
            let found = list.display().to_string();
            Err(PrepareError::Flag { flag: "--rejects", expected: expected.to_owned(), found })
        };
        let folder = list.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Ok(folder) = folder.canonicalize() else { return wrong("a file in a folder that is there") };
        // A remote input is nowhere below the list.
        let Ok(input) = self.input.input.canonicalize() else { return Ok(()) };
        let place = folder.join(list.file_name().unwrap_or_default());
        match place.canonicalize().unwrap_or(place).starts_with(&input) {
            true => wrong("a file outside `--input`"),
            false => Ok(()),
        }
    }

    fn check(&self) -> Result<(), PrepareError> {
        let zero = |flag| Err(PrepareError::Flag { flag, expected: "at least 1".to_owned(), found: "0".to_owned() });
        self.input.check()?;
        self.check_list()?;
        match self {
            Self { workers: 0, .. } => zero("--workers"),
            Self { limit: Some(0), .. } => zero("--limit"),
            _ => check_share(self.max_reject),
        }
    }
}

/// What was found; the JSON object of `pipeline audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Records looked at.
    pub records: u64,
    /// Images of sound records.
    pub images: u64,
    /// Records that a build would reject for their text or images, by cause.
    pub rejected: BTreeMap<String, u64>,
    /// The first ten rejects.
    #[serde(skip)]
    pub examples: Vec<Reject>,
}

impl AuditReport {
    /// Share of records that a build would reject.
    pub fn reject_rate(&self) -> f64 {
        self.rejected.values().sum::<u64>() as f64 / self.records.max(1) as f64
    }

    /// A few lines for people.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}, {}", counted(self.records, "record"), counted(self.images, "image"));
        for (cause, count) in &self.rejected {
            text.push_str(&format!("\n  {count} {cause}"));
        }
        for Reject { file, record, detail, .. } in &self.examples {
            text.push_str(&format!("\n{file}, record {record}: {detail}"));
        }
        let more = self.rejected.values().sum::<u64>().saturating_sub(self.examples.len() as u64);
        if more > 0 {
            text.push_str(&format!("\nand {more} more; `--rejects FILE` lists them all"));
        }
        text + "\n"
    }
}

/// Reads every record of the input and, as far as asked, its images.
///
/// A fault of a record is counted, never an error.
///
/// # Errors
/// If the input is not there or not of its source's format, or the reject list cannot be written.
pub fn audit(config: &AuditConfig, progress: &Progress, shutdown: &Shutdown) -> Result<AuditReport, PrepareError> {
    config.check()?;
    let input = config.input.staged()?;
    let images = Arc::new(ImageFolder::open(input.images.as_deref(), None)?);
    let set = InputSet::open(&input, &images, 0, None)?;
    let mut left = config.limit.unwrap_or(u64::MAX);
    progress.set_total(set.num_records().min(left));
    let mut findings = Findings::new(config)?;
    for file in &set.files {
        let num = file.records.num_records().min(left);
        left -= num;
        audit_file(config, file, num, &mut findings, progress, shutdown)?;
    }
    progress.finish();
    let (report, num_records) = (findings.finish()?, set.num_records().min(config.limit.unwrap_or(u64::MAX)));
    match report.records == num_records {
        true => Ok(report),
        false => Err(PrepareError::AuditStopped { done: report.records, total: num_records }),
    }
}

fn audit_file(
    config: &AuditConfig,
    file: &InputFile,
    num_records: u64,
    findings: &mut Findings,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<(), PrepareError> {
    let mut batch = Batch::default();
    let mut failed = None;
    let mut look = |batch: &mut Batch| {
        progress.inc(batch.entries.len() as u64);
        findings.note(file, check_batch(config, std::mem::take(batch).entries))
    };
    file.records.read(0..num_records, &mut |entry| {
        if batch.push(entry) {
            failed = look(&mut batch).err();
        }
        if failed.is_some() || shutdown.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    match failed {
        Some(fault) => Err(fault),
        None => look(&mut batch),
    }
}

/// Records that wait to be looked at.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    /// Of the image files inside them.
    num_bytes: usize,
}

impl Batch {
    /// Adds a record. True if no further one should follow.
    fn push(&mut self, entry: Entry) -> bool {
        self.num_bytes += entry.content.as_ref().map_or(0, RawContent::embedded_bytes);
        self.entries.push(entry);
        self.entries.len() >= BATCH || self.num_bytes >= BATCH_BYTES
    }
}

/// A record's number with its images or its fault.
type Checked = (u64, Result<u64, Fault>);

/// Looks at a batch with several threads; the result is in the batch's order.
fn check_batch(config: &AuditConfig, batch: Vec<Entry>) -> Vec<Checked> {
    let size = batch.len().div_ceil(config.workers.max(1)).max(1);
    let check = |entry: &Entry| {
        let id = entry.content.as_ref().ok().map(|content| content.id().to_owned());
        (entry.record, Fault::catch(id, || check_entry(entry, config.images)))
    };
    thread::scope(|scope| {
        let parts = batch.chunks(size).map(|part| scope.spawn(move || part.iter().map(check).collect::<Vec<_>>()));
        let parts: Vec<_> = parts.collect();
        parts.into_iter().flat_map(|part| part.join().expect("panics are caught by record")).collect()
    })
}

fn check_entry(entry: &Entry, depth: ImageCheck) -> Result<u64, Fault> {
    let content = entry.content.as_ref().map_err(Fault::clone)?;
    for image in content.images() {
        check_image(image, depth).map_err(|fault| Fault::of_processor(&fault).of(content.id()))?;
    }
    Ok(content.images().len() as u64)
}

/// The counts so far and the list being written.
struct Findings {
    report: AuditReport,
    list: Option<(PathBuf, io::BufWriter<fs::File>)>,
}

/// Rejects shown to people.
const NUM_EXAMPLES: usize = 10;

impl Findings {
    fn new(config: &AuditConfig) -> Result<Self, PrepareError> {
        let create = |path: &PathBuf| {
            let file = fs::File::create(path).map_err(PrepareError::io("create", path))?;
            Ok::<_, PrepareError>((path.clone(), io::BufWriter::new(file)))
        };
        Ok(Self { report: AuditReport::default(), list: config.rejects.as_ref().map(create).transpose()? })
    }

    fn note(&mut self, file: &InputFile, checked: Vec<Checked>) -> Result<(), PrepareError> {
        for (record, outcome) in checked {
            self.report.records += 1;
            match outcome {
                Ok(images) => self.report.images += images,
                Err(fault) => self.reject(Reject::new(file, record, fault))?,
            }
        }
        Ok(())
    }

    fn reject(&mut self, reject: Reject) -> Result<(), PrepareError> {
        *self.report.rejected.entry(reject.cause.clone()).or_default() += 1;
        if let Some((path, list)) = &mut self.list {
            list.write_all(reject.to_line().as_bytes()).map_err(PrepareError::io("write", path))?;
        }
        if self.report.examples.len() < NUM_EXAMPLES {
            self.report.examples.push(reject);
        }
        Ok(())
    }

    fn finish(self) -> Result<AuditReport, PrepareError> {
        if let Some((path, mut list)) = self.list {
            list.flush().map_err(PrepareError::io("write", &path))?;
        }
        Ok(self.report)
    }
}

#[cfg(test)]
mod tests {
    use vela_types::{ImageRef, Language, Sample};

    use super::*;

    fn entry(image: &ImageRef) -> Entry {
        let (id, source, images) = ("a/b/1".to_owned(), "a".to_owned(), vec![image.clone()]);
        let sample = Sample { id, source, language: Language::En, images, turns: vec![] };
        Entry { record: 0, content: Ok(RawContent::Dialogue(sample)) }
    }

    #[test]
    fn records_that_hold_their_images_are_looked_at_before_they_are_many_bytes() {
        let full_at = |image: ImageRef| {
            let mut batch = Batch::default();
            (1..).find(|_| batch.push(entry(&image))).expect("some day")
        };
        let of_mib = |num: usize| ImageRef::Bytes { name: "1.png".to_owned(), data: vec![0; num << 20].into() };
        assert_eq!([full_at(of_mib(1)), full_at(of_mib(20)), full_at(of_mib(65))], [64, 4, 1]);
        assert_eq!(full_at(ImageRef::Path("1.png".to_owned())), BATCH);
    }
}
