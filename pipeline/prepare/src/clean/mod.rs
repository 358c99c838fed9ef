//! Cleaning: which sound records are in a set. Every record is read once before the build, its facts become rows of polars
//! frames, and one byte a record is kept.

mod alike;
mod config;
mod facts;
mod rules;

use std::ops::ControlFlow;

pub use config::{CleanConfig, KeptLanguage, Likeness, Part};
pub(crate) use rules::Cause;

use crate::PrepareError;
use crate::sources::{Entry, InputFile};
use alike::KeyTable;
use facts::Facts;

/// Records judged together.
const BATCH: usize = 4096;

/// What becomes of the records of each file: 0 to keep one, or the code of a [`Cause`].
pub(crate) struct Selection(Vec<Vec<u8>>);

impl Selection {
    /// Why record `record` of file `file` is left out, if it is.
    pub(crate) fn cause(&self, file: usize, record: u64) -> Option<Cause> {
        let code = *self.0.get(file)?.get(record as usize)?;
        (code != 0).then(|| Cause::from_code(code))
    }
}

/// A file to judge.
pub(crate) struct Judged<'a> {
    pub(crate) file: &'a InputFile,
    /// The share of its records that its weight takes.
    pub(crate) share: f64,
    /// The earlier file of which this is a copy, whose records are alike by intention.
    pub(crate) copy_of: Option<usize>,
}

/// Judges the records of `files`. Nothing is read if everything stays.
pub(crate) fn select(files: &[Judged<'_>], config: &CleanConfig) -> Result<Selection, PrepareError> {
    if config.keeps_all() && files.iter().all(|judged| judged.share >= 1.0) {
        return Ok(Selection(vec![]));
    }
    let (mut codes, mut keys, mut first_row) = (Vec::new(), KeyTable::new()?, 0);
    for judged in files {
        let of_file = judge_file(judged, config, first_row, &mut keys)?;
        first_row += of_file.len() as u64;
        codes.push(of_file);
    }
    let alike = keys.finish(first_row as usize)?;
    for (code, alike) in codes.iter_mut().flatten().zip(alike) {
        // Only records that stay otherwise have keys.
        *code = if *code == 0 { alike } else { *code };
    }
    for (copy, judged) in files.iter().enumerate() {
        let Some(original) = judged.copy_of else { continue };
        for record in 0..codes[copy].len() {
            let code = codes[original][record];
            if code != 0 && Cause::from_code(code).is_listed() {
                codes[copy][record] = code;
            }
        }
    }
    Ok(Selection(codes))
}

/// The codes of one file by the filters alone; the keys of those that stay go to `keys`. A record with a fault stays: the
/// build says what is wrong with it.
fn judge_file(
    judged: &Judged<'_>,
    config: &CleanConfig,
    first_row: u64,
    keys: &mut KeyTable,
) -> Result<Vec<u8>, PrepareError> {
    let Judged { file, share, copy_of } = *judged;
    let mut codes = vec![0; file.records.num_records() as usize];
    let mut batch: Vec<(u64, Facts)> = Vec::with_capacity(BATCH);
    let mut fault = None;
    let mut flush = |batch: &mut Vec<(u64, Facts)>| {
        let (records, facts): (Vec<u64>, Vec<Facts>) = batch.drain(..).unzip();
        let judged = rules::judge(&facts, config, share).map_err(PrepareError::parquet(&file.path))?;
        for ((record, facts), code) in records.into_iter().zip(facts).zip(judged) {
            codes[record as usize] = code;
            let is_key = |_: &(Likeness, u64)| code == 0 && copy_of.is_none();
            for (likeness, key) in facts.keys.into_iter().filter(is_key) {
                keys.add(first_row + record, likeness, key)?;
            }
        }
        Ok::<_, PrepareError>(())
    };
    file.records.read(0..file.records.num_records(), &mut |Entry { record, content }| {
        if let Ok(content) = content {
            batch.push((record, Facts::of(&content, config)));
        }
        if batch.len() == BATCH {
            fault = flush(&mut batch).err();
        }
        if fault.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    match fault {
        Some(fault) => Err(fault),
        None => flush(&mut batch).map(|()| codes),
    }
}
