//! Writes the layouts.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use polars::prelude::{Column, DataFrame, ParquetWriter};
use serde_json::json;
use vela_processor::{codec, train_tokenizer};
use vela_types::{Fingerprint, IMAGE_MARK, ImageRef, Language, SeedStream};

use super::render::{BACKGROUND, render};
use super::scene::{Scene, Split, choose_distinct};
use super::text::{self, QuestionKind};
use super::{DemoDataConfig, DemoDataReport, HeldOutQuestion};
use crate::PrepareError;
use crate::dialogue::{DialogueConfig, DialogueMode, to_sample};
use crate::python_literal::{Literal, to_repr};
use crate::sources::{RawCaption, RawContent};

/// The settings of a finished data set, written last.
const SETTINGS: &str = "settings.txt";
/// High, so that colours survive the chroma subsampling of small pictures.
const JPEG_QUALITY: u8 = 95;

/// Renders the data set of `config`; the same config gives the same bytes. A folder that holds it already is left as it is.
pub fn write_demo_data(config: &DemoDataConfig) -> Result<DemoDataReport, PrepareError> {
    check(config)?;
    let root = &config.output;
    let report = DemoDataReport {
        sa1b: root.join("sa1b/data"),
        sa1b_images: root.join("sa1b/images"),
        llava: root.join("llava/demo_instruct.json"),
        heldout: root.join("heldout"),
        processor: root.join("processor"),
        samples: 2 * config.num_train,
        questions: 2 * config.num_heldout * config.kinds.len(),
    };
    if is_finished(config) {
        return Ok(report);
    }
    check_unused(&config.output)?;
    let mut texts = write_sa1b(config, &report)?;
    texts.extend(write_llava(config, &report)?);
    for language in [Language::Zh, Language::En] {
        texts.extend(write_heldout(config, &report, language)?);
    }
    write_processor(config, &report, &texts)?;
    write_file(&root.join(SETTINGS), settings(config).as_bytes())?;
    Ok(report)
}

/// Everything that the bytes depend on.
fn settings(config: &DemoDataConfig) -> String {
    format!("{:#?}\n", DemoDataConfig { output: PathBuf::new(), ..config.clone() })
}

fn is_finished(config: &DemoDataConfig) -> bool {
    fs::read(config.output.join(SETTINGS)).is_ok_and(|found| found == settings(config).as_bytes())
}

fn check_unused(folder: &Path) -> Result<(), PrepareError> {
    match fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        false => Ok(()),
        true => Err(PrepareError::OutputInUse {
            path: folder.to_owned(),
            expected: "an empty folder, none, or the whole data set of these settings".to_owned(),
            found: "other files".to_owned(),
        }),
    }
}

fn check(config: &DemoDataConfig) -> Result<(), PrepareError> {
    let wrong =
        |flag, expected: &str, found: String| Err(PrepareError::Flag { flag, expected: expected.to_owned(), found });
    if !matches!(config.cells_per_side, 2 | 3) {
        return wrong("--cells", "2 or 3", config.cells_per_side.to_string());
    }
    let most = config.shapes.len().min(config.colours.len()).min(config.cells_per_side.pow(2));
    if !(1..=most).contains(&config.max_shapes) {
        return wrong("--max-shapes", &format!("1 to {most}"), config.max_shapes.to_string());
    }
    if config.num_train == 0
        || config.num_heldout == 0
        || config.kinds.is_empty()
        || config.questions_per_image == Some(0)
    {
        return wrong("--samples", "at least one image and one question about it", "none".to_owned());
    }
    Ok(())
}

/// A drawn scene with its picture.
struct Drawn {
    scene: Scene,
    pixels: Vec<u8>,
    draw: SeedStream,
}

fn draw_scene(config: &DemoDataConfig, split: Split, key: &str) -> Drawn {
    let mut draw = SeedStream::named(config.seed, "demo scene", key);
    let scene = config.scene_plan().draw(&mut draw, split);
    let pixels = render(&scene, config.image_size, config.cells_per_side, config.jitter, &mut draw);
    Drawn { scene, pixels, draw }
}

