//! Which places of an epoch's order a rank's micro-batch holds.

use std::ops::Range;

use vela_types::{BatchSpec, Fingerprint, PackingSpec, Position};

use crate::DatasetError;

/// One rank of several that share every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Partition {
    /// Zero-based rank.
    pub rank: u32,
    /// Ranks.
    pub world: u32,
}

impl Partition {
    /// The only rank.
    pub const WHOLE: Self = Self { rank: 0, world: 1 };
}

/// How a rank cuts its steps: step `k` holds the rows at places `k*G .. (k+1)*G`, rank `r` of `w` those from
/// `k*G + floor(r*G/w)` to `k*G + floor((r+1)*G/w)`, micro-batch `m` the `m`-th piece of at most `micro_batch` rows. Where `w`
/// does not divide `G` the shorter shares are filled up with a masked row, so that all ranks do equal work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlan {
    global_batch: u64,
    partition: Partition,
    micro_batch: u64,
    num_rows: u64,
}

/// The rows of one micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroRows {
    /// Places of the epoch; those past its last row are masked.
    pub places: Range<u64>,
    /// Masked rows that follow, where this rank's share is shorter than others'.
    pub num_masked: u64,
}

impl StepPlan {
    /// Checks that the spec makes sense for `partition` of an epoch of `num_rows` rows.
    pub fn new(spec: &BatchSpec, partition: Partition, num_rows: u64) -> Result<Self, DatasetError> {
        let Partition { rank, world } = partition;
        let fields = [
            ("global_batch", spec.global_batch),
            ("micro_batch", spec.micro_batch),
            ("image_tokens", spec.image_tokens),
            ("max_length", spec.max_length),
            ("world", world),
        ];
        if let Some((field, _)) = fields.into_iter().find(|&(_, value)| value == 0) {
            return Err(DatasetError::Spec { field, expected: "above 0".to_owned(), found: 0 });
        }
        if rank >= world {
            return Err(DatasetError::Rank { rank, world });
        }
        let (global_batch, micro_batch) = (u64::from(spec.global_batch), u64::from(spec.micro_batch));
        Ok(Self { global_batch, partition, micro_batch, num_rows })
    }

    /// Steps of one epoch; the last one may reach past the last row.
    pub fn steps_per_epoch(&self) -> u64 {
        self.num_rows.div_ceil(self.global_batch)
    }

    /// Micro-batches of one step, equal on all ranks.
    pub fn num_micro(&self) -> u32 {
        self.largest_share().div_ceil(self.micro_batch) as u32
    }

    /// Rows of a rank's largest micro-batch, masked ones included.
    pub fn rows_per_micro(&self) -> u64 {
        self.micro_batch.min(self.largest_share())
    }

    /// The places of a whole step that hold rows.
    pub fn step_places(&self, step: u64) -> Range<u64> {
        let start = step * self.global_batch;
        start..(start + self.global_batch).min(self.num_rows)
    }

    /// The rows of one micro-batch.
    pub fn micro_rows(&self, position: Position) -> Result<MicroRows, DatasetError> {
        let check = |what, bound, found| match found < bound {
            true => Ok(()),
            false => Err(DatasetError::Position { what, bound, found }),
        };
        check("step", self.steps_per_epoch(), position.step)?;
        check("micro-batch", u64::from(self.num_micro()), u64::from(position.micro))?;
        let step_start = position.step * self.global_batch;
        let (share_start, share_end) =
            (self.share_start(self.partition.rank), self.share_start(self.partition.rank + 1));
        let first = u64::from(position.micro) * self.micro_batch;
        let end = (first + self.micro_batch).min(self.largest_share());
        let clamp = |row: u64| step_start + (share_start + row).min(share_end);
        let places = clamp(first)..clamp(end);
        Ok(MicroRows { num_masked: end - first - (places.end - places.start), places })
    }

    /// The position after `position`: next micro-batch, step or epoch.
    pub fn after(&self, position: Position) -> Position {
        let Position { epoch, step, micro } = position;
        if micro + 1 < self.num_micro() {
            Position { epoch, step, micro: micro + 1 }
        } else if step + 1 < self.steps_per_epoch() {
            Position { epoch, step: step + 1, micro: 0 }
        } else {
            Position { epoch: epoch.saturating_add(1), step: 0, micro: 0 }
        }
    }

