//! The names of one parameter in the layouts that are about.
//!
//! Canonical are the names of published LLaVA files: `vision_tower.vision_model.*`, `multi_modal_projector.*`,
//! `language_model.model.*`, `language_model.lm_head.weight`. Transformers 4 writes and opens them; transformers 5
//! opens them by its conversion table, and itself writes `vision_tower.*` without `vision_model` (observed in 5.23).
//! Inside transformers 5 the modules are `model.vision_tower`, `model.multi_modal_projector`, `model.language_model`
//! and `lm_head`, which some files carry as they are.

/// Canonical name of an untied output head.
pub(crate) const HEAD_NAME: &str = "language_model.lm_head.weight";

/// What a folder of weights holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A `LlavaForConditionalGeneration`.
    Joined,
    /// A vision tower alone, or a CLIP, Chinese-CLIP or SigLIP model whose text half is passed over.
    Vision,
    /// A language model alone, as `Qwen2ForCausalLM`.
    Language,
}

/// Buffers that old files carry beside the weights.
const BUFFERS: [&str; 2] = [".position_ids", ".rotary_emb.inv_freq"];

/// Parameters of the text half of a two-tower model.
const TEXT_HALF: [&str; 5] = ["text_model.", "text_projection", "visual_projection", "logit_scale", "logit_bias"];

impl Layout {
    /// A folder of this layout should have the parameter of this canonical name.
    pub(crate) fn holds(self, canonical: &str) -> bool {
        match self {
            Self::Joined => true,
            Self::Vision => canonical.starts_with("vision_tower."),
            Self::Language => canonical.starts_with("language_model."),
        }
    }

    /// The canonical name of a file's tensor; `None` for what no model here has.
    pub(crate) fn canonical(self, name: &str) -> Option<String> {
        if BUFFERS.iter().any(|buffer| name.ends_with(buffer)) {
            return None;
        }
        match self {
            Self::Joined => Some(joined(name)),
            Self::Vision => vision(name),
            Self::Language => Some(language(name)),
        }
    }
}

fn joined(name: &str) -> String {
    if name == "lm_head.weight" {
        return HEAD_NAME.to_owned();
    }
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("language_model.model.{rest}");
    }
    let name = match name.strip_prefix("model.") {
        Some(rest) if is_component(rest) => rest,
        _ => name,
    };
    match name.strip_prefix("vision_tower.") {
        Some(rest) if !rest.starts_with("vision_model.") => format!("vision_tower.vision_model.{rest}"),
        _ => name.to_owned(),
    }
}

fn vision(name: &str) -> Option<String> {
    if TEXT_HALF.iter().any(|part| name.starts_with(part)) {
        return None;
    }
    let bare = name.strip_prefix("vision_model.").unwrap_or(name);
    Some(format!("vision_tower.vision_model.{bare}"))
}

fn language(name: &str) -> String {
    format!("language_model.{name}")
}

/// The name belongs to one of the three components.
fn is_component(name: &str) -> bool {
    ["vision_tower.", "multi_modal_projector.", "language_model."].iter().any(|component| name.starts_with(component))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_of_a_joined_file_has_one_canonical_name() {
        let cases = [
            ("language_model.model.norm.weight", "language_model.model.norm.weight"),
            ("model.language_model.norm.weight", "language_model.model.norm.weight"),
            ("language_model.lm_head.weight", HEAD_NAME),
            ("lm_head.weight", HEAD_NAME),
            ("vision_tower.post_layernorm.bias", "vision_tower.vision_model.post_layernorm.bias"),
            ("vision_tower.vision_model.post_layernorm.bias", "vision_tower.vision_model.post_layernorm.bias"),
            ("model.vision_tower.vision_model.head.probe", "vision_tower.vision_model.head.probe"),
            ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
            ("model.surprise", "model.surprise"),
        ];
        for (name, expected) in cases {
            assert_eq!(Layout::Joined.canonical(name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(Layout::Joined.canonical("vision_tower.vision_model.embeddings.position_ids"), None);
    }

    #[test]
    fn single_towers_and_language_models_map_to_the_joined_names() {
        let vision = |name| Layout::Vision.canonical(name);
        assert_eq!(vision("vision_model.a").as_deref(), Some("vision_tower.vision_model.a"));
        assert_eq!(vision("embeddings.b").as_deref(), Some("vision_tower.vision_model.embeddings.b"));
        assert_eq!(vision("text_model.embeddings.token_embedding.weight"), None);
        assert_eq!(Layout::Language.canonical("lm_head.weight").as_deref(), Some(HEAD_NAME));
        assert_eq!(
            Layout::Language.canonical("model.norm.weight").as_deref(),
            Some("language_model.model.norm.weight")
        );
    }
}
