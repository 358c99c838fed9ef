"""Writes `published.json`: name and shape of every parameter of the published towers and language models that the presets
in `trainer/configs/model` are made for, from classes of `transformers` with the published configs' numbers, without
values (`meta` device).

    requirements: torch transformers==5.*
    python tests/golden/models/published.py

Layers are folded: `layers.*` stands for `count` tensors of that name and shape. The first Qwen has no class in
`transformers`; its names and shapes are written out below from `modeling_qwen.py`.
"""

import json
import re
from pathlib import Path

import torch
import transformers as hf

CLIP_B = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
CLIP_L = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
SO400M = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=384,
              patch_size=14, vision_use_head=False)
VICUNA = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064,
              tie_word_embeddings=False)

TOWERS = {
    "clip_b16": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**CLIP_B, image_size=224, patch_size=16)),
    "clip_l14": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**CLIP_L, image_size=224)),
    "clip_l14_336": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**CLIP_L, image_size=336)),
    "chinese_clip_b16": lambda: hf.ChineseCLIPVisionModel(hf.ChineseCLIPVisionConfig(**CLIP_B, image_size=224, patch_size=16)),
    "chinese_clip_l14_336": lambda: hf.ChineseCLIPVisionModel(hf.ChineseCLIPVisionConfig(**CLIP_L, image_size=336)),
    "siglip_so400m": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SO400M)),
    "siglip2_b32_256": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(
        **CLIP_B, image_size=256, patch_size=32, vision_use_head=False)),
}
LANGUAGES = {
    "qwen2.5_0.5b": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True)),
    "llama3.2_1b": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        head_dim=64, vocab_size=128256, tie_word_embeddings=True)),
    "vicuna_7b": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**VICUNA)),
    "minimind_26m": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=6400, tie_word_embeddings=True)),
    "minimind3_64m": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(
        hidden_size=768, intermediate_size=2432, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        head_dim=96, vocab_size=6400, tie_word_embeddings=True)),
}


def qwen_7b():
    width, inner, layers, vocab = 4096, 11008, 32, 151936
    block = {"ln_1.weight": [width], "attn.c_attn.weight": [3 * width, width], "attn.c_attn.bias": [3 * width],
             "attn.c_proj.weight": [width, width], "ln_2.weight": [width], "mlp.w1.weight": [inner, width],
             "mlp.w2.weight": [inner, width], "mlp.c_proj.weight": [width, inner]}
    shapes = {f"transformer.h.{layer}.{name}": shape for layer in range(layers) for name, shape in block.items()}
    return shapes | {"transformer.wte.weight": [vocab, width], "transformer.ln_f.weight": [width],
                     "lm_head.weight": [vocab, width]}


def shapes(make, prefix):
    with torch.device("meta"):
        model = make()
    return {prefix + name.removeprefix("vision_model."): list(parameter.shape)
            for name, parameter in model.named_parameters()}


def folded(shapes):
    found = {}
    for name, shape in shapes.items():
        entry = found.setdefault(re.sub(r"\.\d+\.", ".*.", name), dict(shape=shape, count=0))
        assert entry["shape"] == shape, name
        entry["count"] += 1
    values = sum(torch.Size(shape).numel() for shape in shapes.values())
    return dict(values=values, tensors=dict(sorted(found.items())))


def main():
    tower, language = "vision_tower.vision_model.", "language_model."
    known = {name: folded(shapes(make, tower)) for name, make in TOWERS.items()}
    known |= {name: folded(shapes(make, language)) for name, make in LANGUAGES.items()}
    known["qwen_7b"] = folded({language + name: shape for name, shape in qwen_7b().items()})
    for name, part in known.items():
        print(f"{name}: {part['values']:,}")
    text = json.dumps(known, indent=1)
    text = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda match: "[" + " ".join(match[1].split()) + "]", text)
    (Path(__file__).parent / "published.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
