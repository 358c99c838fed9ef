//! AI Challenger captions: a JSON list of `{url, image_id, caption: [five texts]}`.

use serde::Deserialize;
use serde_json::Value;
use vela_types::SeedStream;

use super::fields::{Place, clean, id_text};
use super::json_file::{Head, JsonFormat};
use super::{CaptionChoice, Fault, RawCaption, RawContent};

/// The two questions published with Basic-VLM, `<image>` where they have the image.
const PROMPTS: &[&str] = &["这幅图像描述了什么？<image>", "<image>这幅图像中有什么？"];

/// Each caption a sample, or one of an image's captions.
pub(super) struct AiChallenger {
    pub(super) choice: CaptionChoice,
    pub(super) seed: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    image_id: Value,
    caption: Value,
}

impl JsonFormat for AiChallenger {
    const SOURCE: &'static str = "ai-challenger";

    fn head(&self, bytes: &[u8]) -> Result<Head, serde_json::Error> {
        let fields: Fields = serde_json::from_slice(bytes)?;
        let id = id_text(&fields.image_id);
        let num_captions = fields.caption.as_array().map_or(0, Vec::len) as u32;
        Ok(Head {
            images: id.clone().into_iter().collect(),
            num_parts: if self.choice == CaptionChoice::All { num_captions.max(1) } else { 1 },
            is_recognized: id.is_some() && num_captions > 0,
            id,
        })
    }

    fn content(&self, record: &Value, part: u32, place: &Place<'_>) -> Result<RawContent, Fault> {
        let missing =
            |field: &str, expected: &str| Fault::new("missing_field", format!("field `{field}`: expected {expected}"));
        let name = record["image_id"].as_str().ok_or_else(|| missing("image_id", "a text"))?;
        let captions = record["caption"].as_array().ok_or_else(|| missing("caption", "a list of texts"))?;
        if captions.is_empty() {
            return Err(missing("caption", "at least one text"));
        }
        let at = match self.choice {
            CaptionChoice::All => part as usize,
            CaptionChoice::One => {
                SeedStream::named(self.seed, "caption choice", place.id).below(captions.len() as u64) as usize
            }
        };
        let caption = captions[at].as_str();
        let global = clean(caption.ok_or_else(|| missing(&format!("caption[{at}]"), "a text"))?);
        if global.is_empty() {
            return Err(Fault::new("empty_caption", format!("field `caption[{at}]` holds no text")));
        }
        let image = place.images.resolve(name, place.folder)?;
        let (id, source) = (place.id.to_owned(), Self::SOURCE);
        Ok(RawContent::Caption(RawCaption { id, source, image, global, locals: vec![], prompts: PROMPTS }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::testing::read_json;

    const TRAIN: &str = r#"[
        {"url": "http://host/a.jpg", "image_id": "8f00.jpg", "caption": ["\u4e00", "二", "三", "四", "五"]},
        {"caption": ["甲", " "], "image_id": "9a11.jpg", "url": ""},
        {"caption": [], "image_id": "x.jpg"}]"#;

    fn captions(choice: CaptionChoice, seed: u64) -> Vec<Result<(String, String), &'static str>> {
        let entries = read_json("train.json", TRAIN.as_bytes(), AiChallenger { choice, seed }).expect("reads");
        let text = |entry: crate::Entry| match entry.content {
            Ok(RawContent::Caption(caption)) => Ok((caption.id, caption.global)),
            Ok(RawContent::Dialogue(_)) => panic!("a caption"),
            Err(fault) => Err(fault.cause),
        };
        entries.into_iter().map(text).collect()
    }

    #[test]
    fn every_caption_is_a_sample_of_its_own_image() {
        let all = captions(CaptionChoice::All, 0);
        let texts: Vec<_> = all.iter().map(|caption| caption.as_ref().map(|(_, text)| text.as_str())).collect();
        let expected =
            [Ok("一"), Ok("二"), Ok("三"), Ok("四"), Ok("五"), Ok("甲"), Err(&"empty_caption"), Err(&"missing_field")];
        assert_eq!(texts, expected);
        assert_eq!(all[1].as_ref().expect("sound").0, "ai-challenger/set/8f00.jpg#1");
    }

    #[test]
    fn defect_09_one_caption_is_drawn_by_the_seed_and_nothing_else() {
        assert_eq!(captions(CaptionChoice::One, 7), captions(CaptionChoice::One, 7));
        let drawn: std::collections::HashSet<String> =
            (0..64).map(|seed| captions(CaptionChoice::One, seed)[0].clone().expect("sound").1).collect();
        assert_eq!(drawn.len(), 5, "{drawn:?}");
    }
}
