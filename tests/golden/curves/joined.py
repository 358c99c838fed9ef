"""The joined models of curves.py in PyTorch: towers by `transformers`, projectors of plain modules, language models by
`transformers` or, where it has no class, by `tests/golden/models/families.py`. All start from the checkpoints in
`tests/golden/models`.
"""

import json
import pathlib
import sys

import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

MODELS = pathlib.Path(__file__).resolve().parent.parent / "models"
sys.path.insert(0, str(MODELS))

import families  # noqa: E402

VISION_CLASSES = {"clip": hf.CLIPModel, "chinese_clip": hf.ChineseCLIPModel, "siglip": hf.SiglipModel}
LANGUAGE_CLASSES = {"qwen2": hf.Qwen2ForCausalLM, "qwen3": hf.Qwen3ForCausalLM, "llama": hf.LlamaForCausalLM,
                    "vicuna": hf.LlamaForCausalLM}
WIDTH = families.WIDTH
# Vicuna's config says f16; its weights here are f32.
HOW = dict(attn_implementation="eager", dtype=torch.float32)


def make_tower(name):
    return VISION_CLASSES[name].from_pretrained(MODELS / f"vision_{name}", **HOW).vision_model


def make_language(name):
    if name in LANGUAGE_CLASSES:
        return LANGUAGE_CLASSES[name].from_pretrained(MODELS / f"language_{name}", **HOW)
    made = {"qwen": families.Qwen, "minimind": lambda: families.MiniMind(families.MiniMind.FIRST),
            "minimind3": lambda: families.MiniMind(families.MiniMind.LATER)}[name]()
    left = made.load_state_dict(load_file(MODELS / f"language_{name}" / "model.safetensors"), strict=False)
    assert left.missing_keys in ([], ["lm_head.weight"]) and not left.unexpected_keys, f"{name}: {left}"
    return made


def make_projector(kind, seed):
    """Weights wide enough that image features bear on the first loss already."""
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    modules = {"linear": dict(linear_1=first), "mlp2x_gelu": dict(linear_1=first, act=nn.GELU(), linear_2=second),
               "ln_mlp": dict(norm=nn.LayerNorm(WIDTH), linear_1=first, act=nn.GELU(), linear_2=second)}[kind]
    model = nn.Sequential()
    for name, module in modules.items():
        model.add_module(name, module)
    return families.randomise(model, seed)


class Joined(nn.Module):
    """Image features in the place of image tokens, then the language model."""

    def __init__(self, pair, seed):
        super().__init__()
        self.pair, self.tower = pair, make_tower(pair["vision"]).eval().requires_grad_(False)
        self.projector, self.language = make_projector(pair["projector"], seed), make_language(pair["language"])

    def features(self, pixels):
        with torch.no_grad():
            found = self.tower(pixel_values=pixels, output_hidden_states=True)
        if self.pair.get("feature_norm"):
            return found.last_hidden_state
        states = found.hidden_states[self.pair["feature_layer"]]
        return states if self.pair["vision"] == "siglip" else states[:, 1:]

    def forward(self, ids, mask, pixels, image_id):
        x = self.table()(ids)
        if len(pixels):
            rows = self.projector(self.features(pixels)).flatten(0, 1)
            x = x.masked_scatter((ids == image_id)[..., None], rows.to(x.dtype))
        return self.logits(x, mask)

    def table(self):
        if isinstance(self.language, families.Qwen):
            return self.language.transformer.wte
        return self.language.model["embed_tokens"] if self.is_minimind() else self.language.get_input_embeddings()

    def is_minimind(self):
        return isinstance(self.language, families.MiniMind)

    def logits(self, x, mask):
        """What `families` computes from ids, from embeddings."""
        if isinstance(self.language, families.Qwen):
            blocks, norm = self.language.transformer.h, self.language.transformer.ln_f
        elif self.is_minimind():
            blocks, norm = self.language.model["layers"], self.language.model["norm"]
        else:
            return self.language(inputs_embeds=x, attention_mask=mask).logits
        for block in blocks:
            x = block(x, mask)
        return self.language.lm_head(norm(x))

    def blocks(self):
        """Prefixes of the parameters of each block of the language model."""
        stem = "language.transformer.h" if isinstance(self.language, families.Qwen) else "language.model.layers"
        count = len({name.split(".")[3] for name, _ in self.named_parameters() if name.startswith(stem + ".")})
        return [f"{stem}.{index}." for index in range(count)]


def published(model, image_id):
    """The same weights as `LlavaForConditionalGeneration`, for the pairs that it can say."""
    siglip = model.pair["vision"] == "siglip"
    config = hf.LlavaConfig(vision_config=model.tower.config, text_config=model.language.config,
                            image_token_index=image_id, vision_feature_layer=model.pair["feature_layer"],
                            vision_feature_select_strategy="full" if siglip else "default",
                            tie_word_embeddings=model.language.config.tie_word_embeddings)
    made = hf.LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    tower = made.model.vision_tower
    getattr(tower, "vision_model", tower).load_state_dict(model.tower.state_dict())
    made.model.multi_modal_projector.load_state_dict(model.projector.state_dict())
    made.model.language_model.load_state_dict(model.language.model.state_dict())
    made.lm_head.load_state_dict(model.language.lm_head.state_dict())
    return made.eval()


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())
