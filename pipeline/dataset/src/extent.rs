//! How large the batches of a set can get, from what its lengths index says of all records together.

use std::collections::BTreeMap;

use vela_shard::LengthGroup;
use vela_types::{BatchSpec, RecordLengths};

/// The records of a set, grouped by their number of images: a group's longest record is the same for every spec.
#[derive(Debug, Default)]
pub(crate) struct LengthProfile {
    groups: BTreeMap<u32, Group>,
}

#[derive(Debug)]
struct Group {
    /// Each counted as often as an epoch may hold it.
    num_records: u64,
    longest: u64,
    num_tokens: u32,
}

/// Tokens of a record once each image token stands `image_tokens` times.
pub(crate) fn expanded_length(lengths: &RecordLengths, spec: &BatchSpec) -> u64 {
    u64::from(lengths.num_tokens) + u64::from(lengths.num_images) * u64::from(spec.image_tokens - 1)
}

impl LengthProfile {
    /// Takes in the records of a set, whose first one has the index `first_index` here; an epoch holds each at most `copies` times.
    pub(crate) fn add(&mut self, set: &[LengthGroup], first_index: u64, copies: u64) {
        for &LengthGroup { num_images, num_tokens, num_records, longest } in set {
            let longest = first_index + longest;
            let known = self.groups.entry(num_images).or_insert(Group { num_records: 0, longest, num_tokens });
            known.num_records += num_records * copies;
            if num_tokens > known.num_tokens {
                (known.longest, known.num_tokens) = (longest, num_tokens);
            }
        }
    }

    /// The record that has the most tokens under `spec`, and how many; `None` for an empty set.
    pub(crate) fn longest(&self, spec: &BatchSpec) -> Option<(u64, u64)> {
        let expanded = |(&num_images, group): (&u32, &Group)| {
            let lengths = RecordLengths { num_tokens: group.num_tokens, num_label_tokens: 0, num_images };
            (group.longest, expanded_length(&lengths, spec))
        };
        self.groups.iter().map(expanded).max_by_key(|&(_, length)| length)
    }

    /// The samples of an epoch, at most.
    pub(crate) fn num_samples(&self) -> u64 {
        self.groups.values().map(|group| group.num_records).sum()
    }

    /// Images of the `num_rows` samples that have the most.
    pub(crate) fn most_images(&self, num_rows: u64) -> u64 {
        let mut rows_left = num_rows;
        let mut num_images = 0;
        for (&images, group) in self.groups.iter().rev() {
            let taken = group.num_records.min(rows_left);
            num_images += taken * u64::from(images);
            rows_left -= taken;
        }
        num_images
    }
}
