"""Makes the expected values for language models that `transformers` has no class for, or has under another name: the
first Qwen and minimind, computed by modules of plain PyTorch below, Qwen3, and a Vicuna folder as it was published.

    requirements: torch transformers==5.* safetensors numpy
    python tests/golden/models/families.py        # rewrites the folders it names, beside this file

The modules follow the published modelling files (`modeling_qwen.py` of Qwen-7B-Chat, `model_minimind.py` of minimind) in
names, order and numbers. Before anything is written they are compared with a class of `transformers` that computes the
same: the first Qwen with Qwen2 (its fused linear cut in three), minimind with Llama and with Qwen3.

`vision_last` holds `last_hidden_state` of the towers of `vision_siglip` and `vision_clip`: SigLIP's has gone through the
norm after the blocks, CLIP's has not.
"""

import json
import math

import torch
import transformers as hf
from make import HERE, IMAGE, LANGUAGE, VOCAB, fresh, rows, summed_loss, text_values, write
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

WIDTH, INNER, LAYERS, HEADS = 16, 24, 2, 4


def randomise(model, seed):
    """As `make.randomise`, and norms may be called `ln_*`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.3 * noise)
    return model.eval()


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotated(x, theta):
    """`x` of shape [rows, positions, heads, width], each half turned against the other."""
    half = x.shape[-1] // 2
    frequencies = 1.0 / theta ** (torch.arange(0, x.shape[-1], 2).float() / x.shape[-1])
    angles = torch.outer(torch.arange(x.shape[1]).float(), frequencies)
    cos, sin = (torch.cat([part, part], -1)[:, None] for part in (angles.cos(), angles.sin()))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def attended(q, k, v, mask):
    """Causal attention of [rows, positions, heads, width] over the positions that `mask` shows, keys shared by groups."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    length = q.shape[2]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    probabilities = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    return (probabilities @ v).transpose(1, 2).flatten(2)


def linear(inputs, outputs, bias=False):
    return nn.Linear(inputs, outputs, bias=bias)


class QwenAttention(nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta, self.c_attn, self.c_proj = theta, linear(WIDTH, 3 * WIDTH, bias=True), linear(WIDTH, WIDTH)

    def forward(self, x, mask):
        q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in self.c_attn(x).split(WIDTH, dim=2))
        return self.c_proj(attended(rotated(q, self.theta), rotated(k, self.theta), v, mask))


class QwenMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.c_proj = linear(WIDTH, INNER), linear(WIDTH, INNER), linear(INNER, WIDTH)

    def forward(self, x):
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class QwenBlock(nn.Module):
    def __init__(self, theta, eps):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = RmsNorm(WIDTH, eps), QwenAttention(theta), RmsNorm(WIDTH, eps), QwenMlp()

    def forward(self, x, mask):
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Qwen(nn.Module):
    CONFIG = dict(model_type="qwen", architectures=["QWenLMHeadModel"], hidden_size=WIDTH, intermediate_size=2 * INNER,
                  num_hidden_layers=LAYERS, num_attention_heads=HEADS, kv_channels=WIDTH // HEADS, vocab_size=VOCAB,
                  layer_norm_epsilon=1e-6, seq_length=64, max_position_embeddings=128, rotary_emb_base=10000,
                  rotary_pct=1.0, no_bias=True, scale_attn_weights=True, use_dynamic_ntk=True, use_logn_attn=True,
                  tie_word_embeddings=False, attn_dropout_prob=0.0, emb_dropout_prob=0.0)

    def __init__(self):
        super().__init__()
        eps, theta = self.CONFIG["layer_norm_epsilon"], self.CONFIG["rotary_emb_base"]
        blocks = nn.ModuleList(QwenBlock(theta, eps) for _ in range(LAYERS))
        self.transformer = nn.ModuleDict(dict(wte=nn.Embedding(VOCAB, WIDTH), h=blocks, ln_f=RmsNorm(WIDTH, eps)))
        self.lm_head = linear(WIDTH, VOCAB)

    def forward(self, ids, mask):
        x = self.transformer.wte(ids)
        for block in self.transformer.h:
            x = block(x, mask)
        return self.lm_head(self.transformer.ln_f(x))

    def twin(self):
        """The same model as Qwen2."""
        config = hf.Qwen2Config(**dict(LANGUAGE, num_key_value_heads=HEADS), tie_word_embeddings=False, rms_norm_eps=1e-6)
        model, state = hf.Qwen2ForCausalLM(config), {}
        renamed = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
                   "mlp.w2": "mlp.gate_proj", "mlp.w1": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
        for name, value in self.state_dict().items():
            if name.startswith("transformer.h."):
                layer, _, rest = name.removeprefix("transformer.h.").partition(".")
                module, _, kind = rest.rpartition(".")
                if module == "attn.c_attn":
                    for part, third in zip("qkv", value.split(WIDTH)):
                        state[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"] = third
                else:
                    state[f"model.layers.{layer}.{renamed[module]}.{kind}"] = value
            else:
                state[{"transformer.wte.weight": "model.embed_tokens.weight",
                       "transformer.ln_f.weight": "model.norm.weight"}.get(name, name)] = value
        model.load_state_dict(state)
        return model.eval()


class MiniMindAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.width = config, config.get("head_dim", WIDTH // HEADS)
        kv = config["num_key_value_heads"]
        self.q_proj, self.k_proj = linear(WIDTH, HEADS * self.width), linear(WIDTH, kv * self.width)
        self.v_proj, self.o_proj = linear(WIDTH, kv * self.width), linear(HEADS * self.width, WIDTH)
        if "head_dim" in config:
            self.q_norm, self.k_norm = (RmsNorm(self.width, config["rms_norm_eps"]) for _ in range(2))

    def forward(self, x, mask):
        q, k, v = (proj(x).unflatten(-1, (-1, self.width)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if "head_dim" in self.config:
            q, k = self.q_norm(q), self.k_norm(k)
        theta = self.config["rope_theta"]
        return self.o_proj(attended(rotated(q, theta), rotated(k, theta), v, mask))


class MiniMindMlp(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(WIDTH, inner), linear(WIDTH, inner), linear(inner, WIDTH)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MiniMindBlock(nn.Module):
    def __init__(self, config, inner):
        super().__init__()
        eps = config["rms_norm_eps"]
        self.self_attn, self.mlp = MiniMindAttention(config), MiniMindMlp(inner)
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(WIDTH, eps), RmsNorm(WIDTH, eps)

    def forward(self, x, mask):
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class MiniMind(nn.Module):
    """`head_dim` in the config: the later generation, which norms each head of queries and keys."""

    SHARED = dict(model_type="minimind", architectures=["MiniMindForCausalLM"], hidden_size=WIDTH, vocab_size=VOCAB,
                  num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=2, hidden_act="silu",
                  max_position_embeddings=128, rope_theta=1000000.0, dropout=0.0, bos_token_id=1, eos_token_id=2,
                  use_moe=False, inference_rope_scaling=False, rope_scaling=None)
    FIRST = dict(SHARED, rms_norm_eps=1e-5, intermediate_size=None)
    LATER = dict(SHARED, rms_norm_eps=1e-6, intermediate_size=INNER, head_dim=6)

    def __init__(self, config):
        super().__init__()
        self.CONFIG, eps = config, config["rms_norm_eps"]
        inner = config["intermediate_size"] or 64 * ((int(WIDTH * 8 / 3) + 63) // 64)
        blocks = nn.ModuleList(MiniMindBlock(config, inner) for _ in range(LAYERS))
        self.model = nn.ModuleDict(dict(embed_tokens=nn.Embedding(VOCAB, WIDTH), layers=blocks, norm=RmsNorm(WIDTH, eps)))
        self.lm_head = linear(WIDTH, VOCAB)
        self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids, mask):
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(x, mask)
        return self.lm_head(self.model.norm(x))

    def twin(self):
        later = "head_dim" in self.CONFIG
        settings = dict(LANGUAGE, rms_norm_eps=self.CONFIG["rms_norm_eps"], tie_word_embeddings=True,
                        intermediate_size=self.model.layers[0].mlp.up_proj.out_features,
                        rope_parameters=dict(rope_type="default", rope_theta=self.CONFIG["rope_theta"]))
        if later:
            model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**settings, head_dim=self.CONFIG["head_dim"]))
        else:
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**settings))
        model.load_state_dict(self.state_dict())
        return model.eval()


def make_own(name, model, seed):
    folder = fresh(f"language_{name}")
    randomise(model, seed)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if model.CONFIG.get("tie_word_embeddings", True):
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.CONFIG, indent=2) + "\n")
    ids, mask, labels = rows(seed + 1, [12, 9, 5], [])
    logits = model(ids, mask)
    with torch.no_grad():
        twin = model.twin()(ids, attention_mask=mask).logits
    error = ((twin - logits)[mask == 1].abs().max() / logits.abs().max()).item()
    assert error < 1e-5, f"{name}: {error} from its twin"
    print(f"language_{name}: {error:.1e} from {type(model.twin()).__name__}")
    save(folder, model, logits, (ids, mask, labels))


