"""Loss curves of 50 steps of both stages, by PyTorch, for every family of towers, projectors and language models.

    requirements: Python 3.11, torch transformers==5.* peft safetensors numpy
    python tests/golden/curves/curves.py [PAIR..] # rewrites the files beside this one, or some pairs of them, in minutes

Beside this script it writes
  records.json, records.safetensors   the samples: token ids with one image token per image, labels, u8 pixels of 14 x 14
  weights.safetensors                 each pair's projector, and the adapters of its run with adapters
  curves.json                         each pair, and its runs: loss and gradient norm of each step

A pair is a tower and a language model of `tests/golden/models` with a projector; its runs follow the recipes in
`trainer/configs/run`, whose schedule, decay, clipping and choice of blocks are read here and by Vela alike. Rates and
batches are those below, as the published ones move nothing in 50 steps of models this small. Samples come as they are
written down, epoch after epoch; of the packed run, the samples of the rows that `tests/golden/packing` plans, each by itself.
Every run is repeated with micro-batches of one sample and in f64, and the largest difference is written beside its curve: by so much
PyTorch differs from itself when it sums in another order, or rounds less.
"""

import importlib.util
import json
import math
import pathlib
import re
import sys
import tomllib

import numpy
import peft
import torch
import transformers
from joined import MODELS, Joined, published
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from transformers import optimization

HERE = pathlib.Path(__file__).resolve().parent
RECIPES = HERE.parents[2] / "trainer" / "configs" / "run"
IMAGE_SIZE, IMAGE_TOKENS, PAD, IM_START, IM_END, IMAGE = 14, 9, 0, 1, 2, 3
NUM_RECORDS, GLOBAL, MICRO, STEPS, MAX_LENGTH = 44, 8, 3, 50, 40
# Of the packed run: rows of a step, tokens of a row, images of a row, samples packed together.
PACKED = {"global": 3, "micro": 2, "max_length": 60, "max_images": 3, "window": 20}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
RATES = {"projector": 1e-2, "language_model": 3e-3, "lora": 1e-2}
LORA = dict(rank=4, alpha=8.0, targets=["c_attn", "w1", "w2"])

PAIRS = {
    "mllm_ch": dict(vision="chinese_clip", language="qwen2", projector="mlp2x_gelu", feature_layer=-2),
    "mllm_en": dict(vision="siglip", language="llama", projector="mlp2x_gelu", feature_layer=-2),
    "basic_vlm_clip": dict(vision="clip", language="qwen", projector="mlp2x_gelu", feature_layer=-1),
    "basic_vlm_siglip": dict(vision="siglip", language="qwen", projector="mlp2x_gelu", feature_layer=-2),
    "llava_v1": dict(vision="clip", language="vicuna", projector="linear", feature_layer=-2),
    "llava_v1_5": dict(vision="clip", language="vicuna", projector="mlp2x_gelu", feature_layer=-2),
    "minimind_v": dict(vision="clip", language="minimind", projector="linear", feature_layer=-1),
    "minimind_3v": dict(vision="siglip", language="minimind3", projector="ln_mlp", feature_layer=-1, feature_norm=True),
    # A family of which no pair was published.
    "qwen3": dict(vision="clip", language="qwen3", projector="mlp2x_gelu", feature_layer=-2),
}
# Recipe of each run; a run starts from where the one named third ended.
RUNS = {pair: {"stage1": (f"{pair}_stage1", None), "stage2": (f"{pair}_stage2", "stage1")} for pair in PAIRS}
# Published with one stage, with adapters; its two are LLaVA's.
RUNS["basic_vlm_clip"] = {"stage1": ("llava_v1_5_stage1", None), "stage2": ("llava_v1_5_stage2", "stage1")}
RUNS["basic_vlm_siglip"] = {"lora": ("basic_vlm_siglip_stage1", None)}
RUNS["qwen3"] = dict(RUNS["basic_vlm_clip"])
RUNS["mllm_ch"]["packed"] = ("mllm_ch_stage2", "stage1")


