"""Writes weights as `torch.save` does, in the forms that are about: `pickled/*`, of the weights of `language_qwen2`.

    requirements: torch transformers==5.* safetensors numpy
    python tests/golden/models/pickled.py         # rewrites `pickled`

- `strided.bin`: f32; the head is the table's storage, the norms are parts of one storage, and some matrices lie transposed;
- `training.pth`: f16, under `model` beside an epoch and the arguments of a script, by pickle protocol 4;
- `parameters.bin`: bf16, under `state_dict`, as parameters;
- `shards/`: f32, two files and their index;
- `legacy.bin`, `module.bin`, `list.bin`: what is refused - the form before PyTorch 1.6, a whole module, tensors without names.
"""

import argparse
import json

import torch
import transformers as hf
from make import HERE, fresh
from torch import nn


def read_state():
    model = hf.Qwen2ForCausalLM.from_pretrained(HERE / "language_qwen2")
    state = model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    return model, state


def strided(state):
    """The same values, otherwise laid out."""
    norms = [name for name in state if "norm" in name]
    together = torch.cat([torch.zeros(5)] + [state[name] for name in norms])
    found = dict(state)
    for place, name in enumerate(norms):
        found[name] = together[5 + 16 * place : 21 + 16 * place]
    for name in state:
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            found[name] = state[name].t().contiguous().t()
    assert not all(value.is_contiguous() for value in found.values())
    assert all(torch.equal(found[name], state[name]) for name in state)
    return found


def write_shards(folder, state):
    folder.mkdir()
    files = {f"pytorch_model-{part:05}-of-00002.bin": sorted(state)[part - 1 :: 2] for part in (1, 2)}
    for file, names in files.items():
        torch.save({name: state[name].clone() for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


def main():
    folder, (model, state) = fresh("pickled"), read_state()
    torch.save(strided(state), folder / "strided.bin")
    half = {name: value.half() for name, value in state.items() if name != "lm_head.weight"}
    script = dict(epoch=3, loss=0.5, args=argparse.Namespace(lr=1e-3, names=["a", "b"]))
    torch.save(dict(script, model=half), folder / "training.pth", pickle_protocol=4)
    parameters = dict(model.bfloat16().named_parameters())
    assert all(isinstance(value, nn.Parameter) for value in parameters.values())
    torch.save({"state_dict": parameters}, folder / "parameters.bin")
    write_shards(folder / "shards", {name: value for name, value in state.items() if name != "lm_head.weight"})
    small = {"weight": torch.ones(2, 2)}
    torch.save(small, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), folder / "module.bin")
    torch.save(list(small.values()), folder / "list.bin")


if __name__ == "__main__":
    main()
