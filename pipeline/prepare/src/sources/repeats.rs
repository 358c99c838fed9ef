//! Records that repeat an id, found in bounded memory however many records there are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use vela_types::Fingerprint;

/// Keys held before they go to disk: 24 MiB.
const MAX_HELD: usize = 1 << 20;
/// Files that spilled keys are dealt to, by id: 10 million keys are 4 MB a file.
const NUM_PARTS: usize = 64;
/// Bytes of a key on disk.
const KEY_BYTES: usize = 24;

/// What is kept of a record whose id came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Same bytes as the record of this number.
    Copy(u64),
    /// The n-th record of its id, from 2.
    Nth(u32),
}

/// Hashes of id and content, with the record's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    id: u64,
    record: u64,
    content: u64,
}

/// Takes the id and content of record after record, then tells the repeats. Only the repeats stay in memory.
#[derive(Default)]
pub(super) struct RepeatFinder {
    held: Vec<Key>,
    parts: Vec<BufWriter<File>>,
}

impl RepeatFinder {
    /// Adds a record; `record` must grow from call to call.
    pub(super) fn add(&mut self, id: &str, content: &[u8], record: u64) -> io::Result<()> {
        self.held.push(Key { id: short_hash(id.as_bytes()), record, content: short_hash(content) });
        if self.held.len() == MAX_HELD { self.spill() } else { Ok(()) }
    }

    /// The repeats, by record number.
    pub(super) fn finish(mut self) -> io::Result<HashMap<u64, Repeat>> {
        let mut repeats = HashMap::new();
        if self.parts.is_empty() {
            find(&mut self.held, &mut repeats);
            return Ok(repeats);
        }
        self.spill()?;
        for part in self.parts {
            let mut file = part.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            find(&mut read_keys(file)?, &mut repeats);
        }
        Ok(repeats)
    }

    fn spill(&mut self) -> io::Result<()> {
        while self.parts.len() < NUM_PARTS {
            self.parts.push(BufWriter::new(tempfile::tempfile()?));
        }
        for key in self.held.drain(..) {
            let part = &mut self.parts[key.id as usize % NUM_PARTS];
            for word in [key.id, key.record, key.content] {
                part.write_all(&word.to_le_bytes())?;
            }
        }
        Ok(())
    }
}

fn read_keys(file: File) -> io::Result<Vec<Key>> {
    let num_keys = file.metadata()?.len() as usize / KEY_BYTES;
    let mut reader = BufReader::new(file);
    let mut word = [0; 8];
    let mut next = || reader.read_exact(&mut word).map(|()| u64::from_le_bytes(word));
    (0..num_keys).map(|_| Ok(Key { id: next()?, record: next()?, content: next()? })).collect()
}

fn find(keys: &mut [Key], repeats: &mut HashMap<u64, Repeat>) {
    keys.sort_unstable();
    for group in keys.chunk_by(|left, right| left.id == right.id).filter(|group| group.len() > 1) {
        let mut first_of: HashMap<u64, u64> = HashMap::new();
        for key in group {
            match first_of.get(&key.content) {
                Some(&first) => _ = repeats.insert(key.record, Repeat::Copy(first)),
                None => {
                    first_of.insert(key.content, key.record);
                    if first_of.len() > 1 {
                        repeats.insert(key.record, Repeat::Nth(first_of.len() as u32));
                    }
                }
            }
        }
    }
}

fn short_hash(bytes: &[u8]) -> u64 {
    Fingerprint(*blake3::hash(bytes).as_bytes()).to_seed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_all(records: &[(u8, u8)], spill_every: usize) -> HashMap<u64, Repeat> {
        let mut finder = RepeatFinder::default();
        for (record, (id, content)) in records.iter().enumerate() {
            finder.add(&id.to_string(), &[*content], record as u64).expect("added");
            if record % spill_every == spill_every - 1 {
                finder.spill().expect("spilled");
            }
        }
        finder.finish().expect("found")
    }

    #[test]
    fn copies_and_namesakes_are_told_apart() {
        let found = find_all(&[(1, 1), (2, 1), (1, 2), (1, 1), (1, 3), (2, 1)], usize::MAX);
        let expected = [(2, Repeat::Nth(2)), (3, Repeat::Copy(0)), (4, Repeat::Nth(3)), (5, Repeat::Copy(1))];
        assert_eq!(found, expected.into());
    }

    proptest::proptest! {
        #[test]
        fn keys_on_disk_give_the_same_repeats(
            records in proptest::collection::vec((0u8..9, 0u8..4), 0..60), spill_every in 1usize..20,
        ) {
            proptest::prop_assert_eq!(find_all(&records, spill_every), find_all(&records, usize::MAX));
        }
    }
}
