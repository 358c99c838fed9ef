//! A Vela folder as `transformers` opens it: `LlavaForConditionalGeneration`, or an adapter for one in PEFT's layout.
//!
//! Some models say the same in another form there: the first Qwen is written as Qwen2 (its fused linear cut in three),
//! a single linear as two without an activation between, the second the identity. What has no form there is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::config::{Activation, LanguageFamily, LoraConfig, ProjectorKind};
use crate::language::linear_names;
use crate::layers::{LORA_A, LORA_B, is_adapter};
use crate::projector::PROJECTOR_PREFIX;
use crate::qwen_names::{self, Qwen2Name, qwen2_name};
use crate::vlm::specs;
use crate::weights::{
    Files, Fresh, Layout, Origin, Outgoing, Piece, WeightDtype, check_stop, made, shared_dtype, until, write_folder,
    write_tensors,
};
use crate::{ModelError, VlmConfig};

const ADAPTER_FILE: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// What PEFT puts before the names of the model that it wraps, and that model before its parts.
const PEFT_PREFIX: &str = "base_model.model.model.";

/// What is exported.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// A model folder as Vela saves it.
    pub model: &'a Path,
    /// Element type of what is written; each tensor's own by default.
    pub dtype: Option<WeightDtype>,
    /// Bytes of a weight file at most; a whole model with more is written as shards with an index.
    pub max_shard_bytes: Option<u64>,
}

type Views<'data> = BTreeMap<String, TensorView<'data>>;

impl Export<'_> {
    /// Writes the whole model into `output`, an existing folder; adapters are merged into the weights they adapt. The
    /// file is mapped and copied tensor by tensor; once `stopped` gives true, the writing is given up with
    /// [`ModelError::Stopped`]. Gives the config that was written.
    ///
    /// Errors: a model for which `LlavaForConditionalGeneration` has no form, by key; those of [`crate::Vlm::load`].
    pub fn write(&self, output: &Path, stopped: &dyn Fn() -> bool) -> Result<VlmConfig, ModelError> {
        let source = VlmConfig::load(self.model)?;
        let config = expressed(&source)?;
        let folders = [(Layout::Joined, self.model)];
        let files = Files::open(&folders)?;
        let views = views(&files, &source)?;
        let mut tensors = Vec::new();
        for (name, view) in views.iter().filter(|(name, _)| !is_adapter(name)) {
            let piece = with_adapter(name, view.clone(), &views, source.language.lora.as_ref());
            tensors.extend(renamed(name, piece, &source).map(|(name, piece)| (name, piece.outgoing(self.dtype))));
        }
        tensors.extend(identity(&source, self.dtype)?);
        config.save_as(output, shared_dtype(&tensors))?;
        write_folder(until(tensors, stopped), output, self.max_shard_bytes)?;
        check_stop(stopped, output)?;
        Ok(config)
    }

    /// Writes the adapters and the projector into `output` as PEFT saves them for a `LlavaForConditionalGeneration` of
    /// transformers 4.52 or later.
    ///
    /// Errors: a model without adapters, else those of [`Export::write`].
    pub fn write_adapter(&self, output: &Path, stopped: &dyn Fn() -> bool) -> Result<(), ModelError> {
        let source = VlmConfig::load(self.model)?;
        expressed(&source)?;
        let Some(lora) = &source.language.lora else {
            return Err(ModelError::config("lora", "adapters to write", "none"));
        };
        let folders = [(Layout::Joined, self.model)];
        let files = Files::open(&folders)?;
        let mut tensors = Vec::new();
        let learned = |name: &str| is_adapter(name) || name.starts_with(PROJECTOR_PREFIX);
        for (name, view) in views(&files, &source)?.into_iter().filter(|(name, _)| learned(name)) {
            tensors.extend(
                renamed(&name, Piece::whole(view), &source).map(|(name, piece)| (name, piece.outgoing(self.dtype))),
            );
        }
        tensors.extend(identity(&source, self.dtype)?);
        let tensors = tensors.into_iter().map(|(name, tensor)| (peft_name(&name), tensor)).collect();
        write_tensors(until(tensors, stopped), &output.join(ADAPTER_FILE))?;
        check_stop(stopped, output)?;
        let path = output.join(ADAPTER_CONFIG_FILE);
        let text = format!("{:#}\n", peft_config(lora, source.language.family));
        fs::write(&path, text).map_err(|source| ModelError::Write { path, source })
    }
}

/// Every tensor of a folder, checked against its config.
fn views<'data>(files: &'data Files<'_>, config: &VlmConfig) -> Result<Views<'data>, ModelError> {
    let origins = files.resolve(&specs(config), Fresh::NONE)?;
    let view = |(name, origin)| match origin {
        Origin::File(view) => Some((name, view)),
        Origin::Fresh => None,
    };
    Ok(origins.into_iter().filter_map(view).collect())
}

