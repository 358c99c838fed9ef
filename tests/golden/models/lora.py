"""Makes the expected values for low-rank adapters: an adapter that PEFT made on the language model of `joined_clip_llama`,
as PEFT saves it, with logits, loss and gradients of adapter and projector, and the logits of the merged model, in f32.

    requirements: torch transformers==5.* peft safetensors
    python tests/golden/models/lora.py            # rewrites `lora_clip_llama`
"""

import json
import shutil

import peft
import torch
import transformers as hf
from make import HERE, fresh, summed_loss, text_values, write
from safetensors.torch import load_file

BASE = HERE / "joined_clip_llama"
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


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


def main():
    folder = fresh("lora_clip_llama")
    base = hf.LlavaForConditionalGeneration.from_pretrained(BASE).eval()
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, bias="none",
                             target_modules=rf".*language_model.*\.({'|'.join(TARGETS)})",
                             modules_to_save=["multi_modal_projector"])
    model = peft.get_peft_model(base, config).eval()
    randomise(model)
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


if __name__ == "__main__":
    main()