def save(folder, model, logits, text):
    ids, mask, labels = text
    loss = summed_loss(logits, labels)
    loss.backward()
    tensors = {f"grad.language_model.{key}": value.grad for key, value in model.named_parameters()}
    write(folder, dict(tensors, logits=logits), text_values(ids, mask, labels, loss))


def make_known(name, model, seed):
    folder = fresh(f"language_{name}")
    randomise(model, seed).save_pretrained(folder)
    ids, mask, labels = rows(seed + 1, [12, 9, 5], [])
    save(folder, model, model(ids, attention_mask=mask).logits, (ids, mask, labels))
    return folder


def make_vicuna():
    """Keys as `vicuna-7b-v1.5` has them: no grouped heads, no rotary base, keys of no meaning to the model."""
    settings = dict(LANGUAGE, num_key_value_heads=HEADS, rms_norm_eps=1e-5)
    folder = make_known("vicuna", hf.LlamaForCausalLM(hf.LlamaConfig(**settings, tie_word_embeddings=False)), 25)
    published = dict(_name_or_path="vicuna-7b-v1.5", architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2,
                     hidden_act="silu", hidden_size=WIDTH, initializer_range=0.02, intermediate_size=INNER,
                     max_position_embeddings=128, model_type="llama", num_attention_heads=HEADS,
                     num_hidden_layers=LAYERS, num_key_value_heads=HEADS, pad_token_id=0, pretraining_tp=1,
                     rms_norm_eps=1e-05, rope_scaling=None, tie_word_embeddings=False, torch_dtype="float16",
                     transformers_version="4.31.0", use_cache=True, vocab_size=VOCAB)
    (folder / "config.json").write_text(json.dumps(published, indent=2) + "\n")


def make_last_states():
    folder, tensors = fresh("vision_last"), {}
    for name, kind in [("siglip", hf.SiglipModel), ("clip", hf.CLIPModel)]:
        given = HERE / f"vision_{name}"
        pixels = load_file(given / "expected.safetensors")["pixels"]
        with torch.no_grad():
            tensors[name] = kind.from_pretrained(given).eval().vision_model(pixels).last_hidden_state
    write(folder, tensors, {})


def main():
    assert IMAGE < VOCAB
    make_own("qwen", Qwen(), 21)
    make_own("minimind", MiniMind(MiniMind.FIRST), 22)
    make_own("minimind3", MiniMind(MiniMind.LATER), 23)
    make_known("qwen3", hf.Qwen3ForCausalLM(hf.Qwen3Config(**LANGUAGE, head_dim=8, tie_word_embeddings=False)), 24)
    make_vicuna()
    make_last_states()


if __name__ == "__main__":
    main()
