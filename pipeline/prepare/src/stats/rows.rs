//! One pass over the small columns of every shard.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use vela_runtime::Progress;
use vela_shard::{Manifest, RowBuffer, ShardEntry, ShardReader, Store};
use vela_types::{IGNORE_LABEL, Language};

use super::Duplicates;
use crate::PrepareError;

/// What rows say besides their lengths. Hashes are the first eight bytes of a blake3: among ten million records one
/// false match is expected in 300,000 sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RowCounts {
    pub(super) languages: BTreeMap<String, u64>,
    pub(super) sources: BTreeMap<String, u64>,
    /// Answers per record.
    pub(super) turns: BTreeMap<u64, u64>,
    texts: Vec<u64>,
    samples: Vec<u64>,
    images: Vec<u64>,
}

/// Counts all rows, shards in parallel; sums do not depend on who counted what.
pub(super) fn count_rows(
    store: &dyn Store,
    manifest: &Manifest,
    workers: usize,
    progress: &Progress,
) -> Result<RowCounts, PrepareError> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Result<RowCounts, PrepareError>> = Mutex::new(Ok(RowCounts::default()));
    std::thread::scope(|scope| {
        for _ in 0..workers.min(manifest.shards.len()) {
            scope.spawn(|| {
                while let Some(entry) = manifest.shards.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let counted = count_shard(store, entry);
                    progress.inc(entry.rows);
                    let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    match (&mut *done, counted) {
                        (Ok(sum), Ok(counts)) => sum.add(counts),
                        (Ok(_), Err(fault)) => {
                            *done = Err(fault);
                            next.store(manifest.shards.len(), Ordering::Relaxed);
                        }
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn count_shard(store: &dyn Store, entry: &ShardEntry) -> Result<RowCounts, PrepareError> {
    let reader = ShardReader::open(store, entry)?;
    let (mut counts, mut row) = (RowCounts::default(), RowBuffer::default());
    for at in 0..reader.rows() {
        reader.read_row(at, &mut row)?;
        counts.count(&row);
    }
    Ok(counts)
}

impl RowCounts {
    fn count(&mut self, row: &RowBuffer) {
        let language = row.language().unwrap_or(Language::Other).as_str();
        add(&mut self.languages, language, 1);
        add(&mut self.sources, &row.source, 1);
        *self.turns.entry(num_answers(&row.labels)).or_default() += 1;
        let mut hasher = blake3::Hasher::new();
        row.input_ids.iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
        self.texts.push(first_word(hasher.finalize().as_bytes()));
        for image in &row.images {
            hasher.update(&image.hash.0);
            self.images.push(first_word(&image.hash.0));
        }
        self.samples.push(first_word(hasher.finalize().as_bytes()));
    }

    fn add(&mut self, other: Self) {
        other.languages.iter().for_each(|(name, num)| add(&mut self.languages, name, *num));
        other.sources.iter().for_each(|(name, num)| add(&mut self.sources, name, *num));
        other.turns.iter().for_each(|(turns, num)| *self.turns.entry(*turns).or_default() += num);
        self.texts.extend(other.texts);
        self.samples.extend(other.samples);
        self.images.extend(other.images);
    }

    pub(super) fn duplicates(&self) -> Duplicates {
        Duplicates { samples: repeated(&self.samples), texts: repeated(&self.texts), images: repeated(&self.images) }
    }
}

fn add(counts: &mut BTreeMap<String, u64>, name: &str, num: u64) {
    match counts.get_mut(name) {
        Some(count) => *count += num,
        None => _ = counts.insert(name.to_owned(), num),
    }
}

/// Runs of labels: each is one answer.
fn num_answers(labels: &[i32]) -> u64 {
    let starts = |at: usize| labels[at] != IGNORE_LABEL && (at == 0 || labels[at - 1] == IGNORE_LABEL);
    (0..labels.len()).filter(|&at| starts(at)).count() as u64
}

fn first_word(hash: &[u8; 32]) -> u64 {
    u64::from_le_bytes(hash[..8].try_into().expect("a hash has more than eight bytes"))
}

/// How many values stand behind an equal one.
fn repeated(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_runs_of_labels() {
        assert_eq!(num_answers(&[-100, 5, 6, -100, -100, 7]), 2);
        assert_eq!(num_answers(&[3, -100]), 1);
        assert_eq!(num_answers(&[]), 0);
    }

    #[test]
    fn what_stands_behind_an_equal_one_is_repeated() {
        assert_eq!(repeated(&[4, 1, 4, 4, 2, 1]), 3);
        assert_eq!(repeated(&[]), 0);
    }
}
