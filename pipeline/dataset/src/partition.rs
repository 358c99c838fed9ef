//! Which places of an epoch's order a rank's micro-batch holds.

use std::ops::Range;

use vela_types::{BatchSpec, Fingerprint, Position};

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

/// How a rank cuts its steps: step `k` holds places `k*G .. (k+1)*G`, rank `r` of `w` the `r`-th of `w` equal slices of
/// them, micro-batch `m` the `m`-th piece of at most `micro_batch` places of the slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlan {
    global_batch: u64,
    slice: u64,
    rank: u64,
    micro_batch: u64,
    num_samples: u64,
}

impl StepPlan {
    /// Checks that the spec makes sense for `partition`, in which every rank has an equal share.
    pub fn new(spec: &BatchSpec, partition: Partition, num_samples: u64) -> Result<Self, DatasetError> {
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
        if !spec.global_batch.is_multiple_of(world) {
            return Err(DatasetError::UnevenShare { global_batch: spec.global_batch, world });
        }
        Ok(Self {
            global_batch: u64::from(spec.global_batch),
            slice: u64::from(spec.global_batch / world),
            rank: u64::from(rank),
            micro_batch: u64::from(spec.micro_batch),
            num_samples,
        })
    }

    /// Steps of one epoch; the last one may reach past the last sample.
    pub fn steps_per_epoch(&self) -> u64 {
        self.num_samples.div_ceil(self.global_batch)
    }

    /// Micro-batches of one step.
    pub fn num_micro(&self) -> u32 {
        self.slice.div_ceil(self.micro_batch) as u32
    }

    /// Rows of a rank's largest micro-batch, masked slots included.
    pub fn rows_per_micro(&self) -> u64 {
        self.micro_batch.min(self.slice)
    }

    /// The places of a whole step that hold samples.
    pub fn step_places(&self, step: u64) -> Range<u64> {
        let start = step * self.global_batch;
        start..(start + self.global_batch).min(self.num_samples)
    }

    /// The places of one micro-batch, those past the last sample (masked slots) included.
    pub fn micro_places(&self, position: Position) -> Result<Range<u64>, DatasetError> {
        let check = |what, bound, found| match found < bound {
            true => Ok(()),
            false => Err(DatasetError::Position { what, bound, found }),
        };
        check("step", self.steps_per_epoch(), position.step)?;
        check("micro-batch", u64::from(self.num_micro()), u64::from(position.micro))?;
        let slice_start = position.step * self.global_batch + self.rank * self.slice;
        let start = u64::from(position.micro) * self.micro_batch;
        Ok(slice_start + start..slice_start + (start + self.micro_batch).min(self.slice))
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
    Fingerprint(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(global_batch: u32, micro_batch: u32) -> BatchSpec {
        BatchSpec { global_batch, micro_batch, seed: 1, shuffle: true, image_tokens: 4, max_length: 64 }
    }

    proptest! {
        #[test]
        fn ranks_are_disjoint_and_complete(
            world in prop::sample::select(vec![1u32, 2, 3, 4, 5, 7, 8, 16]), share in 1u32..9, micro in 1u32..12, n in 1u64..200,
        ) {
            let mut places = Vec::new();
            let global_batch = world * share;
            for rank in 0..world {
                let plan = StepPlan::new(&spec(global_batch, micro), Partition { rank, world }, n).expect("a good spec");
                prop_assert_eq!(plan.steps_per_epoch(), n.div_ceil(u64::from(global_batch)));
                let mut position = Position { epoch: 0, step: 0, micro: 0 };
                while position.epoch == 0 {
                    places.extend(plan.micro_places(position).expect("inside the epoch"));
                    position = plan.after(position);
                }
            }
            places.sort_unstable();
            prop_assert!(places.into_iter().eq(0..n.next_multiple_of(u64::from(global_batch))));
        }
    }

    #[test]
    fn unusable_shares_are_refused_by_name() {
        let fault = |spec: BatchSpec, rank, world| {
            StepPlan::new(&spec, Partition { rank, world }, 10).expect_err("unusable").to_string()
        };
        assert!(fault(spec(10, 2), 0, 3).contains("multiple of 3"));
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
        ];
        assert!(changed.iter().all(|spec| spec_fingerprint(spec) != base));
    }
}
