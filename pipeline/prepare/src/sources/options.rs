//! What a user may say about a source besides where its files are.

use std::collections::BTreeMap;

use super::Source;
use crate::PrepareError;
use serde::{Deserialize, Serialize};
use vela_runtime::clap;

/// What the turns of `finevision` are rated by.
pub(super) const RATINGS: [&str; 4] = ["relevance", "image_correspondence", "visual_dependency", "formatting"];

/// Settings of single sources; a source that has no use for one refuses it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct SourceOptions {
    /// ai-challenger: which of an image's captions become samples [default: all].
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captions: Option<CaptionChoice>,
    /// scienceqa: a split of pid_splits.json, `train` or `minival` say [default: every problem].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// scienceqa: what the answer holds [default: lea].
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerForm>,
    /// sharegpt: name of the data set in dataset_info.json, which tells its file, columns and tags.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// finevision: lowest accepted rating of a turn, `relevance=4` say; may be given several times.
    #[arg(long = "min-rating", value_parser = parse_rating)]
    #[serde(skip_serializing_if = "Vec::is_empty", with = "rating_table")]
    pub min_ratings: Vec<(String, i64)>,
}

impl SourceOptions {
    /// Refuses what `source` has no use for.
    pub(crate) fn check(&self, source: Source) -> Result<(), PrepareError> {
        if let Some((flag, of)) = self.given_with_sources().find(|(_, of)| *of != source) {
            let expected = format!("it only with `--source {}`", of.as_str());
            return Err(PrepareError::Flag { flag, expected, found: format!("--source {}", source.as_str()) });
        }
        let wrong =
            |expected, found: &str| PrepareError::Flag { flag: "--min-rating", expected, found: found.to_owned() };
        for (at, (name, _)) in self.min_ratings.iter().enumerate() {
            check_rating(name).map_err(|expected| wrong(expected, name))?;
            if self.min_ratings[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(wrong("each rating once".to_owned(), name));
            }
        }
        Ok(())
    }

    /// The flags of the settings that are made.
    pub(crate) fn given(&self) -> impl Iterator<Item = &'static str> {
        self.given_with_sources().map(|(flag, _)| flag)
    }

    fn given_with_sources(&self) -> impl Iterator<Item = (&'static str, Source)> {
        let Self { captions, split, answer, dataset, min_ratings } = self;
        let settings = [
            ("--captions", captions.is_some(), Source::AiChallenger),
            ("--split", split.is_some(), Source::Scienceqa),
            ("--answer", answer.is_some(), Source::Scienceqa),
            ("--dataset", dataset.is_some(), Source::Sharegpt),
            ("--min-rating", !min_ratings.is_empty(), Source::Finevision),
        ];
        settings.into_iter().filter(|(_, is_given, _)| *is_given).map(|(flag, _, of)| (flag, of))
    }
}

/// Which captions of an image with several become samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CaptionChoice {
    /// Each caption is a sample.
    All,
    /// One caption, drawn by (seed, sample id).
    One,
}

/// What the answer to a multiple-choice question holds. The names are the second halves of those of LLaVA's script
/// (`QCM-LEA`: question, context and multiple options in; lecture, explanation, answer out). ScienceQA calls the explanation a
/// solution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerForm {
    /// Lecture, explanation, `The answer is B.`, with spaces between them.
    Lea,
    /// The same parts on lines that name them: `LECTURE: `, `SOLUTION: ` (none where empty), `###`, `ANSWER: B.`.
    Lepa,
    /// `The answer is B.` alone.
    A,
}

fn parse_rating(text: &str) -> Result<(String, i64), String> {
    let wrong = || format!("expected `name=number`, found `{text}`");
    let (name, least) = text.split_once('=').ok_or_else(wrong)?;
    let name = name.trim();
    check_rating(name).map_err(|expected| format!("expected {expected}, found `{text}`"))?;
    Ok((name.to_owned(), least.trim().parse().map_err(|_| wrong())?))
}

/// Refuses a name that no rating has, with what was expected.
fn check_rating(name: &str) -> Result<(), String> {
    match RATINGS.contains(&name) {
        true => Ok(()),
        false => Err(format!("a rating of {}", RATINGS.map(|name| format!("`{name}`")).join(", "))),
    }
}

/// `min_ratings` as a TOML table: `{ relevance = 4 }`.
mod rating_table {
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(super) fn serialize<S: Serializer>(ratings: &[(String, i64)], to: S) -> Result<S::Ok, S::Error> {
        ratings.iter().cloned().collect::<BTreeMap<String, i64>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, i64)>, D::Error> {
        let ratings: Vec<_> = BTreeMap::<String, i64>::deserialize(from)?.into_iter().collect();
        for (name, _) in &ratings {
            check_rating(name).map_err(|expected| D::Error::custom(format!("expected {expected}, found `{name}`")))?;
        }
        Ok(ratings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratings_go_by_their_names_alone() {
        assert_eq!(parse_rating(" relevance = 4"), Ok(("relevance".to_owned(), 4)));
        for text in ["relevence=4", "relevance_ratings=4", "relevance", "relevance=high", "=4"] {
            let fault = parse_rating(text).expect_err(text);
            assert!(fault.contains(text), "{fault}");
        }
        assert!(parse_rating("relevence=4").expect_err("a slip").contains("visual_dependency"));
        let of_toml = |text: &str| serde_json::from_str::<SourceOptions>(text);
        assert!(of_toml(r#"{"min_ratings": {"formatting": 3}}"#).is_ok());
        let fault = of_toml(r#"{"min_ratings": {"format": 3}}"#).expect_err("a slip").to_string();
        assert!(fault.contains("`format`") && fault.contains("formatting"), "{fault}");
    }

    #[test]
    fn a_rating_that_is_unknown_or_given_twice_is_refused() {
        let check = |ratings: &[(&str, i64)]| {
            let min_ratings = ratings.iter().map(|(name, least)| ((*name).to_owned(), *least)).collect();
            SourceOptions { min_ratings, ..SourceOptions::default() }.check(Source::Finevision)
        };
        assert!(check(&[("relevance", 4), ("formatting", 4)]).is_ok());
        for ratings in [&[("relevance", 4), ("relevance", 3)], &[("relevance", 4), ("clarity", 3)]] {
            assert!(check(ratings).is_err_and(|fault| fault.to_string().contains(ratings[1].0)), "{ratings:?}");
        }
    }
}
