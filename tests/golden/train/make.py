"""Makes the expected values of a 20-step training run with PyTorch and transformers.

    pip install torch transformers tokenizers safetensors numpy
    python make.py

Beside this script it writes
  model/          a small random LLaVA folder (CLIP tower, two-layer projector, Qwen2) as transformers saves it
  processor/      a word-level tokenizer with a ChatML template, and a CLIP preprocessor of the same extent
  records.safetensors, records.json   the samples: token ids with one image token per image, labels, u8 pixels
  expected.json   losses, gradient norms and learning rates of each train type, and settings they were made with
  adamw.json      ten AdamW steps of torch on one matrix and one vector with a changing learning rate

Batches are consecutive records, padded on the right. The loss of a step is the sum of its token losses over the number
of its label tokens, gradients are accumulated over micro-batches of uneven size, clipped by their global norm, and
applied by torch.optim.AdamW with one group per component and none of the decay on tensors of one axis.
"""

import json
import math
import pathlib

import numpy
import tokenizers
import torch
from safetensors.numpy import save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

HERE = pathlib.Path(__file__).resolve().parent
IMAGE_SIZE, PATCH, IMAGE_TOKENS = 16, 8, 4
VOCAB = 48
PAD, IM_START, IM_END, IMAGE = 0, 1, 2, 3
NUM_RECORDS, GLOBAL, MICRO, STEPS, WARMUP, FLOOR = 36, 8, 3, 20, 3, 0.1
SETTINGS = {
    "betas": [0.9, 0.98],
    "eps": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 0.5,
    "rates": {"projector": 3e-3, "language_model": 2e-3, "vision_tower": 1e-3},
}
COMPONENTS = {
    "freeze_vision_and_llm": ["projector"],
    "freeze_vision": ["projector", "language_model"],
    "full": ["projector", "language_model", "vision_tower"],
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)


def write_processor():
    folder = HERE / "processor"
    folder.mkdir(exist_ok=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    words = special + ["user", "assistant", "system"] + [f"w{index}" for index in range(7, VOCAB - 1)] + ["unk"]
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="unk")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "bos_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1) + "\n")
    return preprocessor


def build_model():
    torch.manual_seed(5)
    vision = CLIPVisionConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
                              image_size=IMAGE_SIZE, patch_size=PATCH, projection_dim=16, hidden_act="quick_gelu")
    text = Qwen2Config(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                       tie_word_embeddings=False, pad_token_id=PAD, bos_token_id=None, eos_token_id=IM_END)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, projector_hidden_act="gelu",
                         vision_feature_layer=-2, vision_feature_select_strategy="default",
                         image_seq_length=IMAGE_TOKENS, tie_word_embeddings=False)
    model = LlavaForConditionalGeneration(config).float()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Wider than the defaults, so that every part of the model matters to the loss.
            scale = 0.15 if parameter.ndim > 1 else 0.05
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(HERE / "model", safe_serialization=True)
    return model


