//! A small bilingual data set in the exact raw layouts of `sa1b` and `llava`, with held-out questions and a processor.

mod render;
mod scene;
mod text;
mod write;

use std::path::PathBuf;

use serde::Serialize;

pub use scene::{Colour, Object, Scene, ScenePlan, Shape, Split};
pub use text::QuestionKind;
pub use write::write_demo_data;

/// What demo data looks like and how much of it there is.
#[derive(Clone, Debug)]
pub struct DemoDataConfig {
    /// Folder to fill; made if absent, left alone if it holds this data set, refused if it holds anything else.
    pub output: PathBuf,
    /// Seed of every scene.
    pub seed: u64,
    /// Training images per language.
    pub num_train: usize,
    /// Held-out images per language; each is asked one question of each kind.
    pub num_heldout: usize,
    /// Pixels per side.
    pub image_size: usize,
    /// Cells per side of the grid, 2 or 3.
    pub cells_per_side: usize,
    /// Most shapes in a scene.
    pub max_shapes: usize,
    /// Largest shift of a shape from the middle of its cell, in cells.
    pub jitter: f64,
    /// Shapes in use.
    pub shapes: Vec<Shape>,
    /// Colours in use.
    pub colours: Vec<Colour>,
    /// Questions asked in English and of held-out images.
    pub kinds: Vec<QuestionKind>,
    /// Most questions about one training image, drawn from those about its objects and the count; all without it.
    pub questions_per_image: Option<usize>,
    /// Size of the tokenizer, special tokens included.
    pub vocab_size: usize,
}

impl DemoDataConfig {
    /// The demo's own scenes: 32 x 32 pixels, four corners, one to three of four shapes in six colours.
    pub fn new(output: impl Into<PathBuf>) -> Self {
        Self {
            output: output.into(),
            seed: 0,
            num_train: 4000,
            num_heldout: 100,
            image_size: 32,
            cells_per_side: 2,
            max_shapes: 3,
            jitter: 0.04,
            shapes: vec![Shape::Circle, Shape::Square, Shape::Triangle, Shape::Cross],
            colours: Colour::ALL.to_vec(),
            kinds: QuestionKind::ALL.to_vec(),
            questions_per_image: None,
            vocab_size: 448,
        }
    }

    /// What scenes are drawn from.
    pub fn scene_plan(&self) -> ScenePlan {
        ScenePlan {
            cells_per_side: self.cells_per_side,
            max_shapes: self.max_shapes,
            shapes: self.shapes.clone(),
            colours: self.colours.clone(),
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DemoDataReport {
    /// `sa1b` folder: `data/*.parquet`.
    pub sa1b: PathBuf,
    /// Photos of the `sa1b` rows, for `--images`.
    pub sa1b_images: PathBuf,
    /// `llava` file.
    pub llava: PathBuf,
    /// Held-out questions per language: `zh.jsonl`, `en.jsonl`; image names are relative to this folder.
    pub heldout: PathBuf,
    /// Processor folder.
    pub processor: PathBuf,
    /// Training records of both layouts.
    pub samples: usize,
    /// Held-out questions in both languages.
    pub questions: usize,
}

/// One held-out question: a line of `heldout/{zh,en}.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutQuestion {
    /// Image file relative to the `heldout` folder.
    pub image: String,
    /// Language of the question.
    pub language: vela_types::Language,
    /// Asked as one user turn.
    pub question: String,
    /// The one right answer.
    pub answer: String,
    /// What it asks for.
    pub kind: QuestionKind,
    /// Equally likely answers; one over it is what guessing scores.
    pub num_choices: usize,
}
