"""Makes the expected values for the models: small random-weight checkpoints written by `transformers`, with their
hidden states, logits, losses, gradients and greedy answers, all in f32.

    requirements: torch transformers==5.* safetensors numpy
    python tests/golden/models/make.py            # rewrites the folders beside this file

Folders:
- `vision_*`: a whole CLIP, Chinese-CLIP or SigLIP model (both halves) as `transformers` saves it, and every hidden
  state of its vision half.
- `language_*`: a causal language model, with logits, summed loss and the gradient of every parameter.
- `joined_*`: a `LlavaForConditionalGeneration`, with the same and a greedy answer. `AutoModel` takes a
  `chinese_clip_vision_model` as `vision_config`, so no assembly by hand is needed.
- `projector_*`: projectors that `LlavaForConditionalGeneration` cannot express, made of `torch.nn` modules.

`expected.json` holds token ids, labels (not shifted), attention masks and losses; `expected.safetensors` the tensors.
Gradients are of the SUM of token losses and stand under the parameter's name in a published LLaVA file, after `grad.`.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
VOCAB, IMAGE, PAD = 80, 79, 0
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=14,
              patch_size=4)
TEXT_HALF = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16,
                 max_position_embeddings=8)
LANGUAGE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=128, bos_token_id=None,
                eos_token_id=None, pad_token_id=None)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)


def randomise(model, seed):
    """Weights large enough that every part of the model bears on its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.3 * noise)
    return model.eval()


