//! What is true of a scene, said and asked in two languages.
//!
//! Chinese questions are those that dialogue `rules` asks of the Chinese captions, so that what is trained through the
//! `sa1b` layout is what the held-out questions ask.

use serde::{Deserialize, Serialize};
use vela_runtime::clap;
use vela_types::Language;

use super::scene::{Colour, Object, Scene, ScenePlan, Shape};

/// What a question asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum QuestionKind {
    /// How many shapes there are.
    Count,
    /// The colour of a shape.
    Color,
    /// The shape of a colour.
    Shape,
    /// The place of a shape of a colour.
    Where,
    /// The colour and shape at a place.
    What,
}

impl QuestionKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Count, Self::Color, Self::Shape, Self::Where, Self::What];

    /// How many answers are possible and equally likely: one over it is what guessing scores.
    pub fn num_choices(self, plan: &ScenePlan) -> usize {
        match self {
            Self::Count => plan.max_shapes,
            Self::Color => plan.colours.len(),
            Self::Shape => plan.shapes.len(),
            Self::Where => plan.cells_per_side * plan.cells_per_side,
            Self::What => plan.colours.len() * plan.shapes.len(),
        }
    }
}

const ZH_NUMERALS: [&str; 9] = ["一", "两", "三", "四", "五", "六", "七", "八", "九"];
const EN_NUMERALS: [&str; 9] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

fn shape_name(shape: Shape, language: Language) -> &'static str {
    let (zh, en) = match shape {
        Shape::Circle => ("圆形", "circle"),
        Shape::Square => ("方形", "square"),
        Shape::Triangle => ("三角形", "triangle"),
        Shape::Cross => ("十字", "cross"),
        Shape::Ring => ("圆环", "ring"),
        Shape::Stripes => ("条纹", "stripes"),
    };
    if language == Language::Zh { zh } else { en }
}

fn colour_name(colour: Colour, language: Language) -> &'static str {
    let (zh, en) = match colour {
        Colour::Red => ("红色", "red"),
        Colour::Green => ("绿色", "green"),
        Colour::Blue => ("蓝色", "blue"),
        Colour::Yellow => ("黄色", "yellow"),
        Colour::Purple => ("紫色", "purple"),
        Colour::Black => ("黑色", "black"),
    };
    if language == Language::Zh { zh } else { en }
}

fn place_name(cell: usize, cells_per_side: usize, language: Language) -> &'static str {
    const ZH: [&str; 9] = ["左上角", "上方", "右上角", "左侧", "中间", "右侧", "左下角", "下方", "右下角"];
    const EN: [&str; 9] =
        ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"];
    // On a grid of two the cells are the four corners of the grid of three.
    let at = if cells_per_side == 2 { [0, 2, 6, 8][cell] } else { cell };
    if language == Language::Zh { ZH[at] } else { EN[at] }
}

fn object_name(object: &Object, language: Language) -> String {
    let (colour, shape) = (colour_name(object.colour, language), shape_name(object.shape, language));
    if language == Language::Zh { format!("{colour}的{shape}") } else { format!("{colour} {shape}") }
}

/// The Chinese dense caption of a scene: one paragraph, and one local caption per object.
pub(super) fn caption_zh(scene: &Scene, cells_per_side: usize) -> (String, Vec<String>) {
    let locals: Vec<String> = scene
        .objects
        .iter()
        .map(|object| {
            let place = place_name(object.cell, cells_per_side, Language::Zh);
            format!("{place}是{}", object_name(object, Language::Zh))
        })
        .collect();
    let count = ZH_NUMERALS[scene.objects.len() - 1];
    (format!("图片里有{count}个图形。{}。", locals.join("，")), locals)
}

/// The question of `kind` about object `at` of the scene, with its answer. `Count` ignores `at`.
pub(super) fn question(
    scene: &Scene,
    kind: QuestionKind,
    at: usize,
    cells_per_side: usize,
    language: Language,
) -> (String, String) {
    let object = &scene.objects[at];
    let (shape, colour) = (shape_name(object.shape, language), colour_name(object.colour, language));
    let (place, name) = (place_name(object.cell, cells_per_side, language), object_name(object, language));
    let num = scene.objects.len() - 1;
    let (question, answer) = match (language, kind) {
        (Language::Zh, QuestionKind::Count) => ("图片里有几个图形？".to_owned(), format!("{}个", ZH_NUMERALS[num])),
        (Language::Zh, QuestionKind::Color) => (format!("{shape}是什么颜色？"), colour.to_owned()),
        (Language::Zh, QuestionKind::Shape) => (format!("{colour}的是什么？"), shape.to_owned()),
        (Language::Zh, QuestionKind::Where) => (format!("{name}在哪里？"), place.to_owned()),
        (Language::Zh, QuestionKind::What) => (format!("{place}是什么？"), name),
        (_, QuestionKind::Count) => ("How many shapes are there?".to_owned(), EN_NUMERALS[num].to_owned()),
        (_, QuestionKind::Color) => (format!("What color is the {shape}?"), colour.to_owned()),
        (_, QuestionKind::Shape) => (format!("Which shape is {colour}?"), shape.to_owned()),
        (_, QuestionKind::Where) => (format!("Where is the {name}?"), place.to_owned()),
        (_, QuestionKind::What) => (format!("What is at the {place}?"), name),
    };
    (question, answer)
}
