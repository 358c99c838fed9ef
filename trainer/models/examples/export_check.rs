//! Writes models as Vela saves and exports them, each with a batch, its logits and a greedy answer, for
//! `tests/golden/models/check_export.py` to open in `transformers` and PEFT: one fresh model per pair of families,
//! adapters alone and merged, and every joined golden checkpoint loaded and saved again.
//!
//! `cargo run -p vela-models --example export_check -- OUTPUT_DIR`

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use vela_models::{
    Export, GenerateOptions, LanguageFamily, LoraConfig, ModelBatch, ModelPreset, ProjectorKind, RopeScaling,
    VisionFamily, Vlm,
};

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
        for language in [LanguageFamily::Qwen2, LanguageFamily::Llama, LanguageFamily::Qwen3, LanguageFamily::Qwen] {
            let model = fresh(vision, language, &[])?;
            export(&model, &output.join(format!("fresh_{vision:?}_{language:?}")), None)?;
        }
    }
    export_adapters(&output)?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    for entry in fs::read_dir(golden)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if name.starts_with("joined_") {
            let model = Vlm::load(&path, &|_| false, &Device::Cpu)?;
            let dir = output.join(name);
            model.save(&dir)?;
            write_check(&model, &dir)?;
        }
    }
    Ok(())
}

/// Adapters of each family: alone beside their base, and merged.
fn export_adapters(output: &Path) -> Result<(), Box<dyn Error>> {
    let linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    for (language, targets) in [
        (LanguageFamily::Qwen2, &linears[..]),
        (LanguageFamily::Llama, &["q_proj", "v_proj"]),
        (LanguageFamily::Qwen3, &linears),
        (LanguageFamily::Qwen, &["c_attn", "w1", "w2"]),
    ] {
        let mut model = fresh(VisionFamily::Clip, language, targets)?;
        let second: Vec<String> =
            model.params().iter().map(|param| param.0.to_owned()).filter(|name| name.contains("lora_B")).collect();
        for (index, name) in second.iter().enumerate() {
            let shape = model.params().get(name)?.tensor().shape().clone();
            let wave = (0..shape.elem_count()).map(|at| ((at + 3 * index) as f32 * 0.7).sin() * 0.2);
            model.params_mut().set(name, &Tensor::from_vec(wave.collect(), shape, &Device::Cpu)?)?;
        }
        let dir = output.join(format!("adapter_{language:?}"));
        export(&model, &output.join(format!("merged_{language:?}")), None)?;
        export(&fresh(VisionFamily::Clip, language, &[])?, &dir, Some(&model))?;
    }
    Ok(())
}

fn fresh(vision: VisionFamily, language: LanguageFamily, targets: &[&str]) -> Result<Vlm, Box<dyn Error>> {
    let mut preset: ModelPreset = toml::from_str(PRESET)?;
    preset.vision.family = vision;
    preset.language.family = language;
    preset.language.tie_embeddings = language == LanguageFamily::Qwen2;
    if language == LanguageFamily::Qwen {
        preset.language.num_key_value_heads = None;
        preset.projector.kind = ProjectorKind::Linear;
    }
    preset.language.rope_scaling = (language == LanguageFamily::Llama).then_some(RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 16,
    });
    let mut config = preset.config(80, 79)?;
    let targets: Vec<String> = targets.iter().map(|target| (*target).to_owned()).collect();
    config.language.lora = (!targets.is_empty()).then_some(LoraConfig { rank: 3, alpha: 6.0, targets, dropout: 0.0 });
    Ok(Vlm::init(config, 5, &|name| name.contains("lora_"), &Device::Cpu)?)
}

/// Exports `model`, and what `adapted` adds to it into the folder `adapter` beside it; the batch is answered by the
/// latter.
fn export(model: &Vlm, dir: &Path, adapted: Option<&Vlm>) -> Result<(), Box<dyn Error>> {
    let own = dir.with_extension("own");
    model.save(&own)?;
    fs::create_dir_all(dir)?;
    Export { model: &own, dtype: None, max_shard_bytes: None }.write(dir, &|| false)?;
    if let Some(adapted) = adapted {
        adapted.save(&own)?;
        let adapter = dir.join("adapter");
        fs::create_dir_all(&adapter)?;
        Export { model: &own, dtype: None, max_shard_bytes: None }.write_adapter(&adapter, &|| false)?;
    }
    fs::remove_dir_all(&own)?;
    write_check(adapted.unwrap_or(model), dir)
}

/// A batch with the model's logits and its greedy answer to the batch as a prompt.
fn write_check(model: &Vlm, dir: &Path) -> Result<(), Box<dyn Error>> {
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
    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let answer = model.generate(&ids, Some(&pixels), &options)?;
    let tensors = HashMap::from([
        ("ids".to_owned(), batch.ids_BT.to_dtype(candle_core::DType::I64)?),
        ("pixels".to_owned(), pixels),
        ("logits".to_owned(), model.logits(&batch)?),
        ("answer".to_owned(), Tensor::new(answer, &Device::Cpu)?.to_dtype(candle_core::DType::I64)?),
    ]);
    Ok(candle_core::safetensors::save(&tensors, dir.join("check.safetensors"))?)
}
