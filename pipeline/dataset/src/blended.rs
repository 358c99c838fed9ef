//! Several shard sets as one: weights, identity, sums.

use std::fmt;
use std::str::FromStr;

use vela_shard::Manifest;
use vela_types::{DatasetInfo, Fingerprint};

use crate::DatasetError;

const MILLION: u64 = 1_000_000;

/// How many times an epoch holds the rows of a part, in millionths, so that no rounding of floats decides an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    millionths: u64,
}

impl Weight {
    /// Every row once per epoch.
    pub const ONE: Self = Self { millionths: MILLION };
    /// The largest weight.
    pub const MAX: f64 = 1000.0;

    /// A weight above 0 and at most [`Weight::MAX`], rounded to millionths; `None` for any other number.
    pub fn new(times: f64) -> Option<Self> {
        let millionths = (times * MILLION as f64).round();
        (millionths >= 1.0 && times <= Self::MAX).then_some(Self { millionths: millionths as u64 })
    }

    /// How often one epoch holds a row, at most: a fraction begins and ends inside a pass.
    pub(crate) fn most_copies(self) -> u64 {
        match self.millionths.is_multiple_of(MILLION) {
            true => self.millionths / MILLION,
            false => self.millionths.div_ceil(MILLION) + 1,
        }
    }

    /// The nearest number to this many times `count`, at least 1 if that is.
    pub(crate) fn of(self, count: u64) -> u64 {
        let scaled = (u128::from(count) * u128::from(self.millionths) + u128::from(MILLION / 2)) / u128::from(MILLION);
        (scaled as u64).max(u64::from(count > 0))
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.millionths as f64 / MILLION as f64)
    }
}

impl FromStr for Weight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("expected a weight above 0 and at most {}, found `{text}`", Self::MAX);
        text.trim().parse().ok().and_then(Self::new).ok_or_else(refused)
    }
}

/// A shard set of a blend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlendPart {
    /// Path or url of the shard set.
    pub shards: String,
    /// How often an epoch holds each of its rows.
    pub weight: Weight,
}

impl FromStr for BlendPart {
    type Err = String;

    /// `URL`, or `URL*WEIGHT`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once('*') {
            None => Ok(Self { shards: text.to_owned(), weight: Weight::ONE }),
            Some((shards, weight)) => Ok(Self { shards: shards.to_owned(), weight: weight.parse()? }),
        }
    }
}

/// What a trainer sees of the blend of these shard sets; the data itself where there is one of weight 1.
///
/// # Errors
/// If there is none, or they were not made by the same processor.
pub(crate) fn blend_info(parts: &[(&str, &Manifest, Weight)]) -> Result<DatasetInfo, DatasetError> {
    let Some(((_, first, _), others)) = parts.split_first() else {
        return Err(DatasetError::Empty { url: "a blend of nothing".to_owned() });
    };
    let processor = first.info().processor;
    for (url, manifest, _) in others {
        let found = manifest.info().processor;
        if found != processor {
            return Err(DatasetError::Blend {
                url: (*url).to_owned(),
                expected: format!("the processor {} of the first part", processor.fingerprint.short()),
                found: found.fingerprint.short().to_string(),
            });
        }
    }
    let sum = |count: fn(&DatasetInfo) -> u64| {
        parts.iter().map(|(_, manifest, weight)| weight.of(count(&manifest.info()))).sum()
    };
    Ok(DatasetInfo {
        fingerprint: blend_fingerprint(parts),
        num_samples: sum(|info| info.num_samples),
        num_images: sum(|info| info.num_images),
        num_tokens: sum(|info| info.num_tokens),
        processor,
    })
}

/// The manifest's own fingerprint where there is one part of weight 1; else blake3 over `vela blend 1` and, for each part,
/// its fingerprint and its weight in millionths (u64, little-endian).
pub(crate) fn blend_fingerprint(parts: &[(&str, &Manifest, Weight)]) -> Fingerprint {
    if let [(_, manifest, Weight::ONE)] = parts {
        return manifest.fingerprint;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"vela blend 1");
    for (_, manifest, weight) in parts {
        hasher.update(&manifest.fingerprint.0).update(&weight.millionths.to_le_bytes());
    }
    Fingerprint(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exact_in_millionths_and_keep_every_part() {
        let weight = |times| Weight::new(times).expect("a good weight");
        assert_eq!([0.5, 1.0, 2.5, 0.001].map(|times| weight(times).of(1000)), [500, 1000, 2500, 1]);
        assert_eq!(weight(0.000_001).of(3), 1, "a part that is named takes part");
        assert_eq!(Weight::ONE.of(0), 0);
        assert!([0.0, -1.0, f64::NAN, 1001.0, 1e-9].into_iter().all(|times| Weight::new(times).is_none()));
        assert_eq!(weight(0.3).to_string(), "0.3");
    }

    #[test]
    fn parts_are_written_with_or_without_a_weight() {
        let part = |text: &str| text.parse::<BlendPart>();
        let named = |weight| BlendPart { shards: "s3://b/a".to_owned(), weight };
        assert_eq!(part("s3://b/a"), Ok(named(Weight::ONE)));
        assert_eq!(part("s3://b/a*0.5"), Ok(named(Weight::new(0.5).expect("half"))));
        assert!(part("s3://b/a*none").expect_err("no number").contains("`none`"));
    }
}
