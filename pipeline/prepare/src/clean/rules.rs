//! The filters, as polars expressions over the facts of many records.

use polars::prelude::{Column, DataFrame, DataType, Expr, IntoLazy, NamedFrom, PolarsResult, Series, col, lit, when};

use super::facts::{Facts, language_code};
use super::{CleanConfig, Part};

/// Why a sound record is not in the set. The code 0 means that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cause {
    Language = 1,
    TooShort = 2,
    TooMuchText = 3,
    DuplicateText = 4,
    NearDuplicate = 5,
    DuplicateImage = 6,
    /// It belongs to the other part, which is no fault of it.
    OtherPart = 7,
    /// The input's weight left it out.
    NotDrawn = 8,
}

impl Cause {
    const ALL: [Self; 8] = [
        Self::Language,
        Self::TooShort,
        Self::TooMuchText,
        Self::DuplicateText,
        Self::NearDuplicate,
        Self::DuplicateImage,
        Self::OtherPart,
        Self::NotDrawn,
    ];

    /// The cause of a code that is not 0.
    pub(crate) fn from_code(code: u8) -> Self {
        Self::ALL[usize::from(code) - 1]
    }

    /// The name under which it is counted.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Language => "other_language",
            Self::TooShort => "too_few_chars",
            Self::TooMuchText => "too_many_chars",
            Self::DuplicateText => "duplicate_text",
            Self::NearDuplicate => "near_duplicate_text",
            Self::DuplicateImage => "duplicate_image",
            Self::OtherPart => "other_part",
            Self::NotDrawn => "not_drawn",
        }
    }

    /// What a line of the reject list says.
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            Self::Language => "its language is not one of `--languages`",
            Self::TooShort => "it has fewer characters than `--min-chars`",
            Self::TooMuchText => "it has more characters than `--max-chars`",
            Self::DuplicateText => "an earlier record has the same text (`--dedupe text`)",
            Self::NearDuplicate => "an earlier record has nearly the same text (`--dedupe near-text`)",
            Self::DuplicateImage => "an earlier record has the same images (`--dedupe image`)",
            Self::OtherPart => "it belongs to the other part",
            Self::NotDrawn => "the weight of its input leaves it out",
        }
    }

    /// True of a cause by that name: the record had no fault.
    pub(crate) fn is_name(name: &str) -> bool {
        Self::ALL.iter().any(|cause| cause.as_str() == name)
    }

    /// True if the record was left out for what it is, not by a draw: it is then listed like a reject.
    pub(crate) const fn is_listed(self) -> bool {
        !matches!(self, Self::OtherPart | Self::NotDrawn)
    }
}

/// The code of each record: 0 to keep it, or its cause. `share` is the part of the input that its weight takes.
pub(super) fn judge(facts: &[Facts], config: &CleanConfig, share: f64) -> PolarsResult<Vec<u8>> {
    let frame = DataFrame::new(
        facts.len(),
        vec![
            Column::from(Series::new("language".into(), facts.iter().map(|facts| facts.language).collect::<Vec<u8>>())),
            Column::from(Series::new("chars".into(), facts.iter().map(|facts| facts.num_chars).collect::<Vec<u32>>())),
            Column::from(Series::new("draw".into(), facts.iter().map(|facts| facts.draw).collect::<Vec<f64>>())),
        ],
    )?;
    let judged = frame.lazy().with_column(verdict(config, share).alias("code")).collect()?;
    Ok(judged.column("code")?.u8()?.into_no_null_iter().collect())
}

/// The first rule that leaves a record out.
fn verdict(config: &CleanConfig, share: f64) -> Expr {
    let mut rules: Vec<(Expr, Cause)> = Vec::new();
    // The same draw serves both: the parts of a share are shares of the parts.
    if let (Some(validation), Some(part)) = (config.validation, config.part) {
        let is_validation = col("draw").lt(lit(validation));
        let is_other = if part == Part::Train { is_validation } else { is_validation.not() };
        rules.push((is_other, Cause::OtherPart));
    }
    if share < 1.0 {
        let within = match (config.validation, config.part) {
            (Some(validation), Some(Part::Train)) => (col("draw") - lit(validation)) / lit(1.0 - validation),
            (Some(validation), Some(Part::Validation)) => col("draw") / lit(validation),
            _ => col("draw"),
        };
        rules.push((within.gt_eq(lit(share)), Cause::NotDrawn));
    }
    if !config.languages.is_empty() {
        let is_kept = |expr: Expr, language: &super::KeptLanguage| {
            expr.or(col("language").eq(lit(language_code((*language).into()))))
        };
        rules.push((config.languages.iter().fold(lit(false), is_kept).not(), Cause::Language));
    }
    if let Some(least) = config.min_chars {
        rules.push((col("chars").lt(lit(least)), Cause::TooShort));
    }
    if let Some(most) = config.max_chars {
        rules.push((col("chars").gt(lit(most)), Cause::TooMuchText));
    }
    let kept = lit(0u8);
    let code = rules
        .into_iter()
        .rev()
        .fold(kept, |otherwise, (rule, cause)| when(rule).then(lit(cause as u8)).otherwise(otherwise));
    // Literals widen on their way through `when`.
    code.cast(DataType::UInt8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clean::KeptLanguage;

    fn facts(language: u8, num_chars: u32, draw: f64) -> Facts {
        Facts { language, num_chars, draw, keys: vec![] }
    }

    #[test]
    fn the_first_rule_that_fits_names_the_cause() {
        let rows = [facts(0, 5, 0.05), facts(1, 5, 0.2), facts(2, 50, 0.3), facts(0, 500, 0.95), facts(1, 50, 0.9)];
        let config = CleanConfig {
            languages: vec![KeptLanguage::Zh, KeptLanguage::En],
            min_chars: Some(10),
            max_chars: Some(100),
            validation: Some(0.1),
            part: Some(Part::Train),
            ..CleanConfig::default()
        };
        let causes = |share| judge(&rows, &config, share).expect("judged");
        assert_eq!(causes(1.0), [7, 2, 1, 3, 0]);
        assert_eq!(causes(0.5), [7, 2, 1, 8, 8]);
        let validation = CleanConfig { part: Some(Part::Validation), ..config.clone() };
        assert_eq!(judge(&rows, &validation, 1.0).expect("judged"), [2, 7, 7, 7, 7]);
        assert_eq!(judge(&rows, &CleanConfig::default(), 1.0).expect("judged"), [0; 5]);
    }

    #[test]
    fn codes_are_those_of_their_causes() {
        for cause in Cause::ALL {
            assert_eq!(Cause::from_code(cause as u8), cause);
        }
    }
}
