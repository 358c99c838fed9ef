"""Makes the expected values for low-rank adapters: an adapter that PEFT made on the language model of `joined_clip_llama`,
as PEFT saves it, with logits, loss and gradients of adapter and projector, and the logits of the merged model, in f32.
Then loss and gradients in training with a dropout, whose masks come from `docs/determinism.md`, section "Dropout", by a
second writing below, and stand in the place of PEFT's own.

    requirements: torch transformers==5.* peft safetensors numpy
    python tests/golden/models/lora.py            # rewrites `lora_clip_llama` and `lora_dropout`
"""

import json
import shutil

import numpy
import peft
import torch
import transformers as hf
from make import HERE, fresh, summed_loss, text_values, write
from safetensors.torch import load_file

BASE = HERE / "joined_clip_llama"
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
DROPOUT = dict(rate=0.4, seed=12, step=345, samples=[7, 10**12, 0])
GAMMA = 0x9E3779B97F4A7C15


def randomise(model):
    generator = torch.Generator().manual_seed(31)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def vela_name(name):
    """The name under which Vela holds a trained parameter of the wrapped model."""
    name = name.removeprefix("base_model.model.model.").replace(".modules_to_save.default", "").replace(".default", "")
    return name.replace("language_model.", "language_model.model.", 1)


def read_text():
    given = json.loads((BASE / "expected.json").read_text())
    return (torch.tensor(given[key]) for key in ("ids", "mask", "labels"))


def mix(word):
    """The output function of SplitMix64, on arrays of 64-bit words."""
    word = (word ^ (word >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return word ^ (word >> numpy.uint64(31))


def chained(*words):
    """One word of several: each goes into SplitMix64's state before its next output."""
    state = numpy.array([int.from_bytes(b"VELADROP", "big")], dtype=numpy.uint64)
    for word in words:
        state = mix((state ^ numpy.uint64(word)) + numpy.uint64(GAMMA))
    return state[0]


def name_hash(name):
    found = 0xCBF29CE484222325
    for byte in name.encode():
        found = (found ^ byte) * 0x100000001B3 % 2**64
    return numpy.uint64(found)


class GivenMask(torch.nn.Module):
    """In the place of an adapter's dropout."""

    def __init__(self, name, keys, rate):
        super().__init__()
        self.name, self.keys, self.rate = name, keys, rate

    def forward(self, x):
        states = mix(self.keys ^ name_hash(self.name))[:, None]
        words = mix(states + numpy.arange(1, x.shape[-1] + 1, dtype=numpy.uint64) * numpy.uint64(GAMMA))
        kept = (words >> numpy.uint64(32)) >= numpy.uint64(round(self.rate * 2**32))
        return x * torch.from_numpy(kept).reshape(x.shape) / (1 - self.rate)


def open_model(rate):
    base = hf.LlavaForConditionalGeneration.from_pretrained(BASE).eval()
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=rate, bias="none",
                             target_modules=rf".*language_model.*\.({'|'.join(TARGETS)})",
                             modules_to_save=["multi_modal_projector"])
    model = peft.get_peft_model(base, config).eval()
    randomise(model)
    return model


def make_dropout():
    folder, model = fresh("lora_dropout"), open_model(DROPOUT["rate"])
    ids, mask, labels = read_text()
    places = [(sample, position) for sample in DROPOUT["samples"] for position in range(ids.shape[1])]
    keys = numpy.array([chained(DROPOUT["seed"], DROPOUT["step"], *place) for place in places], dtype=numpy.uint64)
    given = 0
    for name, module in model.named_modules():
        if "default" in getattr(module, "lora_dropout", {}):
            assert module.lora_dropout["default"].p == DROPOUT["rate"]
            module.lora_dropout["default"] = GivenMask(vela_name(name), keys, DROPOUT["rate"])
            given += 1
    assert given == 2 * len(TARGETS)
    pixels = load_file(BASE / "expected.safetensors")["pixels"]
    loss = summed_loss(model.train()(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits, labels)
    loss.backward()
    gradients = {f"grad.{vela_name(name)}": value.grad
                 for name, value in model.named_parameters() if value.grad is not None}
    write(folder, dict(gradients, pixels=pixels), dict(text_values(ids, mask, labels, loss), dropout=DROPOUT))


def main():
    folder, model = fresh("lora_clip_llama"), open_model(0.0)
    ids, mask, labels = read_text()
    pixels = load_file(BASE / "expected.safetensors")["pixels"]
    logits = model(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
    loss = summed_loss(logits, labels)
    loss.backward()
    gradients = {f"grad.{vela_name(name)}": value.grad
                 for name, value in model.named_parameters() if value.grad is not None}
    model.peft_config["default"].base_model_name_or_path = BASE.name
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    merged = model.merge_and_unload()
    with torch.no_grad():
        merged_logits = merged(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
    write(folder, dict(gradients, logits=logits, merged_logits=merged_logits, pixels=pixels),
          text_values(ids, mask, labels, loss))
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    make_dropout()


if __name__ == "__main__":
    main()
