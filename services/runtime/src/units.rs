//! Quantities with their unit, in flags and config files: `512MiB`, `30s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Binary units first: [`ByteSize`] prints with the first that divides it.
const BYTE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

const PERIOD_UNITS_IN_MS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A number of bytes, written as a whole number with a unit: `B`, `KiB`, `MiB`, `GiB`, `KB`, `MB`, `GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// A length of time, written as a whole number with a unit: `ms`, `s`, `m`, `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// The text was not a whole number followed by a known unit, or does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {what} such as `{example}`, found `{found}`")]
pub struct ParseUnitError {
    what: &'static str,
    example: &'static str,
    found: String,
}

/// Splits digits from unit and multiplies; `None` for anything else, an overflow included.
fn parse_quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits_end = text.find(|symbol: char| !symbol.is_ascii_digit())?;
    let (digits, unit) = text.split_at(digits_end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

fn write_quantity(out: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let exact = units.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    match exact.or(units.last()) {
        Some((name, factor)) => write!(out, "{}{name}", value / factor),
        None => write!(out, "{value}"),
    }
}

impl FromStr for ByteSize {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = || ParseUnitError { what: "a size with a unit", example: "512MiB", found: text.to_owned() };
        parse_quantity(text, &BYTE_UNITS).map(Self).ok_or_else(found)
    }
}

impl FromStr for Period {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = || ParseUnitError { what: "a time with a unit", example: "30s", found: text.to_owned() };
        parse_quantity(text, &PERIOD_UNITS_IN_MS).map(Duration::from_millis).map(Self).ok_or_else(found)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_quantity(out, self.0, &BYTE_UNITS)
    }
}

/// Whole milliseconds; finer parts are cut off.
impl fmt::Display for Period {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_quantity(out, u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &PERIOD_UNITS_IN_MS)
    }
}

macro_rules! serde_by_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_by_text!(ByteSize);
serde_by_text!(Period);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_unit_is_understood() {
        let cases = [("0B", 0), ("7B", 7), ("1KiB", 1024), ("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("3KB", 3_000)];
        let decimal = [("4MB", 4_000_000), ("5GB", 5_000_000_000)];
        for (text, bytes) in cases.into_iter().chain(decimal) {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn each_time_unit_is_understood() {
        let cases = [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000)];
        for (text, millis) in cases {
            assert_eq!(text.parse(), Ok(Period(Duration::from_millis(millis))), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in ["", "512", "MiB", "-1MiB", "1.5GiB", "5mib", "5 Mi B", "99999999999GiB", "５MiB"] {
            let fault = text.parse::<ByteSize>().expect_err(text).to_string();
            assert_eq!(fault, format!("expected a size with a unit such as `512MiB`, found `{text}`"));
        }
        for text in ["", "5", "s", "1d", "-1s", "18446744073709551615h"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }

    #[test]
    fn text_form_round_trips() {
        for bytes in [0, 1, 1_000, 1_024, 1_500_000, 3 << 30, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        for millis in [0, 1, 999, 1_000, 90_000, 7_200_000] {
            let period = Period(Duration::from_millis(millis));
            assert_eq!(period.to_string().parse(), Ok(period));
        }
        assert_eq!(ByteSize(512 << 20).to_string(), "512MiB");
        assert_eq!(Period(Duration::from_secs(90)).to_string(), "90s");
    }
}
