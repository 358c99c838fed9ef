//! What the model will see, as one HTML page: images after resize, tokens coloured by label.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vela_processor::{Processor, ProcessorOptions, codec};
use vela_shard::{Manifest, ShardError, ShardReader, Store};
use vela_types::{IGNORE_LABEL, ImageTensor, Record};

use crate::PrepareError;
use crate::build::{load_processor, open_shards, processor_folder};

/// What to show where.
#[derive(Clone, Debug)]
pub struct PreviewConfig {
    /// Folder or `file://` URL of a shard set.
    pub shards: String,
    /// Page to write.
    pub html: PathBuf,
    /// Processor that decodes the tokens; the copy inside the shard set without it.
    pub processor: Option<PathBuf>,
    /// Records to show, spread evenly over the set.
    pub num_records: u64,
}

/// What was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreviewReport {
    /// Records on the page.
    pub samples: u64,
    /// The page.
    pub html: PathBuf,
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;color:#222}\
 article{border:1px solid #ccc;border-radius:6px;padding:1em;margin:1em 0}\
 img{image-rendering:pixelated;min-width:128px;margin-right:8px;border:1px solid #ddd}\
 .t{white-space:pre-wrap}.p{background:#eee}.l{background:#bfe8c4}.i{background:#f6d28b;font-weight:600}\
 .t span{border-radius:2px;margin:0 1px;padding:0 1px}small{color:#666}";

/// Writes a page that needs nothing but itself.
pub fn write_preview(config: &PreviewConfig) -> Result<PreviewReport, PrepareError> {
    let store = open_shards("--shards", &config.shards)?;
    let manifest = load_manifest(store.as_ref(), &config.shards)?;
    let folder = config.processor.clone().unwrap_or_else(|| processor_folder(&config.shards));
    let processor = load_processor(&folder, &ProcessorOptions::default())?;
    if processor.summary().fingerprint != manifest.processor.fingerprint {
        return Err(PrepareError::Flag {
            flag: "--processor",
            expected: format!("the processor {} that made the shards", manifest.processor.fingerprint.short()),
            found: format!("{} in {}", processor.summary().fingerprint.short(), folder.display()),
        });
    }
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Shards</title><style>{STYLE}</style>\n"
    );
    write_head(&mut page, config, &manifest);
    let wanted = spread(manifest.totals.rows, config.num_records);
    let mut first = 0;
    for entry in &manifest.shards {
        let here = wanted.iter().filter(|&&row| (first..first + entry.rows).contains(&row));
        let rows: Vec<u64> = here.map(|row| row - first).collect();
        first += entry.rows;
        if rows.is_empty() {
            continue;
        }
        let reader = ShardReader::open(store.as_ref(), entry)?;
        for row in rows {
            write_record(&mut page, &reader.read(row)?, &processor)?;
        }
    }
    page.push_str("</html>\n");
    write_page(&config.html, &page)?;
    Ok(PreviewReport { samples: wanted.len() as u64, html: config.html.clone() })
}

fn load_manifest(store: &dyn Store, shards: &str) -> Result<Manifest, PrepareError> {
    Manifest::load(store).map_err(|fault| match fault {
        ShardError::MissingManifest { .. } => PrepareError::Flag {
            flag: "--shards",
            expected: "a folder with a finished shard set (`manifest.json`)".to_owned(),
            found: shards.to_owned(),
        },
        fault => fault.into(),
    })
}

fn write_page(path: &Path, page: &str) -> Result<(), PrepareError> {
    fs::write(path, page).map_err(PrepareError::io("write", path))
}

/// `num` of `rows`, evenly apart, the first included.
fn spread(rows: u64, num: u64) -> Vec<u64> {
    let num = num.min(rows);
    (0..num).map(|at| (u128::from(at) * u128::from(rows) / u128::from(num)) as u64).collect()
}

fn write_head(page: &mut String, config: &PreviewConfig, manifest: &Manifest) {
    let Manifest { totals, fingerprint, .. } = manifest;
    let text = format!("{} samples, {} images, {} tokens", totals.rows, totals.num_images, totals.num_tokens);
    let place = escaped(&config.shards);
    push(page, format_args!("<h1>{place}</h1><p>{text}<br><small>{fingerprint}</small></p>"));
    push(
        page,
        format_args!(
            "<p><span class=\"l\">trained on</span> <span class=\"p\">read only</span> <span class=\"i\">image</span></p>\n"
        ),
    );
}

fn write_record(page: &mut String, record: &Record, processor: &Processor) -> Result<(), PrepareError> {
    let (id, source) = (escaped(&record.id), escaped(&record.source));
    let (language, num_tokens) = (record.language.as_str(), record.input_ids.len());
    push(page, format_args!("<article><b>{id}</b> <small>{source}, {language}, {num_tokens} tokens</small><p>"));
    for image in &record.images {
        push(page, format_args!("<img alt=\"\" src=\"data:image/png;base64,{}\">", base64(&png(image))));
    }
    page.push_str("</p><div class=\"t\">");
    write_tokens(page, record, processor)?;
    page.push_str("</div></article>\n");
    Ok(())
}

/// One span per token, or per few where a character takes several.
fn write_tokens(page: &mut String, record: &Record, processor: &Processor) -> Result<(), PrepareError> {
    let image_token = processor.summary().image_token_id;
    let mut run: Vec<u32> = Vec::new();
    for (at, (&id, &label)) in record.input_ids.iter().zip(&record.labels).enumerate() {
        run.push(id);
        let text = processor.decode(&run, false)?;
        let next_label = record.labels.get(at + 1).map(|&label| label == IGNORE_LABEL);
        if text.ends_with(char::REPLACEMENT_CHARACTER) && next_label == Some(label == IGNORE_LABEL) {
            continue;
        }
        let class = match label {
            _ if id == image_token => "i",
            IGNORE_LABEL => "p",
            _ => "l",
        };
        push(page, format_args!("<span class=\"{class}\" title=\"{run:?}\">{}</span>", escaped(&text)));
        run.clear();
    }
    Ok(())
}

fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a String takes any text");
}

fn png(image: &ImageTensor) -> Vec<u8> {
    let (width, height) = (image.shape.width as usize, image.shape.height as usize);
    let plane = width * height;
    let pixels: Vec<u8> = (0..plane).flat_map(|at| [0, 1, 2].map(|channel| image.data[channel * plane + at])).collect();
    codec::encode_png(&pixels, width as u32, height as u32)
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for next in text.chars() {
        match next {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(next),
        }
    }
    out
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0u32, |word, &byte| (word << 8) | u32::from(byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) & 63;
            out.push(if digit <= group.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xFB, 0xFF, 0xFE]), "+//+");
    }

    #[test]
    fn markup_in_a_caption_stays_text() {
        assert_eq!(escaped("<script>\"a\" & 'b'"), "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;");
    }

    #[test]
    fn shown_records_are_spread_over_the_set() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(2, 4), [0, 1]);
        assert_eq!(spread(0, 4), Vec::<u64>::new());
    }
}
