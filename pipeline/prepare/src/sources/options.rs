//! What a user may say about a source besides where its files are.

use std::collections::BTreeMap;

use super::Source;
use crate::PrepareError;
use serde::{Deserialize, Serialize};
use vela_runtime::clap;

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
        let Self { captions, split, answer, dataset, min_ratings } = self;
        let given: [(&'static str, bool, Source); 5] = [
            ("--captions", captions.is_some(), Source::AiChallenger),
            ("--split", split.is_some(), Source::Scienceqa),
            ("--answer", answer.is_some(), Source::Scienceqa),
            ("--dataset", dataset.is_some(), Source::Sharegpt),
            ("--min-rating", !min_ratings.is_empty(), Source::Finevision),
        ];
        match given.into_iter().find(|(_, given, of)| *given && *of != source) {
            None => Ok(()),
            Some((flag, _, of)) => Err(PrepareError::Flag {
                flag,
                expected: format!("it only with `--source {}`", of.as_str()),
                found: format!("--source {}", source.as_str()),
            }),
        }
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
    Ok((name.trim().to_owned(), least.trim().parse().map_err(|_| wrong())?))
}

/// `min_ratings` as a TOML table: `{ relevance = 4 }`.
mod rating_table {
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(super) fn serialize<S: Serializer>(ratings: &[(String, i64)], to: S) -> Result<S::Ok, S::Error> {
        ratings.iter().cloned().collect::<BTreeMap<String, i64>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, i64)>, D::Error> {
        Ok(BTreeMap::<String, i64>::deserialize(from)?.into_iter().collect())
    }
}
