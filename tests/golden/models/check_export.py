"""Opens in `transformers` what Vela saved and exported: no key missing or unexpected, equal logits, equal greedy answers;
and in PEFT its adapters, on the exported base.

    requirements: torch transformers==5.* peft safetensors
    cargo run -p vela-models --example export_check -- target/export_check
    python tests/golden/models/check_export.py target/export_check

Prints one line per folder and fails at the first that does not open cleanly, whose logits differ by more than 1e-5 of the
largest, or whose answer differs although no choice in it hung on less than 1e-3. Last result: see `check_export.txt`.
"""

import sys
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file


def opened(folder):
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    left = {kind: found for kind, found in report.items() if found}
    assert not left, f"{folder.name}: {left}"
    keys = len(load_file(folder / "model.safetensors"))
    if not (folder / "adapter").exists():
        return model.eval(), f"{keys} tensors"
    own = load_file(folder / "adapter" / "adapter_model.safetensors")
    model = peft.PeftModel.from_pretrained(model, folder / "adapter")
    held = peft.get_peft_model_state_dict(model)
    assert held.keys() == own.keys(), held.keys() ^ own.keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in own.items())
    return model.eval(), f"{keys} tensors and {len(own)} of an adapter"


def greedy(model, given):
    """The answer and the least lead of a chosen token over the next best."""
    length, count = given["ids"].shape[1], len(given["answer"])
    out = model.generate(input_ids=given["ids"], pixel_values=given["pixels"], do_sample=False, max_new_tokens=count,
                         min_new_tokens=count, output_scores=True, return_dict_in_generate=True)
    leads = [score[0].topk(2).values for score in out.scores]
    return out.sequences[0, length:], min((lead[0] - lead[1]).item() for lead in leads)


def check(folder):
    model, tensors = opened(folder)
    given = load_file(folder / "check.safetensors")
    with torch.no_grad():
        logits = model(input_ids=given["ids"], pixel_values=given["pixels"]).logits
    error = ((logits - given["logits"]).abs().max() / logits.abs().max()).item()
    assert error <= 1e-5, f"{folder.name}: logits differ by {error:.1e}"
    answer, lead = greedy(model, given)
    same = torch.equal(answer, given["answer"])
    assert same or lead < 1e-3, f"{folder.name}: {answer.tolist()}, here {given['answer'].tolist()}, lead {lead}"
    said = f"{len(answer)} tokens of an answer equal" if same else f"answer hangs on {lead:.1e}"
    print(f"{folder.name}: {tensors}, none missing or unexpected, relative logit error {error:.1e}, {said}")


def main():
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if (path / "check.safetensors").exists())
    assert folders, f"no saved models in {sys.argv[1]}"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    for folder in folders:
        check(folder)


if __name__ == "__main__":
    main()