fn write_sa1b(config: &DemoDataConfig, report: &DemoDataReport) -> Result<Vec<String>, PrepareError> {
    make_folder(&report.sa1b)?;
    make_folder(&report.sa1b_images)?;
    let (mut urls, mut cells, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..config.num_train {
        let drawn = draw_scene(config, Split::Train, &format!("zh/{index}"));
        let name = format!("sa_{index:06}.jpg");
        let side = config.image_size as u32;
        let jpeg = codec::encode_jpeg(&drawn.pixels, side, side, JPEG_QUALITY);
        write_file(&report.sa1b_images.join(&name), &jpeg)?;
        let (global, locals) = text::caption_zh(&drawn.scene, config.cells_per_side);
        let pair = |key: &str, value| (Literal::Text(key.to_owned()), value);
        texts.extend(dialogue_texts(&global, &locals, index));
        let locals_literal = Literal::List(locals.into_iter().map(Literal::Text).collect());
        let captions =
            Literal::Dict(vec![pair("global_caption", Literal::Text(global)), pair("local_caption", locals_literal)]);
        urls.push(format!("https://images.invalid/sa1b/{name}"));
        cells.push(to_repr(&captions));
    }
    let hash = Fingerprint(*blake3::hash(cells.concat().as_bytes()).as_bytes()).to_string();
    let path = report.sa1b.join(format!("train-0000-of-0001-{}.parquet", &hash[..16]));
    let columns = vec![Column::new("url".into(), urls), Column::new("cap_seg".into(), cells)];
    let mut frame = DataFrame::new_infer_height(columns).map_err(PrepareError::parquet(&path))?;
    let file = File::create(&path).map_err(PrepareError::io("create", &path))?;
    ParquetWriter::new(file).finish(&mut frame).map_err(PrepareError::parquet(&path))?;
    Ok(texts)
}

/// What dialogue `rules` makes of a caption, for the tokenizer to learn from.
fn dialogue_texts(global: &str, locals: &[String], index: usize) -> Vec<String> {
    let caption = RawCaption {
        id: format!("demo/{index}"),
        source: "sa1b",
        image: ImageRef::Path(String::new()),
        global: global.to_owned(),
        locals: locals.to_vec(),
        prompts: &[],
    };
    let dialogue = DialogueConfig { short_answers: true, ..DialogueMode::Rules.into() };
    let sample = to_sample(RawContent::Caption(caption), dialogue, 0);
    sample.turns.into_iter().map(|turn| turn.text).collect()
}

fn write_llava(config: &DemoDataConfig, report: &DemoDataReport) -> Result<Vec<String>, PrepareError> {
    let folder = report.llava.parent().expect("the report names a file in a folder");
    make_folder(&folder.join("images"))?;
    let (mut records, mut texts) = (Vec::new(), Vec::new());
    for index in 0..config.num_train {
        let mut drawn = draw_scene(config, Split::Train, &format!("en/{index}"));
        let image = format!("images/en_{index:06}.png");
        write_png(config, &folder.join(&image), &drawn)?;
        let pairs = dialogue_en(config, &mut drawn);
        let mut conversations = Vec::new();
        for (at, (question, answer)) in pairs.into_iter().enumerate() {
            let mark = if at == 0 { format!("{IMAGE_MARK}\n") } else { String::new() };
            conversations.push(json!({"from": "human", "value": format!("{mark}{question}")}));
            conversations.push(json!({"from": "gpt", "value": answer}));
            texts.extend([question, answer]);
        }
        records.push(json!({"id": format!("demo_{index:06}"), "image": image, "conversations": conversations}));
    }
    let bytes = serde_json::to_vec_pretty(&records).expect("values made here are JSON");
    write_file(&report.llava, &bytes)?;
    Ok(texts)
}

/// One question per object, of a drawn kind, and the count, in a drawn order: no turn gives another's answer away.
fn dialogue_en(config: &DemoDataConfig, drawn: &mut Drawn) -> Vec<(String, String)> {
    let about_object: Vec<QuestionKind> =
        config.kinds.iter().copied().filter(|kind| *kind != QuestionKind::Count).collect();
    let mut asked: Vec<(QuestionKind, usize)> = Vec::new();
    if config.kinds.contains(&QuestionKind::Count) {
        asked.push((QuestionKind::Count, 0));
    }
    if !about_object.is_empty() {
        asked.extend((0..drawn.scene.objects.len()).map(|at| (*drawn.draw.choose(&about_object), at)));
    }
    let num_asked = config.questions_per_image.unwrap_or(usize::MAX).min(asked.len());
    let asked = choose_distinct(&asked, num_asked, &mut drawn.draw);
    let ask = |(kind, at)| text::question(&drawn.scene, kind, at, config.cells_per_side, Language::En);
    asked.into_iter().map(ask).collect()
}

fn write_heldout(
    config: &DemoDataConfig,
    report: &DemoDataReport,
    language: Language,
) -> Result<Vec<String>, PrepareError> {
    make_folder(&report.heldout.join("images"))?;
    let path = report.heldout.join(format!("{}.jsonl", language.as_str()));
    let mut lines = BufWriter::new(File::create(&path).map_err(PrepareError::io("create", &path))?);
    let mut texts = Vec::new();
    for index in 0..config.num_heldout {
        let mut drawn = draw_scene(config, Split::HeldOut, &format!("heldout/{}/{index}", language.as_str()));
        let image = format!("images/{}_{index:04}.png", language.as_str());
        write_png(config, &report.heldout.join(&image), &drawn)?;
        for &kind in &config.kinds {
            let at = drawn.draw.below(drawn.scene.objects.len() as u64) as usize;
            let (question, answer) = text::question(&drawn.scene, kind, at, config.cells_per_side, language);
            texts.extend([question.clone(), answer.clone()]);
            let num_choices = kind.num_choices(&config.scene_plan());
            let row = HeldOutQuestion { image: image.clone(), language, question, answer, kind, num_choices };
            let line = serde_json::to_string(&row).expect("values made here are JSON");
            writeln!(lines, "{line}").map_err(PrepareError::io("write", &path))?;
        }
    }
    lines.flush().map_err(PrepareError::io("write", &path))?;
    Ok(texts)
}

fn write_processor(config: &DemoDataConfig, report: &DemoDataReport, texts: &[String]) -> Result<(), PrepareError> {
    make_folder(&report.processor)?;
    let prompts = crate::CAPTION_PROMPTS_ZH.iter().chain(&crate::CAPTION_PROMPTS_EN).copied();
    let texts: Vec<&str> = texts.iter().map(String::as_str).chain(prompts).collect();
    for (name, content) in train_tokenizer(&texts, config.vocab_size)? {
        write_file(&report.processor.join(name), content.as_bytes())?;
    }
    let side = config.image_size;
    // The background becomes 0, so that only shapes are seen.
    let settings = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": side, "width": side},
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": BACKGROUND.map(|value| f64::from(value) / 255.0), "image_std": [0.25, 0.25, 0.25],
    });
    let content = serde_json::to_vec_pretty(&settings).expect("values made here are JSON");
    write_file(&report.processor.join("preprocessor_config.json"), &content)
}

fn write_png(config: &DemoDataConfig, path: &Path, drawn: &Drawn) -> Result<(), PrepareError> {
    let side = config.image_size as u32;
    write_file(path, &codec::encode_png(&drawn.pixels, side, side))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), PrepareError> {
    fs::write(path, bytes).map_err(PrepareError::io("write", path))
}

fn make_folder(path: &Path) -> Result<(), PrepareError> {
    fs::create_dir_all(path).map_err(PrepareError::io("create", path))
}
