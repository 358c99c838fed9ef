//! FineVision and the Cauldron: Parquet with `images`, `texts: [{user, assistant}]` and one rating per turn in
//! `relevance_ratings`, `image_correspondence_ratings`, `visual_dependency_ratings`, `formatting_ratings`.
//!
//! The images have no marks in the text: they stand before the first question. A turn below a threshold is left out, as
//! nanoVLM does; one without a rating is kept.

use serde_json::Value;
use vela_types::{IMAGE_MARK, Turn};

use super::fields::{Place, clean};
use super::table_file::{Row, TableFormat};
use super::{Fault, RawContent, cells};

/// Rows whose turns reach the ratings.
pub(super) struct Finevision {
    /// Column and least rating.
    columns: Vec<(String, f64)>,
}

impl Finevision {
    /// `min_ratings` by their names without `_ratings`.
    pub(super) fn new(min_ratings: &[(String, i64)]) -> Self {
        Self { columns: min_ratings.iter().map(|(name, least)| (format!("{name}_ratings"), *least as f64)).collect() }
    }
}

impl TableFormat for Finevision {
    const SOURCE: &'static str = "finevision";

    fn required(&self) -> Vec<&str> {
        std::iter::once("texts").chain(self.columns.iter().map(|(column, _)| column.as_str())).collect()
    }

    fn optional(&self) -> Vec<&str> {
        vec!["images"]
    }

    fn image_columns(&self) -> Vec<&str> {
        vec!["images"]
    }

    fn content(&self, row: &Row<'_>, place: &Place<'_>) -> Result<RawContent, Fault> {
        let images = cells::images(&row.value("images"), "images", place)?;
        let texts = cells::to_json(&row.value("texts"));
        let Some(pairs) = texts.as_array() else {
            return Err(Fault::new("missing_field", "column `texts`: expected a list"));
        };
        let kept = self.kept(row, pairs.len())?;
        let mut turns = Vec::new();
        for (at, pair) in pairs.iter().enumerate().filter(|(at, _)| kept[*at]) {
            turns.push(Turn::user(read(pair, at, "user")?));
            turns.push(Turn::assistant(read(pair, at, "assistant")?));
        }
        if turns.is_empty() && !pairs.is_empty() {
            return Err(Fault::new("low_rating", format!("none of {} turns reaches `--min-rating`", pairs.len())));
        }
        if let Some(first) = turns.first_mut() {
            first.text = format!("{}{}", format!("{IMAGE_MARK}\n").repeat(images.len()), first.text);
        }
        place.dialogue(Self::SOURCE, images, turns)
    }
}

impl Finevision {
    /// Which of `num_turns` turns reach every threshold.
    fn kept(&self, row: &Row<'_>, num_turns: usize) -> Result<Vec<bool>, Fault> {
        let mut kept = vec![true; num_turns];
        for (column, least) in &self.columns {
            let ratings = cells::to_json(&row.value(column));
            let Some(ratings) = ratings.as_array() else { continue };
            if ratings.len() != num_turns {
                let detail = format!("column `{column}`: expected {num_turns} ratings, found {}", ratings.len());
                return Err(Fault::new("wrong_type", detail));
            }
            for (kept, rating) in kept.iter_mut().zip(ratings) {
                *kept &= match (rating, rating.as_f64()) {
                    (Value::Null, _) => true,
                    (_, Some(rating)) => rating >= *least,
                    (_, None) => {
                        let detail = format!("column `{column}`: expected numbers, found `{rating}`");
                        return Err(Fault::new("wrong_type", detail));
                    }
                };
            }
        }
        Ok(kept)
    }
}

fn read(pair: &Value, at: usize, field: &str) -> Result<String, Fault> {
    let text = pair[field].as_str();
    let missing = || Fault::new("missing_field", format!("column `texts[{at}]`: expected a text in `{field}`"));
    Ok(clean(text.ok_or_else(missing)?))
}

#[cfg(test)]
mod tests {
    use polars::prelude::{Column, IntoColumn, IntoSeries, NamedFrom, Series, StructChunked};

    use super::*;
    use crate::PrepareError;
    use crate::sources::Entry;
    use crate::sources::testing::{causes, read_table, samples};

    /// One row of turns, `Q0` and `A0` and so on.
    fn texts(num_turns: usize) -> Column {
        let column = |name: &str, first: &str| {
            let texts: Vec<String> = (0..num_turns).map(|at| format!("{first}{at}")).collect();
            Series::new(name.into(), texts)
        };
        let fields = [column("user", "Q"), column("assistant", "A")];
        let pairs = StructChunked::from_series("".into(), num_turns, fields.iter()).expect("columns of one length");
        Series::new("texts".into(), [pairs.into_series()]).into_column()
    }

    fn read(columns: Vec<Column>, ratings: &[(&str, i64)]) -> Result<Vec<Entry>, PrepareError> {
        let ratings: Vec<_> = ratings.iter().map(|(name, least)| ((*name).to_owned(), *least)).collect();
        read_table(columns, Finevision::new(&ratings))
    }

    #[test]
    fn turns_below_a_rating_are_left_out_whatever_kind_of_number_it_is() {
        let ratings = |values: Series| Series::new("relevance_ratings".into(), [values]).into_column();
        for values in [Series::new("".into(), [3i64, 4, 5]), Series::new("".into(), [3.5f64, 4.0, 4.5])] {
            let entries = read(vec![texts(3), ratings(values)], &[("relevance", 4)]).expect("reads");
            let turns: Vec<String> = samples(entries)[0].turns.iter().map(|turn| turn.text.clone()).collect();
            assert_eq!(turns, ["Q1", "A1", "Q2", "A2"]);
        }
        let unrated = ratings(Series::new("".into(), [Some(1i64), None]));
        assert_eq!(samples(read(vec![texts(2), unrated], &[("relevance", 4)]).expect("reads"))[0].turns.len(), 2);
        let words = ratings(Series::new("".into(), ["5", "high"]));
        assert_eq!(causes(&read(vec![texts(2), words], &[("relevance", 4)]).expect("reads")), ["wrong_type"]);
    }

    #[test]
    fn a_file_without_the_column_of_a_rating_is_refused() {
        assert_eq!(samples(read(vec![texts(1)], &[]).expect("reads")).len(), 1);
        let fault = read(vec![texts(1)], &[("formatting", 4)]).expect_err("no such column");
        assert!(fault.is_usage() && fault.to_string().contains("`formatting_ratings`"), "{fault}");
    }
}
