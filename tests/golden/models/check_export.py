"""Opens in `transformers` what Vela saved: no key missing or unexpected, equal logits.

    requirements: torch transformers==5.* safetensors
    cargo run -p vela-models --example export_check -- target/export_check
    python tests/golden/models/check_export.py target/export_check

Prints one line per folder and fails at the first that does not open cleanly or whose logits differ by more than 1e-5 of
the largest. Last result: see `check_export.txt`.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


def check(folder):
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    left = {kind: found for kind, found in report.items() if found}
    assert not left, f"{folder.name}: {left}"
    given = load_file(folder / "check.safetensors")
    with torch.no_grad():
        logits = model.eval()(given["ids"], pixel_values=given["pixels"]).logits
    error = ((logits - given["logits"]).abs().max() / logits.abs().max()).item()
    assert error <= 1e-5, f"{folder.name}: logits differ by {error:.1e}"
    keys = len(load_file(folder / "model.safetensors"))
    print(f"{folder.name}: {keys} tensors, none missing or unexpected, relative logit error {error:.1e}")


def main():
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if (path / "check.safetensors").exists())
    assert folders, f"no saved models in {sys.argv[1]}"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for folder in folders:
        check(folder)


if __name__ == "__main__":
    main()