    fn share_start(&self, rank: u32) -> u64 {
        u64::from(rank) * self.global_batch / u64::from(self.partition.world)
    }

    fn largest_share(&self) -> u64 {
        self.global_batch.div_ceil(u64::from(self.partition.world))
    }
}

/// blake3 over the fields of `spec` that decide what a step holds (all but `micro_batch`), in the byte form of
/// `docs/determinism.md`.
pub fn spec_fingerprint(spec: &BatchSpec) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"vela batch spec 1");
    hasher.update(&spec.global_batch.to_le_bytes());
    hasher.update(&spec.seed.to_le_bytes());
    hasher.update(&[u8::from(spec.shuffle)]);
    hasher.update(&spec.image_tokens.to_le_bytes());
    hasher.update(&spec.max_length.to_le_bytes());
    // What older versions did not have takes part only where it is used, so that their cursors stay good.
    if spec.shuffle && spec.shuffle_window > 0 {
        hasher.update(b"window").update(&spec.shuffle_window.to_le_bytes());
    }
    if let Some(PackingSpec { max_images, window }) = spec.packing {
        hasher.update(b"packing").update(&max_images.to_le_bytes()).update(&window.to_le_bytes());
    }
    Fingerprint(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(global_batch: u32, micro_batch: u32) -> BatchSpec {
        BatchSpec {
            global_batch,
            micro_batch,
            seed: 1,
            shuffle: true,
            shuffle_window: 0,
            image_tokens: 4,
            max_length: 64,
            packing: None,
        }
    }

    proptest! {
        #[test]
        fn ranks_are_disjoint_complete_and_equally_busy(
            world in 1u32..18, global_batch in 1u32..40, micro in 1u32..12, n in 1u64..200,
        ) {
            let mut places = Vec::new();
            let mut shapes = std::collections::BTreeSet::new();
            for rank in 0..world {
                let plan = StepPlan::new(&spec(global_batch, micro), Partition { rank, world }, n).expect("a good spec");
                prop_assert_eq!(plan.steps_per_epoch(), n.div_ceil(u64::from(global_batch)));
                let mut position = Position { epoch: 0, step: 0, micro: 0 };
                let mut num_rows = Vec::new();
                while position.epoch == 0 {
                    let rows = plan.micro_rows(position).expect("inside the epoch");
                    num_rows.push(rows.num_masked + rows.places.end - rows.places.start);
                    prop_assert!(num_rows.last().is_some_and(|&rows| rows > 0 && rows <= plan.rows_per_micro()));
                    places.extend(rows.places);
                    position = plan.after(position);
                }
                shapes.insert(num_rows);
            }
            prop_assert_eq!(shapes.len(), 1, "ranks differ in what they do");
            places.sort_unstable();
            prop_assert!(places.into_iter().eq(0..n.next_multiple_of(u64::from(global_batch))));
        }
    }

    #[test]
    fn unusable_shares_are_refused_by_name() {
        let fault = |spec: BatchSpec, rank, world| {
            StepPlan::new(&spec, Partition { rank, world }, 10).expect_err("unusable").to_string()
        };
        assert!(fault(spec(10, 0), 0, 1).contains("`micro_batch` above 0"));
        assert!(fault(spec(0, 1), 0, 1).contains("`global_batch` above 0"));
        assert!(fault(spec(10, 1), 2, 2).contains("rank below 2"));
        assert!(fault(spec(10, 1), 0, 0).contains("`world` above 0"));
    }

    #[test]
    fn only_the_micro_batch_may_change_under_a_cursor() {
        let base = spec_fingerprint(&spec(8, 2));
        assert_eq!(base, spec_fingerprint(&spec(8, 4)));
        let changed = [
            BatchSpec { global_batch: 9, ..spec(8, 2) },
            BatchSpec { seed: 2, ..spec(8, 2) },
            BatchSpec { shuffle: false, ..spec(8, 2) },
            BatchSpec { image_tokens: 5, ..spec(8, 2) },
            BatchSpec { max_length: 65, ..spec(8, 2) },
            BatchSpec { shuffle_window: 1, ..spec(8, 2) },
            BatchSpec { packing: Some(PackingSpec { max_images: 4, window: 64 }), ..spec(8, 2) },
        ];
        assert!(changed.iter().all(|spec| spec_fingerprint(spec) != base));
    }
}
