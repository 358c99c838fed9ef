//! One self-contained HTML page: style and charts inline, nothing loaded, every text escaped.

mod chart;
mod text;

use std::fmt::{Arguments, Write as _};
use std::fs;
use std::path::Path;

pub(crate) use chart::{Bar, HistogramBin, Strip, bars, histogram, strips};
pub(crate) use text::{base64, count, escaped, percent, size};

use crate::PrepareError;
use crate::journal::{make_parent, replace_file};

const STYLE: &str = include_str!("style.css");

/// A page under construction. Texts that come from data go through [`escaped`].
pub(crate) struct Page {
    html: String,
}

impl Page {
    /// A page whose browser title is `title`.
    pub(crate) fn new(title: &str) -> Self {
        let title = escaped(title);
        let html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n"
        );
        Self { html }
    }

    /// Adds markup.
    pub(crate) fn push(&mut self, markup: Arguments<'_>) {
        self.html.write_fmt(markup).expect("a String takes any text");
    }

    /// A row of large numbers: value, what it counts.
    pub(crate) fn figures(&mut self, figures: &[(String, &str)]) {
        self.push(format_args!("<section class=\"figures\">\n"));
        for (value, name) in figures {
            self.push(format_args!(
                "<div class=\"figure\"><b>{}</b><span>{}</span></div>\n",
                escaped(value),
                escaped(name)
            ));
        }
        self.push(format_args!("</section>\n"));
    }

    /// A card with a title, a remark beside it, and markup inside.
    pub(crate) fn card(&mut self, title: &str, remark: &str, content: &str) {
        self.push(format_args!("<section class=\"card\"><h2>{}", escaped(title)));
        if !remark.is_empty() {
            self.push(format_args!("<small>{}</small>", escaped(remark)));
        }
        self.push(format_args!("</h2>\n{content}</section>\n"));
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.html.len()
    }

    /// Writes the page to `path`, whose folder is made; a page that was there is replaced once the new one is whole.
    pub(crate) fn write(mut self, path: &Path) -> Result<(), PrepareError> {
        self.html.push_str("</html>\n");
        if fs::metadata(path).is_ok_and(|data| !data.is_file()) {
            // A pipe or the screen has no page that could be lost.
            return fs::write(path, self.html).map_err(PrepareError::io("write", path));
        }
        make_parent(path)?;
        let partial = path.with_added_extension("partial");
        let written = fs::write(&partial, self.html).map_err(PrepareError::io("write", &partial));
        written.and_then(|()| replace_file(path, &partial)).inspect_err(|_| _ = fs::remove_file(&partial))
    }
}
