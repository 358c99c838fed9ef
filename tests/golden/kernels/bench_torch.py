"""Milliseconds of PyTorch CPU eager (2 threads) at the shapes of trainer/kernels/examples/op_times.rs, same keys."""

import json
import statistics
import time

import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(2)
B, T, C, HEAD, KV, HID, V, LAYERS, REPEATS = 64, 80, 96, 24, 48, 256, 800, 4, 15
results = {}


def var(*dims):
    return (torch.randn(*dims) * dims[-1] ** -0.5).requires_grad_()


def timed(name, op):
    forward, backward = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        y = op()
        forward.append((time.perf_counter() - start) * 1e3)
        seed = torch.ones_like(y)
        start = time.perf_counter()
        y.backward(seed)
        backward.append((time.perf_counter() - start) * 1e3)
        for leaf in leaves:
            leaf.grad = None
    results[name] = {"forward_ms": round(statistics.median(forward), 3),
                     "backward_ms": round(statistics.median(backward), 3)}


def rms(x, w):
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


angles = torch.arange(T)[:, None] * (1e4 ** (-torch.arange(0, HEAD, 2) / HEAD))[None]
cos, sin = (torch.cat([f(angles)] * 2, -1)[None, None] for f in (torch.cos, torch.sin))


def rope(x):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def heads(x):
    return x.view(B, T, -1, HEAD).transpose(1, 2)


def attention(q, k, v, causal):
    out = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=causal, enable_gqa=True)
    return out.transpose(1, 2).reshape(B, T, C)


x, wide, wide2 = var(B, T, C), var(B, T, HID), var(B, T, HID)
square, up, down, gain, bias = var(C, C), var(HID, C), var(C, HID), var(C), var(C)
k, v, rows, head = var(B, T, KV), var(B, T, KV), var(B * T, C), var(V, C)
leaves = [x, wide, wide2, square, up, down, gain, bias, k, v, rows, head]
frozen = square.detach()
index = torch.arange(B * T)
labels = torch.where(index % T >= T - 10, index * 7 % V, -100)

timed("linear_96_96_bias", lambda: F.linear(x, square, bias))
timed("linear_96_96_frozen", lambda: F.linear(x, frozen))
timed("linear_96_256", lambda: F.linear(x, up))
timed("linear_256_96", lambda: F.linear(wide, down))
timed("rms_norm", lambda: rms(x, gain))
timed("layer_norm", lambda: F.layer_norm(x, (C,), gain, bias, 1e-5))
timed("softmax", lambda: F.softmax(x, -1))
timed("gelu_erf", lambda: F.gelu(wide))
timed("gelu_tanh", lambda: F.gelu(wide, approximate="tanh"))
timed("swiglu", lambda: F.silu(wide) * wide2)
timed("rope", lambda: rope(heads(x)))
timed("attention_causal", lambda: attention(x, k, v, True))
timed("attention_full", lambda: attention(x, k, v, False))
timed("linear_cross_entropy", lambda: F.cross_entropy(rows @ head.T, labels, reduction="sum"))


def train_step():
    layers = [{"n1": torch.ones(C, requires_grad=True), "n2": torch.ones(C, requires_grad=True), "q": var(C, C),
               "k": var(KV, C), "v": var(KV, C), "o": var(C, C), "g": var(HID, C), "u": var(HID, C),
               "d": var(C, HID)} for _ in range(LAYERS)]
    table, lm_head = var(V, C), var(V, C)
    params = [p for layer in layers for p in layer.values()] + [table, lm_head]
    optimizer = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01)
    ids = (index * 13 % V).view(B, T)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        h = F.embedding(ids, table)
        for w in layers:
            n = rms(h, w["n1"])
            q, key = (rope(heads(F.linear(n, w[p]))) for p in ("q", "k"))
            a = F.scaled_dot_product_attention(q, key, heads(F.linear(n, w["v"])), is_causal=True, enable_gqa=True)
            h = h + F.linear(a.transpose(1, 2).reshape(B, T, C), w["o"])
            n = rms(h, w["n2"])
            h = h + F.linear(F.silu(F.linear(n, w["g"])) * F.linear(n, w["u"]), w["d"])
        loss = F.cross_entropy((h.flatten(0, 1) @ lm_head.T), labels, reduction="sum")
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append([forward - start, backward - forward, time.perf_counter() - backward])
    forward, backward, update = (statistics.median(t) * 1e3 for t in zip(*times))
    results["train_step"] = {"forward_ms": round(forward, 3), "backward_ms": round(backward, 3),
                             "update_ms": round(update, 3)}


train_step()
print(json.dumps(results, indent=1))
