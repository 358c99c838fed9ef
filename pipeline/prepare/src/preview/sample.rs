//! One sample of the page.

use std::fmt::Write as _;

use vela_processor::Processor;
use vela_types::{IGNORE_LABEL, Record, Role, Turn};

use super::dialogue::Frames;
use super::thumbnail::thumbnail;
use crate::PrepareError;
use crate::page::{Page, count, escaped};

/// Images of a sample that are drawn; the others are counted.
const MAX_IMAGES: usize = 12;
/// Tokens of a sample that are shown one by one.
const MAX_TOKENS: usize = 4096;

/// What every sample of a page is shown with.
pub(super) struct SampleWriter<'a> {
    pub(super) processor: &'a Processor,
    pub(super) frames: &'a Frames,
    pub(super) tokens_per_image: Option<u32>,
}

impl SampleWriter<'_> {
    pub(super) fn write(&self, page: &mut Page, record: &Record) -> Result<(), PrepareError> {
        let turns = self.frames.turns(record, self.processor)?;
        let textual = if record.images.is_empty() { " textual" } else { "" };
        page.push(format_args!(
            "<article class=\"card sample\">\n{}<div class=\"body{textual}\">\n",
            self.head(record)
        ));
        if !record.images.is_empty() {
            page.push(format_args!("{}", images(record)));
        }
        page.push(format_args!("<div>\n{}</div></div>\n", self.bubbles(&turns)?));
        page.push(format_args!(
            "<details open><summary>tokens</summary><div class=\"tokens\">{}</div></details>\n",
            self.tokens(record)?
        ));
        let prompt = self.processor.decode(&record.input_ids, false)?;
        page.push(format_args!(
            "<details><summary>the exact text behind them</summary><pre class=\"prompt mono\">{}</pre></details>\n\
             </article>\n",
            escaped(&prompt)
        ));
        Ok(())
    }

    fn head(&self, record: &Record) -> String {
        let lengths = record.lengths();
        let tokens = match self.tokens_per_image {
            Some(per_image) if lengths.num_images > 0 => {
                let expanded =
                    u64::from(lengths.num_tokens) + u64::from(lengths.num_images) * (u64::from(per_image) - 1);
                format!("{} tokens, {} with images expanded", count(lengths.num_tokens.into()), count(expanded))
            }
            _ => format!("{} tokens", count(lengths.num_tokens.into())),
        };
        let images = match lengths.num_images {
            0 => "text only".to_owned(),
            1 => "1 image".to_owned(),
            images => format!("{images} images"),
        };
        let chips = [
            record.source.clone(),
            record.language.as_str().to_owned(),
            images,
            tokens,
            format!("{} learned", count(lengths.num_label_tokens.into())),
        ];
        let chips = chips.map(|chip| format!("<span class=\"chip\">{}</span>", escaped(&chip))).concat();
        format!("<div class=\"head\"><h2>{}</h2>{chips}</div>\n", escaped(&record.id))
    }

    fn bubbles(&self, turns: &[Turn]) -> Result<String, PrepareError> {
        let mark = self.processor.decode(&[self.processor.summary().image_token_id], false)?;
        let mut html = String::new();
        let mut num_images = 0;
        for Turn { role, text } in turns {
            let mut shown = String::new();
            for (at, part) in text.split(mark.as_str()).enumerate() {
                if at > 0 && *role != Role::Assistant {
                    num_images += 1;
                    shown.push_str(&self.badge(num_images));
                }
                shown.push_str(&escaped(part));
            }
            push(&mut html, format_args!("<div class=\"turn {}\">{shown}</div>\n", role.as_str()));
        }
        Ok(html)
    }

    /// Stands for the run of tokens that the tower puts in the place of image `number`, from 1.
    fn badge(&self, number: usize) -> String {
        let run = self.tokens_per_image.map_or(String::new(), |tokens| format!(" × {tokens}"));
        format!("<span class=\"run\">image {number}{run}</span>")
    }

    /// One span per token, or per few where a character takes several.
    fn tokens(&self, record: &Record) -> Result<String, PrepareError> {
        let summary = self.processor.summary();
        let mut html = String::new();
        let mut run: Vec<u32> = Vec::new();
        let mut num_images = 0;
        let is_read = |at: usize| record.labels.get(at).map(|&label| label == IGNORE_LABEL);
        for (at, &id) in record.input_ids.iter().enumerate().take(MAX_TOKENS) {
            run.push(id);
            let text = self.processor.decode(&run, false)?;
            if text.ends_with(char::REPLACEMENT_CHARACTER) && is_read(at + 1) == is_read(at) {
                continue;
            }
            let class = match is_read(at) {
                _ if id == summary.image_token_id => "i",
                Some(true) => "p",
                _ if id == summary.end_of_turn_id => "e",
                _ => "l",
            };
            let shown = match class {
                "i" => {
                    num_images += 1;
                    self.tokens_per_image.map_or(format!("image {num_images}"), |n| format!("image {num_images} × {n}"))
                }
                _ => visible(&text),
            };
            push(&mut html, format_args!("<span class=\"{class}\" title=\"{run:?}\">{shown}</span>"));
            run.clear();
        }
        if record.input_ids.len() > MAX_TOKENS {
            let more = count((record.input_ids.len() - MAX_TOKENS) as u64);
            push(&mut html, format_args!(" <em class=\"soft\">and {more} more</em>"));
        }
        Ok(html)
    }
}

/// Line ends drawn and kept.
fn visible(text: &str) -> String {
    escaped(text).replace('\n', "<u>↵</u>\n")
}

fn images(record: &Record) -> String {
    let several = if record.images.len() > 1 { " several" } else { "" };
    let mut html = format!("<div class=\"images{several}\">\n");
    for (at, image) in record.images.iter().take(MAX_IMAGES).enumerate() {
        let thumbnail = thumbnail(image);
        let class = if thumbnail.is_small { " class=\"small\"" } else { "" };
        push(
            &mut html,
            format_args!(
                "<figure><img{class} alt=\"image {}\" src=\"{}\"><figcaption>image {} · {}</figcaption></figure>\n",
                at + 1,
                thumbnail.url,
                at + 1,
                image.hash.short()
            ),
        );
    }
    if record.images.len() > MAX_IMAGES {
        push(&mut html, format_args!("<p class=\"soft\">and {} more</p>\n", record.images.len() - MAX_IMAGES));
    }
    html.push_str("</div>\n");
    html
}

fn push(out: &mut String, markup: std::fmt::Arguments<'_>) {
    out.write_fmt(markup).expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_seen_and_markup_stays_text() {
        assert_eq!(visible("<b>\n"), "&lt;b&gt;<u>↵</u>\n");
    }
}
