//! A rank's share of a step in numbers, and the sum of all shares.

use std::time::Duration;

use crate::flops::StepSize;
use crate::step::StepReport;

/// Words of eight bytes before the flags.
const NUM_WORDS: usize = 6;

/// What a rank's part of a step came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct StepShare {
    /// Its part of the mean loss over the global batch.
    loss: f64,
    num_samples: u64,
    tokens: u64,
    images: u64,
    pairs: u64,
    /// Nanoseconds.
    data_wait: u64,
    /// Of each trained parameter, in name order.
    pub(super) has_gradient: Vec<bool>,
}

impl StepShare {
    pub(super) fn of(report: &StepReport, has_gradient: Vec<bool>) -> Self {
        Self {
            loss: report.loss,
            num_samples: report.num_samples,
            tokens: report.size.tokens,
            images: report.size.images,
            pairs: report.size.pairs,
            data_wait: report.data_wait.as_nanos() as u64,
            has_gradient,
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let counts = [self.num_samples, self.tokens, self.images, self.pairs, self.data_wait];
        let words = std::iter::once(self.loss.to_bits()).chain(counts);
        words.flat_map(u64::to_le_bytes).chain(self.has_gradient.iter().map(|&has| u8::from(has))).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let (words, flags) = bytes.split_at(8 * NUM_WORDS);
        let word =
            |index: usize| u64::from_le_bytes(words[8 * index..8 * (index + 1)].try_into().expect("eight bytes"));
        Self {
            loss: f64::from_bits(word(0)),
            num_samples: word(1),
            tokens: word(2),
            images: word(3),
            pairs: word(4),
            data_wait: word(5),
            has_gradient: flags.iter().map(|&flag| flag == 1).collect(),
        }
    }

    /// The whole step from the shares of all ranks, in their order. It waited for data as long as the rank that waited longest.
    pub(super) fn sum(shares: &[Vec<u8>]) -> Self {
        let mut whole = Self::default();
        for share in shares.iter().map(|bytes| Self::from_bytes(bytes)) {
            whole.loss += share.loss;
            whole.num_samples += share.num_samples;
            whole.tokens += share.tokens;
            whole.images += share.images;
            whole.pairs += share.pairs;
            whole.data_wait = whole.data_wait.max(share.data_wait);
            whole.has_gradient.resize(share.has_gradient.len(), false);
            whole.has_gradient.iter_mut().zip(&share.has_gradient).for_each(|(any, has)| *any |= has);
        }
        whole
    }

    /// Makes a report that of the whole step. The predicted tokens are those of the global batch already.
    pub(super) fn put_into(&self, report: &mut StepReport) {
        report.loss = self.loss;
        report.num_samples = self.num_samples;
        report.size = StepSize { tokens: self.tokens, images: self.images, pairs: self.pairs, ..report.size };
        report.data_wait = Duration::from_nanos(self.data_wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_whole_step() {
        let share = |loss: f64, wait: u64, has: [bool; 3]| StepShare {
            loss,
            num_samples: 2,
            tokens: 30,
            images: 1,
            pairs: 400,
            data_wait: wait,
            has_gradient: has.to_vec(),
        };
        let shares =
            [share(0.1, 5, [true, false, false]), share(0.2, 9, [true, false, true]), share(0.3, 7, [false; 3])];
        assert_eq!(StepShare::from_bytes(&shares[1].to_bytes()), shares[1]);
        let mut report = StepReport::default();
        report.size.label_tokens = 17;
        let whole = StepShare::sum(&shares.map(|share| share.to_bytes()));
        whole.put_into(&mut report);
        assert_eq!((report.loss, report.num_samples), ((0.1 + 0.2) + 0.3, 6));
        assert_eq!(report.size, StepSize { tokens: 90, label_tokens: 17, images: 3, pairs: 1200 });
        assert_eq!((whole.has_gradient, report.data_wait), (vec![true, false, true], Duration::from_nanos(9)));
    }
}
