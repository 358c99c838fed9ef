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

const RATINGS: [&str; 4] =
    ["relevance_ratings", "image_correspondence_ratings", "visual_dependency_ratings", "formatting_ratings"];

/// Rows whose turns reach the ratings, given as (`relevance`, least).
pub(super) struct Finevision {
    pub(super) min_ratings: Vec<(String, i64)>,
}

impl TableFormat for Finevision {
    const SOURCE: &'static str = "finevision";

    fn required(&self) -> Vec<&str> {
        vec!["texts"]
    }

    fn optional(&self) -> Vec<&str> {
        ["images"].into_iter().chain(RATINGS).collect()
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
        for (name, least) in &self.min_ratings {
            let column = format!("{name}_ratings");
            let ratings = cells::to_json(&row.value(&column));
            let Some(ratings) = ratings.as_array() else { continue };
            if ratings.len() != num_turns {
                let detail = format!("column `{column}`: expected {num_turns} ratings, found {}", ratings.len());
                return Err(Fault::new("wrong_type", detail));
            }
            let is_low = |rating: &Value| rating.as_i64().is_some_and(|rating| rating < *least);
            kept.iter_mut().zip(ratings).for_each(|(kept, rating)| *kept &= !is_low(rating));
        }
        Ok(kept)
    }
}

fn read(pair: &Value, at: usize, field: &str) -> Result<String, Fault> {
    let text = pair[field].as_str();
    let missing = || Fault::new("missing_field", format!("column `texts[{at}]`: expected a text in `{field}`"));
    Ok(clean(text.ok_or_else(missing)?))
}
