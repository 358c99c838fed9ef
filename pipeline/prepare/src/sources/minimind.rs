//! minimind-v, all three generations: `chat.json` in LLaVA's layout, JSON lines of `{conversations: [{role, content}],
//! image: "a.jpg, b.jpg"}`, and Parquet with `conversations` (JSON as text) and `image_bytes` (one file or a list).
//!
//! A text-only row of the Parquet files carries a black picture of 8x8 pixels and no `<image>` mark; it becomes a
//! text-only sample.

use serde_json::Value;
use vela_processor::codec::decode_rgb;
use vela_types::{IMAGE_MARK, ImageRef, Role, Turn};

use super::fields::{Place, TurnFields, image_names};
use super::json_file::{Head, JsonFormat};
use super::table_file::{Row, TableFormat};
use super::{Fault, RawContent, cells, llava};

/// A black picture of 8x8 pixels has fewer bytes than this in any format.
const MAX_BLANK_BYTES: usize = 2048;

/// Roles by name; files of 2024 have LLaVA's.
const TURNS: TurnFields<'_> = TurnFields {
    role: "role",
    text: "content",
    roles: &[("user", Role::User), ("assistant", Role::Assistant), ("system", Role::System)],
};

/// Both containers.
pub(super) struct Minimind;

const SOURCE: &str = "minimind";

impl JsonFormat for Minimind {
    const SOURCE: &'static str = SOURCE;

    fn head(&self, bytes: &[u8]) -> Result<Head, serde_json::Error> {
        Head::of_conversations(bytes)
    }

    fn content(&self, record: &Value, _part: u32, place: &Place<'_>) -> Result<RawContent, Fault> {
        let images = place.resolve(&image_names(&record["image"], "image")?)?;
        place.dialogue(SOURCE, images, read_turns(&record["conversations"])?)
    }
}

impl TableFormat for Minimind {
    const SOURCE: &'static str = SOURCE;

    fn required(&self) -> Vec<&str> {
        vec!["conversations"]
    }

    fn optional(&self) -> Vec<&str> {
        vec!["image_bytes"]
    }

    fn image_columns(&self) -> Vec<&str> {
        vec!["image_bytes"]
    }

    fn content(&self, row: &Row<'_>, place: &Place<'_>) -> Result<RawContent, Fault> {
        let text = row.text("conversations")?;
        let conversations = serde_json::from_str(&text)
            .map_err(|fault| Fault::new("broken_json", format!("column `conversations`: {fault}")))?;
        let turns = read_turns(&conversations)?;
        let mut images = cells::images(&row.value("image_bytes"), "image_bytes", place)?;
        if images.iter().all(is_blank) && !turns.iter().any(|turn| turn.text.contains(IMAGE_MARK)) {
            images.clear();
        }
        place.dialogue(SOURCE, images, turns)
    }
}

fn read_turns(conversations: &Value) -> Result<Vec<Turn>, Fault> {
    let is_llava = conversations.get(0).is_some_and(|turn| turn.get("from").is_some());
    if is_llava { &llava::TURNS } else { &TURNS }.read_all(conversations, "conversations")
}

/// The black 8x8 picture of a text-only row.
fn is_blank(image: &ImageRef) -> bool {
    let ImageRef::Bytes { name, data } = image else { return false };
    data.len() <= MAX_BLANK_BYTES
        && decode_rgb(data, name)
            .is_ok_and(|pixels| (pixels.width, pixels.height) == (8, 8) && pixels.data.iter().all(|&value| value == 0))
}

#[cfg(test)]
mod tests {
    use polars::prelude::{IntoColumn, ListChunked, NamedFrom, Series};
    use vela_types::Sample;

    use super::*;
    use crate::sources::testing::{png, read_json, read_table, samples};

    const QUESTION: &str = r#"[{"role":"user","content":"What?\n<image>"},{"role":"assistant","content":"A cat."}]"#;
    const TEXT: &str = r#"[{"role":"user","content":"Hello?"},{"role":"assistant","content":"Hi."}]"#;

    #[test]
    fn lines_of_both_generations_and_comma_lists_are_read() {
        let lines = format!(
            r#"{{"conversations":{QUESTION},"image":"a.jpg"}}
{{"id":"x","image":"b.jpg","conversations":[{{"from":"human","value":"<image>"}},{{"from":"gpt","value":"B."}}]}}
{{"conversations":[{{"role":"user","content":"<image><image> Which?"}},{{"role":"assistant","content":"One."}}],"image":"0.jpg, 1.jpg"}}
{{"conversations":{TEXT}}}"#
        );
        let entries = read_json("sft.jsonl", lines.replace("\"<image>\"", "\"<image> What?\"").as_bytes(), Minimind);
        let samples = samples(entries.expect("reads"));
        let images: Vec<usize> = samples.iter().map(|sample| sample.images.len()).collect();
        assert_eq!(images, [1, 1, 2, 0]);
        assert!(samples[2].images[1].name().ends_with("/1.jpg"), "{:?}", samples[2].images);
    }

    fn read_parquet(images: Series) -> Vec<Sample> {
        let texts = Series::new("conversations".into(), [QUESTION, TEXT]);
        let entries = read_table(vec![texts.into_column(), images.into_column()], Minimind).expect("reads");
        samples(entries)
    }

    #[test]
    fn a_black_8x8_picture_of_a_text_only_row_is_no_image() {
        let (red, black) = (png(8, 8, [255, 0, 0]), png(8, 8, [0, 0, 0]));
        let one = Series::new("image_bytes".into(), [red.as_slice(), black.as_slice()]);
        assert_eq!(read_parquet(one).iter().map(|sample| sample.images.len()).collect::<Vec<_>>(), [1, 0]);
        let cells = [&red, &black].map(|file| Series::new("".into(), [file.as_slice()]));
        let lists = Series::new("image_bytes".into(), cells);
        assert!(lists.try_list().map(ListChunked::len) == Some(2));
        assert_eq!(read_parquet(lists).iter().map(|sample| sample.images.len()).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn a_black_picture_that_is_asked_about_stays() {
        let black = png(8, 8, [0, 0, 0]);
        let images = Series::new("image_bytes".into(), [black.as_slice(), black.as_slice()]);
        assert_eq!(read_parquet(images).iter().map(|sample| sample.images.len()).collect::<Vec<_>>(), [1, 0]);
    }
}