def load_packing():
    """The plans of packed rows."""
    spec = importlib.util.spec_from_file_location("packing", HERE.parent / "packing" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PACKING = load_packing()


def draw_records():
    """Samples whose answers follow from the colours of their images, so that there is something to learn."""
    random = numpy.random.default_rng(11)
    colours = random.integers(30, 226, (4, 3))
    answers = random.integers(20, 46, (5, 3))
    records = []
    for index in range(NUM_RECORDS):
        count = 0 if index % 7 == 3 else 2 if index % 11 == 5 else 1
        kinds = random.integers(0, 4, count)
        noise = random.integers(-25, 26, (count, 3, IMAGE_SIZE, IMAGE_SIZE))
        pixels = (colours[kinds][:, :, None, None] + noise).astype(numpy.uint8)
        prompt = [IM_START, 4] + [IMAGE] * count + random.integers(7, 20, random.integers(2, 6)).tolist()
        prompt += [IM_END, IM_START, 5]
        told = answers[kinds].ravel() if count else answers[4][: random.integers(1, 4)]
        answer = told.tolist() + [IM_END]
        records.append({"ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "pixels": pixels})
    rows = [{"ids": record["ids"], "labels": record["labels"], "images": len(record["pixels"])} for record in records]
    (HERE / "records.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    save_arrays({"pixels": numpy.concatenate([record["pixels"] for record in records])}, HERE / "records.safetensors")
    return records


def expand(record):
    """Ids and labels with every image token in its place."""
    ids, labels = [], []
    for token, label in zip(record["ids"], record["labels"]):
        count = IMAGE_TOKENS if token == IMAGE else 1
        ids, labels = ids + [token] * count, labels + [label] * count
    return ids, labels


def packed_rows(records):
    """Windows of samples, each packed by itself."""
    rows = []
    for start in range(0, len(records), PACKED["window"]):
        window = records[start : start + PACKED["window"]]
        items = [(len(expand(record)[0]), len(record["pixels"])) for record in window]
        rows += [[window[at] for at in row] for row in PACKING.pack(PACKED["max_length"], PACKED["max_images"], items)]
    return rows


def steps_of_records(records, is_packed):
    """The records of each step, epoch after epoch; the last step of an epoch is short."""
    rows, together = (packed_rows(records), PACKED["global"]) if is_packed else ([[record] for record in records], GLOBAL)
    while True:
        for start in range(0, len(rows), together):
            yield [record for row in rows[start : start + together] for record in row]


def collate(records, dtype):
    rows = [expand(record) for record in records]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    pixels = torch.from_numpy(numpy.concatenate([record["pixels"] for record in records])).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ids, mask, labels, ((pixels * (1 / 255) - mean) / std).to(dtype)


def summed_loss(model, records, dtype):
    ids, mask, labels, pixels = collate(records, dtype)
    logits = model(ids, mask, pixels, IMAGE)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100,
                                             reduction="sum")


def make_scheduler(optimizer, schedule):
    """That of the recipe. Vela reaches the floor at the last step, these one later: so theirs are a step shorter."""
    kind, last, floor = schedule["kind"], STEPS - 1, schedule.get("floor", 0.0)
    warmup = math.ceil(schedule.get("warmup_ratio", 0.0) * STEPS)
    if kind == "wsd":
        return optimization.get_wsd_schedule(
            optimizer, warmup, math.ceil(schedule["decay_ratio"] * STEPS), num_training_steps=last,
            decay_type=schedule["decay_shape"], min_lr_ratio=floor)
    if kind == "linear":
        assert floor == 0.0
        return optimization.get_linear_schedule_with_warmup(optimizer, warmup, last)
    assert kind == "cosine", kind
    return optimization.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, last, min_lr_rate=floor)


def learns(name, recipe, model):
    """The group of a parameter, if it has one."""
    if "projector." in name:
        return "projector"
    if "lora_" in name:
        return "lora"
    group = recipe["groups"].get("language_model")
    if group is None or ".language." not in f".{name}":
        return None
    blocks = model.blocks()
    chosen = tuple(blocks[layer] for layer in group.get("layers", []))
    return "language_model" if not chosen or name.startswith(chosen) else None


def parameter_groups(model, recipe):
    """One group per rate and decay; none of the decay on tensors of one axis."""
    groups = {}
    for name, parameter in model.named_parameters():
        group = learns(name, recipe, model)
        parameter.requires_grad_(group is not None)
        if group:
            key = (group, parameter.ndim >= 2)
            decay = recipe["optimizer"]["weight_decay"] if key[1] else 0.0
            groups.setdefault(key, {"params": [], "lr": RATES[group], "weight_decay": decay})["params"].append(parameter)
    return list(groups.values())


def train(model, recipe, records, micro, dtype, is_packed):
    """Losses and gradient norms of 50 steps; the model is left as the last one made it."""
    groups = parameter_groups(model, recipe)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups)
    scheduler = make_scheduler(optimizer, recipe["schedule"])
    losses, norms = [], []
    for _, batch in zip(range(STEPS), steps_of_records(records, is_packed)):
        num_labels = sum(label != -100 for record in batch for label in record["labels"])
        total = 0.0
        for start in range(0, len(batch), micro):
            loss = summed_loss(model, batch[start : start + micro], dtype) / num_labels
            # Words alone have no way to a projector.
            if loss.requires_grad:
                loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, recipe["optimizer"]["clip_norm"])
        losses.append(total)
        norms.append(norm.item())
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return {"losses": losses, "grad_norms": norms}