def draw_records():
    random = numpy.random.default_rng(7)
    records = []
    for index in range(NUM_RECORDS):
        images = 0 if index % 7 == 3 else 1
        prompt = [IM_START, 4] + [IMAGE] * images + random.integers(7, VOCAB - 1, random.integers(2, 6)).tolist()
        prompt += [IM_END, IM_START, 5]
        answer = random.integers(7, VOCAB - 1, random.integers(1, 7)).tolist() + [IM_END]
        pixels = random.integers(0, 256, (images, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=numpy.uint8)
        records.append({"ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "pixels": pixels})
    rows = [{"ids": record["ids"], "labels": record["labels"], "images": len(record["pixels"])} for record in records]
    (HERE / "records.json").write_text(json.dumps(rows) + "\n")
    save_file({"pixels": numpy.concatenate([record["pixels"] for record in records])}, HERE / "records.safetensors")
    return records


def expand(record):
    ids, labels = [], []
    for token, label in zip(record["ids"], record["labels"]):
        count = IMAGE_TOKENS if token == IMAGE else 1
        ids += [token] * count
        labels += [label] * count
    return ids, labels


def forward_sum(model, records, preprocessor):
    """Sum of the token losses of a micro-batch."""
    rows = [expand(record) for record in records]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    pixels = numpy.concatenate([record["pixels"] for record in records])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if len(pixels):
        mean = torch.tensor(preprocessor["image_mean"]).view(1, 3, 1, 1)
        std = torch.tensor(preprocessor["image_std"]).view(1, 3, 1, 1)
        inputs["pixel_values"] = (torch.from_numpy(pixels).float() * preprocessor["rescale_factor"] - mean) / std
    logits = model(**inputs).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum")


def component(name):
    if "multi_modal_projector" in name:
        return "projector"
    return "vision_tower" if "vision_tower" in name else "language_model"


def factor(step):
    """Warmup from 0, cosine to the floor at the last step."""
    if step < WARMUP:
        return step / WARMUP
    progress = (step - WARMUP) / (STEPS - 1 - WARMUP)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


def steps_of_records(records):
    """Consecutive batches over epochs; the last of an epoch is short."""
    while True:
        for start in range(0, NUM_RECORDS, GLOBAL):
            yield records[start:start + GLOBAL]


def run(train_type, records, preprocessor):
    model = LlavaForConditionalGeneration.from_pretrained(HERE / "model", dtype=torch.float32,
                                                         attn_implementation="eager")
    groups = []
    for part in COMPONENTS[train_type]:
        members = [(name, parameter) for name, parameter in model.named_parameters() if component(name) == part]
        for decayed in (True, False):
            chosen = [parameter for _, parameter in members if (parameter.ndim >= 2) == decayed]
            decay = SETTINGS["weight_decay"] if decayed else 0.0
            groups.append({"params": chosen, "lr": SETTINGS["rates"][part], "weight_decay": decay})
    trained = [parameter for group in groups for parameter in group["params"]]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups, betas=SETTINGS["betas"], eps=SETTINGS["eps"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses, norms, rates = [], [], []
    for _, batch in zip(range(STEPS), steps_of_records(records)):
        num_labels = sum(label != -100 for record in batch for label in record["labels"])
        total = 0.0
        for start in range(0, len(batch), MICRO):
            loss = forward_sum(model, batch[start:start + MICRO], preprocessor) / num_labels
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, SETTINGS["clip_norm"])
        losses.append(total)
        norms.append(norm.item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return {"losses": losses, "grad_norms": norms, "projector_lr": rates}


def adamw_steps():
    generator = torch.Generator().manual_seed(8)
    tensors = [torch.randn(shape, generator=generator) for shape in [(3, 4), (5,)]]
    start = [tensor.tolist() for tensor in tensors]
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in tensors]
    optimizer = torch.optim.AdamW(
        [{"params": [parameters[0]], "weight_decay": 0.1}, {"params": [parameters[1]], "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.98), eps=1e-8)
    steps = []
    for step in range(10):
        gradients = [torch.randn(tensor.shape, generator=generator) for tensor in tensors]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        lr = 1e-2 * (step + 1) / 10
        for group in optimizer.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.5)
        optimizer.step()
        steps.append({"lr": lr, "norm": norm.item(), "gradients": [gradient.flatten().tolist() for gradient in gradients],
                      "parameters": [parameter.detach().flatten().tolist() for parameter in parameters]})
    return {"start": start, "steps": steps, "clip_norm": 1.5}


def main():
    torch.set_num_threads(1)
    preprocessor = write_processor()
    build_model()
    records = draw_records()
    settings = {"global": GLOBAL, "micro": MICRO, "steps": STEPS, "warmup": WARMUP, "floor": FLOOR, **SETTINGS}
    runs = {train_type: run(train_type, records, preprocessor) for train_type in COMPONENTS}
    versions = {"torch": torch.__version__, "transformers": __import__("transformers").__version__}
    expected = {"versions": versions, "settings": settings, "runs": runs}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    (HERE / "adamw.json").write_text(json.dumps(adamw_steps()) + "\n")


if __name__ == "__main__":
    main()