/// The config of the same model in the words of `LlavaForConditionalGeneration`.
fn expressed(source: &VlmConfig) -> Result<VlmConfig, ModelError> {
    let mut config = source.clone();
    config.language.lora = None;
    if config.language.family == LanguageFamily::Qwen {
        config.language.family = LanguageFamily::Qwen2;
    }
    if config.projector.kind == ProjectorKind::Linear {
        config.projector.kind = ProjectorKind::Mlp2xGelu;
        config.projector.activation = Activation::Identity;
    }
    let refuse = |key: &str, found: &str| {
        let expected = "what `LlavaForConditionalGeneration` can say; Vela's own folder serves `trainer` and `chat`";
        Err(ModelError::config(key, expected, found))
    };
    match () {
        () if config.projector.kind == ProjectorKind::LnMlp => refuse("projector_type", "`ln_mlp`"),
        () if config.features.post_norm => refuse("vision_feature_norm", "true"),
        () => Ok(config),
    }
}

/// `view` with its adapter, if it has one.
fn with_adapter<'data>(
    name: &str,
    view: TensorView<'data>,
    views: &Views<'data>,
    lora: Option<&LoraConfig>,
) -> Piece<'data> {
    let matrices = name
        .strip_suffix(".weight")
        .and_then(|linear| Some((views.get(&format!("{linear}{LORA_A}"))?, views.get(&format!("{linear}{LORA_B}"))?)));
    match (matrices, lora) {
        (Some((a, b)), Some(lora)) => Piece::whole(view).merged(a.clone(), b.clone(), lora.scale()),
        _ => Piece::whole(view),
    }
}

/// A piece under its name in the exported folder; a fused linear becomes three.
fn renamed<'data>(
    name: &str,
    piece: Piece<'data>,
    source: &VlmConfig,
) -> impl Iterator<Item = (String, Piece<'data>)> + use<'data> {
    let whole = |name: String| vec![(name, piece.clone())];
    let pieces = match source.language.family {
        LanguageFamily::Qwen => match qwen2_name(name) {
            Qwen2Name::Whole(name) => whole(name),
            // One first matrix of an adapter serves all three.
            Qwen2Name::Thirds(names) if name.ends_with(LORA_A) => names.into_iter().flat_map(whole).collect(),
            Qwen2Name::Thirds(names) => names.into_iter().zip(piece.thirds()).collect(),
        },
        LanguageFamily::Qwen2 | LanguageFamily::Llama | LanguageFamily::Qwen3 => whole(name.to_owned()),
    };
    pieces.into_iter()
}

/// The second layer of a single linear: it changes nothing.
fn identity(source: &VlmConfig, dtype: Option<WeightDtype>) -> Result<Vec<(String, Outgoing<'static>)>, ModelError> {
    let mut layer = Vec::new();
    if source.projector.kind == ProjectorKind::Linear {
        let width = source.language.hidden_size;
        let name = |kind: &str| format!("{PROJECTOR_PREFIX}.linear_2.{kind}");
        layer.push((name("weight"), made(Tensor::eye(width, DType::F32, &Device::Cpu)?, dtype)));
        if source.projector.bias {
            layer.push((name("bias"), made(Tensor::zeros(width, DType::F32, &Device::Cpu)?, dtype)));
        }
    }
    Ok(layer)
}

/// The name of a trained parameter in PEFT's file: that of transformers' own modules, wrapped.
fn peft_name(canonical: &str) -> String {
    match canonical.strip_prefix("language_model.model.") {
        Some(rest) => format!("{PEFT_PREFIX}language_model.{rest}"),
        None => format!("{PEFT_PREFIX}{canonical}"),
    }
}

fn peft_config(lora: &LoraConfig, family: LanguageFamily) -> Value {
    let adapted = linear_names(family).iter().filter(|name| lora.adapts(name));
    let linears: Vec<&str> = match family {
        LanguageFamily::Qwen => adapted.flat_map(|name| qwen_names::linears(name)).collect(),
        _ => adapted.copied().collect(),
    };
    // A list of names would also hit the tower's; a pattern has to match from end to end.
    let pattern = format!(r".*language_model\..*\.({})", linears.join("|").replace('.', r"\."));
    json!({
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": if lora.alpha.fract() == 0.0 { json!(lora.alpha as u64) } else { json!(lora.alpha) },
        "lora_dropout": lora.dropout,
        "modules_to_save": [PROJECTOR_PREFIX],
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": pattern,
        "task_type": null,
        "use_dora": false,
        "use_rslora": false,
    })
}
