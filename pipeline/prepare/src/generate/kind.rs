//! The three kinds of dialogue, and what each shows the model of an image.

use serde::{Deserialize, Serialize};
use vela_runtime::clap;

use super::facts::ImageFacts;

/// What is asked of the model for each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum GenerateKind {
    /// A talk of several turns about what can be seen, from captions alone.
    Conversation,
    /// One long description, from captions and boxes; its question is drawn from a list.
    Detail,
    /// A question that needs thought, and its answer, from captions and boxes.
    Complex,
}

impl GenerateKind {
    /// The name in flags and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conversation => "conversation",
            Self::Detail => "detail",
            Self::Complex => "complex",
        }
    }

    /// Whether the model is told where objects are.
    pub const fn shows_boxes(self) -> bool {
        !matches!(self, Self::Conversation)
    }

    /// Questions with answers that a dialogue has at least.
    pub const fn min_pairs(self) -> usize {
        match self {
            Self::Conversation => 2,
            Self::Detail | Self::Complex => 1,
        }
    }

    /// An image in words: a caption per line, then, where boxes are shown and there are any, a blank line and
    /// `category: [x1, y1, x2, y2]` per object, corners with at most three decimals.
    pub fn context(self, facts: &ImageFacts) -> String {
        let mut text = facts.captions.join("\n");
        if self.shows_boxes() && !facts.boxes.is_empty() {
            text.push('\n');
            for object in &facts.boxes {
                let corners = object.corners.map(three_decimals).join(", ");
                text.push_str(&format!("\n{}: [{corners}]", object.category));
            }
        }
        text
    }
}

/// As Python writes `round(x, 3)`: the shortest form, with at least one decimal.
fn three_decimals(share: f64) -> String {
    let text = format!("{share:.3}");
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::LabelledBox;

    #[test]
    fn numbers_are_written_as_python_rounds_them() {
        let cases = [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (0.63, "0.63"),
            (0.5, "0.5"),
            (0.0625, "0.062"),
            (0.3125, "0.312"),
            (0.9996, "1.0"),
        ];
        for (share, text) in cases {
            assert_eq!(three_decimals(share), text);
        }
    }

    #[test]
    fn boxes_are_shown_after_a_blank_line_and_only_where_they_are_wanted() {
        let facts = ImageFacts {
            id: "1".into(),
            image: "1.jpg".into(),
            captions: vec!["A cat.".into(), "A grey cat.".into()],
            boxes: vec![LabelledBox { category: "cat".into(), corners: [0.1, 0.25, 1.0 / 3.0, 1.0] }],
        };
        assert_eq!(GenerateKind::Conversation.context(&facts), "A cat.\nA grey cat.");
        let with_boxes = "A cat.\nA grey cat.\n\ncat: [0.1, 0.25, 0.333, 1.0]";
        assert_eq!(GenerateKind::Detail.context(&facts), with_boxes);
        assert_eq!(GenerateKind::Complex.context(&facts), with_boxes);
        let bare = ImageFacts { boxes: vec![], ..facts };
        assert_eq!(GenerateKind::Complex.context(&bare), "A cat.\nA grey cat.");
    }
}