def with_adapters(model):
    config = peft.LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], lora_dropout=0.0, target_modules=LORA["targets"])
    torch.manual_seed(17)
    peft.inject_adapter_in_model(config, model.language)
    return model


def run_pair(name, seed, records, micro, dtype):
    """All runs of a pair, each from its start; and the model before the first, for its weights."""
    ended, runs = {}, {}
    for run, (recipe_name, start) in RUNS[name].items():
        recipe = tomllib.loads((RECIPES / f"{recipe_name}.toml").read_text())
        model = Joined(PAIRS[name], seed)
        if start:
            model.load_state_dict(ended[start])
        if recipe["train_type"] == "lora":
            with_adapters(model)
        model = model.to(dtype).train()
        runs[run] = {"recipe": recipe_name, "from": start} | train(
            model, recipe, records, micro, dtype, run == "packed")
        ended[run] = {key: value.float().clone() for key, value in model.state_dict().items()}
    return runs


def largest_difference(curve, other):
    pairs = [(a, b) for key in ("losses", "grad_norms") for a, b in zip(curve[key], other[key])]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def compare_with_published(name, seed, records):
    """`Joined` computes what `LlavaForConditionalGeneration` does, where that can say the pair."""
    model = Joined(PAIRS[name], seed).eval()
    ids, mask, _, pixels = collate([record for record in records if len(record["pixels"])][:5], torch.float32)
    counts = (ids == IMAGE).sum().item() // IMAGE_TOKENS
    assert len(pixels) == counts
    with torch.no_grad():
        ours = model(ids, mask, pixels, IMAGE)
        theirs = published(model, IMAGE)(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    error = ((ours - theirs)[mask == 1].abs().max() / theirs.abs().max()).item()
    assert error < 1e-5, f"{name}: {error} from LlavaForConditionalGeneration"
    print(f"{name}: {error:.1e} from LlavaForConditionalGeneration")


def first_weights(name, seed):
    model = Joined(PAIRS[name], seed)
    found = {f"{name}.multi_modal_projector.{key}": value for key, value in model.projector.state_dict().items()}
    if "lora" in RUNS[name]:
        for key, value in with_adapters(model).language.state_dict().items():
            if "lora_" in key:
                found[f"{name}.language_model.{key.replace('.default', '')}"] = value
    return {key: value.contiguous().clone() for key, value in found.items()}


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    records = draw_records()
    chosen = sys.argv[1:] or list(PAIRS)
    weights = load_file(HERE / "weights.safetensors") if sys.argv[1:] else {}
    pairs = json.loads((HERE / "curves.json").read_text())["pairs"] if sys.argv[1:] else {}
    for name in chosen:
        pair, seed = PAIRS[name], 50 + list(PAIRS).index(name)
        weights |= first_weights(name, seed)
        if pair["language"] in ("qwen2", "llama", "vicuna", "qwen3") and pair["projector"] == "mlp2x_gelu":
            compare_with_published(name, seed, records)
        runs = run_pair(name, seed, records, MICRO, torch.float32)
        others = [run_pair(name, seed, records, *how) for how in ((1, torch.float32), (MICRO, torch.float64))]
        for run, curve in runs.items():
            curve["differs"] = [largest_difference(curve, other[run]) for other in others]
            first, last = (sum(part) / 10 for part in (curve["losses"][:10], curve["losses"][-10:]))
            print(f"{name} {run}: {first:.3f} -> {last:.3f}, differs by " + ", ".join(f"{x:.1e}" for x in curve["differs"]), flush=True)
        pairs[name] = pair | {"runs": runs}
        write(weights, pairs)


def write(weights, pairs):
    save_file(dict(sorted(weights.items())), HERE / "weights.safetensors")
    settings = {"steps": STEPS, "global": GLOBAL, "micro": MICRO, "max_length": MAX_LENGTH, "packed": PACKED,
                "rates": RATES, "lora": LORA, "image_token": IMAGE}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    written = {"versions": versions, "settings": settings, "pairs": dict(sorted(pairs.items()))}
    text = re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda list: "[" + " ".join(list[1].split()) + "]", json.dumps(written, indent=1))
    (HERE / "curves.json").write_text(text + "\n")


if __name__ == "__main__":
    assert MODELS.is_dir()
    main()
