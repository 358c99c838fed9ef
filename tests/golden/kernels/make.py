"""Writes golden.safetensors: inputs, upstream gradients, outputs and input gradients of each op from PyTorch.

Run: pip install -r requirements.txt && python make.py
Names: `<case>.in.<argument>`, `<case>.seed` (gradient of the output), `<case>.out`, `<case>.grad.<argument>`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

torch.manual_seed(20)
torch.set_num_threads(1)
tensors = {}


def case(name, function, plain=None, **inputs):
    """Records one op; `inputs` are differentiated, `plain` are integers the Rust test needs."""
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    out = function(**leaves)
    seed = torch.randn_like(out)
    out.backward(seed)
    tensors[f"{name}.seed"], tensors[f"{name}.out"] = seed, out.detach()
    for key, leaf in leaves.items():
        tensors[f"{name}.in.{key}"] = leaf.detach()
        tensors[f"{name}.grad.{key}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    for key, value in (plain or {}).items():
        tensors[f"{name}.in.{key}"] = value


def activations():
    wide = torch.cat([torch.randn(3, 40) * 3, torch.linspace(-30, 30, 120).reshape(3, 40)], 1)
    case("gelu_erf", lambda x: F.gelu(x), x=wide)
    case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), x=wide)
    case("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x), x=wide)
    case("silu", lambda x: F.silu(x), x=wide)
    case("swiglu", lambda gate, up: F.silu(gate) * up, gate=wide, up=torch.randn_like(wide))
    case("softmax", lambda x: F.softmax(x, -1), x=torch.randn(2, 3, 19) * 5)


def norms_and_linear():
    x, w, b = torch.randn(5, 33) * 2 + 0.5, torch.randn(33), torch.randn(33)
    case("rms_norm", lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), x=x, w=w)
    case("layer_norm", lambda x, w, b: F.layer_norm(x, (33,), w, b, 1e-5), x=x, w=w, b=b)
    long = torch.randn(600, 33)
    case("rms_norm_rows", lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), x=long, w=w)
    case("linear", F.linear, input=torch.randn(2, 3, 11), weight=torch.randn(7, 11))
    case("linear_bias", F.linear, input=torch.randn(2, 3, 11), weight=torch.randn(7, 11), bias=torch.randn(7))
    case("linear_rows", F.linear, input=torch.randn(1300, 9), weight=torch.randn(13, 9), bias=torch.randn(13))
    case("linear_one_row", F.linear, input=torch.randn(1, 6), weight=torch.randn(1300, 6), bias=torch.randn(1300))


def rope(name, positions, **config):
    config = LlamaConfig(hidden_size=24, num_attention_heads=3, max_position_embeddings=512, **config)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    case(name, lambda x: apply_rotary_pos_emb(x, x, cos, sin)[0], plain={"positions": positions.int()},
         x=torch.randn(2, 3, 5, 8))


def ropes():
    positions = torch.randint(0, 512, (2, 5))
    rope("rope", positions, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    llama3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    rope("rope_llama3", positions, rope_parameters=llama3)


def attend(q, k, v, allowed, scale):
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, -1e30)
    return (scores.softmax(-1) * allowed) @ v


def attention(name, allowed, q, k, plain=None):
    case(name, lambda q, k, v: attend(q, k, v, allowed, 0.3), plain=plain,
         q=torch.randn(q) * 2, k=torch.randn(k) * 2, v=torch.randn(k))


def attentions():
    attention("attention_full", torch.ones(5, 9, dtype=torch.bool), (2, 4, 5, 8), (2, 4, 9, 8))
    attention("attention_causal", torch.ones(70, 70, dtype=torch.bool).tril(), (2, 6, 70, 5), (2, 2, 70, 5))
    attention("attention_offset", torch.ones(3, 10, dtype=torch.bool).tril(7), (1, 4, 3, 6), (1, 2, 10, 6))
    documents = torch.tensor([[1] * 30 + [2] * 25 + [3] * 15, [5] * 40 + [0] * 30])
    own = (documents[:, :, None] == documents[:, None, :]) & (documents[:, :, None] != 0)
    allowed = (own & torch.ones(70, 70, dtype=torch.bool).tril())[:, None]
    attention("attention_documents", allowed, (2, 4, 70, 5), (2, 1, 70, 5), {"documents": documents.int()})


def rows():
    ids = torch.tensor([[3, 1, 3], [0, 3, 6]])
    case("embedding", lambda table: F.embedding(ids, table), plain={"ids": ids.int()}, table=torch.randn(7, 5))
    index = torch.tensor([4, 0, 3])
    case("splice_rows", lambda base, values: base.index_copy(0, index, values), plain={"rows": index.int()},
         base=torch.randn(6, 5), values=torch.randn(3, 5))
    labels = torch.randint(0, 37, (150,))
    labels[torch.rand(150) < 0.4] = -100
    case("linear_cross_entropy", lambda hidden, weight: F.cross_entropy(
        hidden @ weight.T, labels, reduction="sum", ignore_index=-100), plain={"labels": labels.int()},
        hidden=torch.randn(150, 6) * 2, weight=torch.randn(37, 6))


def adamw():
    param = torch.nn.Parameter(torch.randn(5, 7))
    grads = torch.randn(20, 5, 7)
    tensors["adamw.in.param"], tensors["adamw.in.grads"] = param.detach().clone(), grads
    optimizer = torch.optim.AdamW([param], lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    norms = []
    for grad in grads:
        param.grad = grad.clone()
        norms.append(torch.nn.utils.clip_grad_norm_([param], 5.0))
        optimizer.step()
    tensors["adamw.out"], tensors["adamw.norms"] = param.detach().clone(), torch.stack(norms)


activations()
norms_and_linear()
ropes()
attentions()
rows()
adamw()
path = Path(__file__).with_name("golden.safetensors")
save_file({key: value.contiguous() for key, value in tensors.items()}, path)
print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")