def published_name(name):
    """A parameter's name in a published LLaVA file."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def fresh(name):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def write(folder, tensors, values):
    tensors = {name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()}
    save_file(dict(sorted(tensors.items())), folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(values, sort_keys=True) + "\n")
    for extra in ["generation_config.json"]:
        (folder / extra).unlink(missing_ok=True)


def summed_loss(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def rows(seed, lengths, spans):
    """Right-padded rows of random ids; `spans` puts runs of image tokens at (row, column, count)."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(1, IMAGE, (len(lengths), width), generator=generator)
    mask = torch.tensor([[column < length for column in range(width)] for length in lengths]).long()
    for row, column, count in spans:
        ids[row, column : column + count] = IMAGE
    ids = torch.where(mask == 1, ids, PAD)
    answer = torch.tensor([[length // 2 <= column < length for column in range(width)] for length in lengths])
    labels = torch.where(answer & (ids != IMAGE), ids, -100)
    return ids, mask, labels


def text_values(ids, mask, labels, loss):
    return dict(ids=ids.tolist(), mask=mask.tolist(), labels=labels.tolist(), loss=loss.item())


def make_vision(name, model, seed):
    folder = fresh(f"vision_{name}")
    randomise(model, seed).save_pretrained(folder)
    pixels = torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        states = model.vision_model(pixels, output_hidden_states=True).hidden_states
    tensors = {f"hidden.{index}": state for index, state in enumerate(states)}
    write(folder, dict(tensors, pixels=pixels), dict(num_states=len(states)))


def make_language(name, model, seed):
    folder = fresh(f"language_{name}")
    randomise(model, seed).save_pretrained(folder)
    ids, mask, labels = rows(seed + 1, [12, 9, 5], [])
    logits = model(ids, attention_mask=mask).logits
    loss = summed_loss(logits, labels)
    loss.backward()
    tensors = {f"grad.language_model.{key}": value.grad for key, value in model.named_parameters()}
    write(folder, dict(tensors, logits=logits), text_values(ids, mask, labels, loss))


def make_joined(name, vision, text, seed, **settings):
    folder = fresh(f"joined_{name}")
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, **settings)
    model = randomise(hf.LlavaForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    count = config.image_seq_length
    ids, mask, labels = rows(seed + 1, [count + 12, count + 7, 9], [(0, 3, count), (1, 0, count)])
    pixels = torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(seed + 2))
    logits = model(ids, pixel_values=pixels, attention_mask=mask).logits
    loss = summed_loss(logits, labels)
    loss.backward()
    tensors = {f"grad.{published_name(key)}": value.grad
               for key, value in model.named_parameters() if value.grad is not None}
    prompt = ids[:1, : count + 8]
    answer, margin = greedy(model, prompt, pixels[:1], 12)
    assert margin > 1e-3, f"{name}: the answer hangs on {margin}"
    values = dict(text_values(ids, mask, labels, loss), prompt=prompt[0].tolist(), answer=answer)
    write(folder, dict(tensors, logits=logits, pixels=pixels), values)


def greedy(model, prompt, pixels, count):
    """`generate`'s answer and the least lead of a chosen token over the next best."""
    out = model.generate(input_ids=prompt, pixel_values=pixels, do_sample=False, max_new_tokens=count,
                         output_scores=True, return_dict_in_generate=True)
    leads = [score[0].topk(2).values for score in out.scores]
    return out.sequences[0, prompt.shape[1] :].tolist(), min((lead[0] - lead[1]).item() for lead in leads)


def make_projector(name, modules, seed):
    folder = fresh(f"projector_{name}")
    model = randomise(nn.Sequential(modules), seed)
    features = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(seed + 1))
    out = model(features)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    (out * weights).sum().backward()
    tensors = {f"param.multi_modal_projector.{key}": value for key, value in model.named_parameters()}
    tensors |= {f"grad.multi_modal_projector.{key}": value.grad for key, value in model.named_parameters()}
    write(folder, dict(tensors, features=features, out=out), {})


def main():
    from collections import OrderedDict

    clip, chinese, siglip = hf.CLIPVisionConfig, hf.ChineseCLIPVisionConfig, hf.SiglipVisionConfig
    siglip_text = dict(TEXT_HALF, projection_size=8)
    make_vision("clip", hf.CLIPModel(hf.CLIPConfig(text_config=dict(TEXT_HALF, eos_token_id=2), vision_config=VISION,
                                                   projection_dim=8)), 1)
    make_vision("chinese_clip", hf.ChineseCLIPModel(hf.ChineseCLIPConfig(
        text_config=TEXT_HALF, vision_config=VISION, projection_dim=8)), 2)
    make_vision("siglip", hf.SiglipModel(hf.SiglipConfig(text_config=siglip_text, vision_config=VISION)), 3)

    qwen2 = hf.Qwen2Config(**LANGUAGE, tie_word_embeddings=True, rope_theta=1000000.0)
    qwen2_untied = hf.Qwen2Config(**LANGUAGE, tie_word_embeddings=False)
    llama = hf.LlamaConfig(**LANGUAGE, head_dim=8, rope_parameters=LLAMA3, rms_norm_eps=1e-5)
    llama_tied = hf.LlamaConfig(**LANGUAGE, tie_word_embeddings=True)
    make_language("qwen2", hf.Qwen2ForCausalLM(qwen2), 4)
    make_language("llama", hf.LlamaForCausalLM(llama), 5)

    patches = (14 // 4) ** 2
    make_joined("chinese_clip_qwen2", chinese(**VISION), qwen2, 6, image_seq_length=patches)
    make_joined("clip_llama", clip(**VISION), llama, 7, image_seq_length=patches + 1, vision_feature_layer=[-3, -2],
                vision_feature_select_strategy="full")
    make_joined("siglip_llama", siglip(**VISION), llama_tied, 8, image_seq_length=patches, vision_feature_layer=-1,
                vision_feature_select_strategy="full", multimodal_projector_bias=False)
    make_joined("siglip_qwen2", siglip(**VISION), qwen2_untied, 9, image_seq_length=patches,
                vision_feature_select_strategy="full", projector_hidden_act="gelu_pytorch_tanh")

    make_projector("linear", OrderedDict(linear_1=nn.Linear(16, 16)), 10)
    make_projector("ln_mlp", OrderedDict(norm=nn.LayerNorm(16), linear_1=nn.Linear(16, 16), act=nn.GELU(),
                                         linear_2=nn.Linear(16, 16)), 11)


if __name__ == "__main__":
    main()
