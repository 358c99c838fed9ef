//! The first Qwen's parameters under the names of Qwen2, which computes the same for rows up to `seq_length`.

/// Modules of a block by both names; `attn.c_attn` is three of Qwen2's.
const MODULES: [(&str, &str); 6] = [
    ("ln_1", "input_layernorm"),
    ("ln_2", "post_attention_layernorm"),
    ("attn.c_proj", "self_attn.o_proj"),
    ("mlp.w1", "mlp.up_proj"),
    ("mlp.w2", "mlp.gate_proj"),
    ("mlp.c_proj", "mlp.down_proj"),
];
pub(crate) const FUSED: &str = "attn.c_attn";
const PARTS: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];

/// Qwen2's name of a parameter of the first Qwen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Qwen2Name {
    /// The same tensor.
    Whole(String),
    /// A third of the rows each, in this order.
    Thirds([String; 3]),
}

/// Qwen2's linears for one of the first Qwen's (`attn.c_attn`).
pub(crate) fn linears(linear: &str) -> Vec<&'static str> {
    match MODULES.iter().find(|(own, _)| *own == linear) {
        Some((_, other)) => vec![other],
        None => PARTS.to_vec(),
    }
}

/// The canonical name of the same values in a model of family `qwen2`. Parameters of other components keep theirs.
pub(crate) fn qwen2_name(name: &str) -> Qwen2Name {
    let whole = |name: &str| Qwen2Name::Whole(name.to_owned());
    let Some(own) = name.strip_prefix("language_model.transformer.") else { return whole(name) };
    match own {
        "wte.weight" => return whole("language_model.model.embed_tokens.weight"),
        "ln_f.weight" => return whole("language_model.model.norm.weight"),
        _ => {}
    }
    let Some((layer, rest)) = own.strip_prefix("h.").and_then(|rest| rest.split_once('.')) else { return whole(name) };
    let renamed = |module: &str, kind: &str| format!("language_model.model.layers.{layer}.{module}.{kind}");
    let after = |module: &str| rest.strip_prefix(module).and_then(|kind| kind.strip_prefix('.'));
    if let Some(kind) = after(FUSED) {
        return Qwen2Name::Thirds(PARTS.map(|part| renamed(part, kind)));
    }
    let found = MODULES.iter().find_map(|(module, other)| after(module).map(|kind| renamed(other, kind)));
    Qwen2Name::Whole(found.unwrap_or_else(|| name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_has_its_name_in_qwen2() {
        let cases = [
            ("transformer.wte.weight", "model.embed_tokens.weight"),
            ("transformer.ln_f.weight", "model.norm.weight"),
            ("transformer.h.11.ln_1.weight", "model.layers.11.input_layernorm.weight"),
            ("transformer.h.0.mlp.w2.weight", "model.layers.0.mlp.gate_proj.weight"),
            ("transformer.h.0.mlp.w1.lora_A.weight", "model.layers.0.mlp.up_proj.lora_A.weight"),
            ("transformer.h.0.mlp.c_proj.weight", "model.layers.0.mlp.down_proj.weight"),
            ("lm_head.weight", "lm_head.weight"),
        ];
        for (own, other) in cases {
            let expected = Qwen2Name::Whole(format!("language_model.{other}"));
            assert_eq!(qwen2_name(&format!("language_model.{own}")), expected, "{own}");
        }
        let expected = ["q", "k", "v"].map(|part| format!("language_model.model.layers.3.self_attn.{part}_proj.bias"));
        assert_eq!(qwen2_name("language_model.transformer.h.3.attn.c_attn.bias"), Qwen2Name::Thirds(expected));
        assert_eq!(qwen2_name("vision_tower.a"), Qwen2Name::Whole("vision_tower.a".to_owned()));
    }
}
