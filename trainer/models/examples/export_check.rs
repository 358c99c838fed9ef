//! Writes models as Vela saves them, each with a batch and its logits, for `tests/golden/models/check_export.py` to open
//! in `transformers`: one fresh model per pair of families, and every joined golden checkpoint loaded and saved again.
//!
//! `cargo run -p vela-models --example export_check -- OUTPUT_DIR`

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use vela_models::{LanguageFamily, ModelBatch, ModelPreset, RopeScaling, VisionFamily, Vlm};

const PRESET: &str = "
    [vision]
    family = 'clip'
    hidden_size = 16
    intermediate_size = 24
    num_layers = 3
    num_heads = 2
    image_size = 14
    patch_size = 4
    [language]
    family = 'qwen2'
    hidden_size = 16
    intermediate_size = 24
    num_layers = 2
    num_heads = 4
    num_key_value_heads = 2
    max_positions = 128
    [init]
    std = 0.3
";

fn main() -> Result<(), Box<dyn Error>> {
    let output = PathBuf::from(std::env::args().nth(1).ok_or("usage: export_check OUTPUT_DIR")?);
    for vision in [VisionFamily::Clip, VisionFamily::ChineseClip, VisionFamily::Siglip] {
        for language in [LanguageFamily::Qwen2, LanguageFamily::Llama] {
            let model = fresh(vision, language)?;
            export(&model, &output.join(format!("fresh_{vision:?}_{language:?}")))?;
        }
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    for entry in fs::read_dir(golden)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if name.starts_with("joined_") {
            export(&Vlm::load(&path, &|_| false, &Device::Cpu)?, &output.join(name))?;
        }
    }
    Ok(())
}

fn fresh(vision: VisionFamily, language: LanguageFamily) -> Result<Vlm, Box<dyn Error>> {
    let mut preset: ModelPreset = toml::from_str(PRESET)?;
    preset.vision.family = vision;
    preset.language.family = language;
    preset.language.tie_embeddings = language == LanguageFamily::Qwen2;
    preset.language.rope_scaling = (language == LanguageFamily::Llama).then_some(RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 16,
    });
    Ok(Vlm::init(preset.config(80, 79)?, 5, &|_| false, &Device::Cpu)?)
}

fn export(model: &Vlm, dir: &Path) -> Result<(), Box<dyn Error>> {
    model.save(dir)?;
    let image_token = model.config().image_token_id;
    let image = vec![image_token; model.image_tokens()];
    let ids = [&[1, 2, 3][..], &image, &[4, 5, 6, 7, 8]].concat();
    let length = ids.len();
    let count = 3 * 14 * 14;
    let pixels: Vec<f32> = (0..count).map(|index| (index as f32 * 0.37).sin()).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, 14, 14), &Device::Cpu)?;
    let batch = ModelBatch {
        ids_BT: Tensor::from_vec(ids.clone(), (1, length), &Device::Cpu)?,
        labels: vec![-100; length],
        positions_BT: Tensor::from_vec((0..length as u32).collect(), (1, length), &Device::Cpu)?,
        documents_BT: Tensor::ones((1, length), candle_core::DType::U32, &Device::Cpu)?,
        image_rows: (0u32..).zip(&ids).filter(|(_, id)| **id == image_token).map(|(row, _)| row).collect(),
        pixels_NCHW: Some(pixels.clone()),
    };
    let tensors = HashMap::from([
        ("ids".to_owned(), batch.ids_BT.to_dtype(candle_core::DType::I64)?),
        ("pixels".to_owned(), pixels),
        ("logits".to_owned(), model.logits(&batch)?),
    ]);
    Ok(candle_core::safetensors::save(&tensors, dir.join("check.safetensors"))?)
}
