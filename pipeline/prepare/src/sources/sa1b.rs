//! The two SA1B caption sets. SA1B-Dense-Caption: Parquet with `url` and `cap_seg`, the `repr` of a Python dict with
//! `global_caption` (text) and `local_caption` (text or list of texts). SA1B-Paired-Captions-Images: Parquet with
//! `opensource_url` and `global_caption`.

use super::fields::Place;
use super::table_file::{Row, TableFormat};
use super::{Fault, RawCaption, RawContent};
use crate::python_literal::{self, Literal};

/// SA1B-Dense-Caption.
pub(super) struct DenseCaptions;

impl TableFormat for DenseCaptions {
    const SOURCE: &'static str = "sa1b";

    fn required(&self) -> Vec<&str> {
        vec!["url", "cap_seg"]
    }

    fn image_columns(&self) -> Vec<&str> {
        vec!["url"]
    }

    fn content(&self, row: &Row<'_>, place: &Place<'_>) -> Result<RawContent, Fault> {
        let url = row.text("url")?;
        let (global, locals) = parse_captions(&row.text("cap_seg")?)?;
        caption(Self::SOURCE, place, &url, global, locals)
    }
}

/// SA1B-Paired-Captions-Images.
pub(super) struct PairedCaptions;

impl TableFormat for PairedCaptions {
    const SOURCE: &'static str = "sa1b-paired";

    fn required(&self) -> Vec<&str> {
        vec!["opensource_url", "global_caption"]
    }

    fn image_columns(&self) -> Vec<&str> {
        vec!["opensource_url"]
    }

    fn content(&self, row: &Row<'_>, place: &Place<'_>) -> Result<RawContent, Fault> {
        let url = row.text("opensource_url")?;
        let global = row.text("global_caption")?.trim().to_owned();
        if global.is_empty() {
            return Err(Fault::new("empty_caption", "column `global_caption` holds no text"));
        }
        caption(Self::SOURCE, place, &url, global, vec![])
    }
}

fn caption(
    source: &'static str,
    place: &Place<'_>,
    url: &str,
    global: String,
    locals: Vec<String>,
) -> Result<RawContent, Fault> {
    let image = place.images.resolve(url, place.folder)?;
    Ok(RawContent::Caption(RawCaption { id: place.id.to_owned(), source, image, global, locals, prompts: &[] }))
}

/// The global caption and the local ones of a `cap_seg` cell. JSON is taken where the text starts like a JSON object.
fn parse_captions(cell: &str) -> Result<(String, Vec<String>), Fault> {
    let broken = |detail: String| Fault::new("broken_cap_seg", detail);
    let literal = match python_literal::parse(cell) {
        Ok(literal) => literal,
        Err(fault) => json_literal(cell).ok_or_else(|| broken(format!("column `cap_seg`: {fault}")))?,
    };
    if !matches!(literal, Literal::Dict(_)) {
        return Err(broken("column `cap_seg`: expected a dict".to_owned()));
    }
    let global = match literal.get("global_caption") {
        Some(Literal::Text(text)) => text.trim().to_owned(),
        None | Some(Literal::None) => String::new(),
        Some(_) => return Err(broken("column `cap_seg`, key `global_caption`: expected a text".to_owned())),
    };
    if global.is_empty() {
        return Err(Fault::new("empty_caption", "column `cap_seg`: `global_caption` holds no text"));
    }
    let locals = match literal.get("local_caption") {
        Some(Literal::Text(text)) => vec![text.as_str()],
        Some(Literal::List(items)) => items
            .iter()
            .filter(|item| **item != Literal::None)
            .map(|item| {
                item.as_str().ok_or_else(|| broken("column `cap_seg`, key `local_caption`: expected texts".into()))
            })
            .collect::<Result<_, _>>()?,
        None | Some(Literal::None) => vec![],
        Some(_) => return Err(broken("column `cap_seg`, key `local_caption`: expected a list or a text".to_owned())),
    };
    let locals = locals.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).map(str::to_owned).collect();
    Ok((global, locals))
}

fn json_literal(text: &str) -> Option<Literal> {
    serde_json::from_str::<serde_json::Value>(text).ok().map(from_json)
}

fn from_json(value: serde_json::Value) -> Literal {
    match value {
        serde_json::Value::Null => Literal::None,
        serde_json::Value::Bool(value) => Literal::Bool(value),
        serde_json::Value::Number(value) => match value.as_i64() {
            Some(value) => Literal::Int(value),
            None => Literal::Float(value.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Literal::Text(text),
        serde_json::Value::Array(items) => Literal::List(items.into_iter().map(from_json).collect()),
        serde_json::Value::Object(items) => {
            Literal::Dict(items.into_iter().map(|(key, value)| (Literal::Text(key), from_json(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_read_from_python_and_from_json() {
        let expected = ("一只猫说'喵'。".to_owned(), vec!["一只猫".to_owned(), "草地".to_owned()]);
        let python =
            r#"{'global_caption': " 一只猫说'喵'。\n", 'local_caption': ['一只猫', None, ' ', '草地'], 'n': 1}"#;
        assert_eq!(parse_captions(python), Ok(expected.clone()));
        let json = r#"{"global_caption": "一只猫说'喵'。", "local_caption": ["一只猫", null, "草地"], "x": true}"#;
        assert_eq!(parse_captions(json), Ok(expected));
        let text = r"{'global_caption': '全景', 'local_caption': '一段'}";
        assert_eq!(parse_captions(text), Ok(("全景".into(), vec!["一段".into()])));
        assert_eq!(parse_captions("{'global_caption': '全景'}"), Ok(("全景".into(), vec![])));
    }

    #[test]
    fn broken_and_empty_cells_have_their_causes() {
        let broken = [
            "",
            "{'global_caption': '全",
            "['a']",
            "{'global_caption': 1}",
            "{'global_caption': 'a', 'local_caption': 3}",
        ];
        for cell in broken {
            assert_eq!(parse_captions(cell).expect_err(cell).cause, "broken_cap_seg", "{cell}");
        }
        for cell in ["{}", "{'global_caption': ' \\n'}", "{'global_caption': None}", r#"{"global_caption": null}"#] {
            assert_eq!(parse_captions(cell).expect_err(cell).cause, "empty_caption", "{cell}");
        }
    }
}
