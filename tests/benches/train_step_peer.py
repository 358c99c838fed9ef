"""The peer of `train_step.py`: the same rows and weights in `LlavaForConditionalGeneration` of `transformers`, in PyTorch.

    python train_step_peer.py '{"kind": "train" | "generate", ...}'

It prints one JSON line. `train` reads the shards with pyarrow in the manifest's order, pads each micro-batch to its longest row
as a collator does (right, with an attention mask), and steps with `torch.optim.AdamW` and gradient clipping. `labelled` computes
logits for the columns that any row has labels in (`logits_to_keep` and `shift_labels`, the switches transformers has), without
it for all, as it comes. Peak memory is VmHWM over the measured steps: it is reset after the first ones.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

WARM = 5


def status(key: str) -> int:
    """A line of the system's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


def load(work: dict) -> LlavaForConditionalGeneration:
    torch.set_num_threads(work["threads"])
    return LlavaForConditionalGeneration.from_pretrained(work["checkpoint"], dtype=torch.float32)


class Rows:
    """The records of a shard set, in order, with image tokens expanded."""

    def __init__(self, folder: Path, config) -> None:
        import pyarrow.parquet as pq

        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.processor, self.image = self.manifest["processor"], config.image_token_id
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        self.image_tokens = (side // patch) ** 2
        self.records = []
        for shard in self.manifest["shards"]:
            table = pq.read_table(folder / shard["file"])
            columns = [table[name] for name in ("input_ids", "labels", "image_rows", "image_indices", "pixels")]
            for row in range(table.num_rows):
                ids, labels, places, indices = (column[row].as_py() for column in columns[:4])
                stored = [columns[4][place].as_buffer() for place in places]
                self.records.append((*self.expand(ids, labels), list(zip(stored, indices))))
        shape = self.processor["image_shape"]
        self.shape = (shape["channels"], shape["height"], shape["width"])
        scale = self.processor["normalization"]
        self.factor = scale["rescale_factor"]
        self.mean, self.std = (torch.tensor(scale[key]).view(1, -1, 1, 1) for key in ("mean", "std"))

    @staticmethod
    def end_of_turn(folder: Path) -> int:
        return json.loads((folder / "manifest.json").read_text())["processor"]["end_of_turn_id"]

    def expand(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        repeat = [self.image_tokens if token == self.image else 1 for token in ids]
        pairs = [(token, label) for token, label, n in zip(ids, labels, repeat) for _ in range(n)]
        return [token for token, _ in pairs], [label for _, label in pairs]

    def batch(self, first: int, count: int) -> dict[str, torch.Tensor]:
        rows = [self.records[index % len(self.records)] for index in range(first, first + count)]
        longest, padding = max(len(ids) for ids, _, _ in rows), self.processor["pad_token_id"]
        fill = lambda values, value: values + [value] * (longest - len(values))  # noqa: E731
        size = self.shape[0] * self.shape[1] * self.shape[2]
        images = [torch.frombuffer(buffer, dtype=torch.uint8, count=size, offset=index * size).view(self.shape)
                  for _, _, stored in rows for buffer, index in stored]
        return {
            "input_ids": torch.tensor([fill(ids, padding) for ids, _, _ in rows]),
            "attention_mask": torch.tensor([fill([1] * len(ids), 0) for ids, _, _ in rows]),
            "labels": torch.tensor([fill(labels, -100) for _, labels, _ in rows]),
            "pixel_values": (torch.stack(images) * self.factor - self.mean) / self.std,
        }


def labelled_columns(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits of the columns that predict a label, in any row."""
    labels = batch.pop("labels")
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    columns = (shifted != -100).any(0).nonzero().flatten()
    # `labels` makes the model compute a loss; it takes `shift_labels` then.
    kept = shifted[:, columns].contiguous()
    return {**batch, "labels": kept, "shift_labels": kept, "logits_to_keep": columns}


def train(work: dict) -> dict:
    model = load(work).train()
    if work["stage"] != "full":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    if work["stage"] == "freeze_vision":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=work["lr"], weight_decay=0.0)
    rows = Rows(Path(work["shards"]), model.config)
    place, losses, tokens = 0, [], 0

    def step() -> None:
        nonlocal place, tokens
        batches = [rows.batch(place + start, work["micro"]) for start in range(0, work["rows"], work["micro"])]
        place += work["rows"]
        tokens += sum(int(batch["attention_mask"].sum()) for batch in batches)
        # What a trainer passes as `num_items_in_batch`: the labels of the whole step.
        count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            batch = labelled_columns(batch) if work["labelled"] else batch
            loss = model(**batch, num_items_in_batch=count, use_cache=False).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)

    for _ in range(WARM):
        step()
    Path("/proc/self/clear_refs").write_text("5")
    wall, cpu, tokens = time.monotonic(), time.process_time(), 0
    each = []
    for _ in range(work["steps"]):
        before = time.monotonic()
        step()
        each.append(1e3 * (time.monotonic() - before))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {
        "wall_ms": 1e3 * wall / work["steps"],
        "median_ms": sorted(each)[len(each) // 2],
        "cpu_ms": 1e3 * cpu / work["steps"],
        "peak_mib": status("VmHWM:") / 2**20,
        "file_mib": status("RssFile:") / 2**20,
        "tokens_per_row": tokens / work["rows"] / work["steps"],
        "losses": losses,
    }


def generate(work: dict) -> dict:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2Tokenizer

    model = load(work).eval()
    # Without `tokenizer.json` the class is not found by itself.
    kind = AutoTokenizer if (Path(work["checkpoint"]) / "tokenizer.json").is_file() else Qwen2Tokenizer
    tokenizer = kind.from_pretrained(work["checkpoint"])
    images = AutoImageProcessor.from_pretrained(work["checkpoint"], use_fast=False)
    side, patch = model.config.vision_config.image_size, model.config.vision_config.patch_size
    count, image = (side // patch) ** 2, model.config.image_token_id
    question = f"{tokenizer.convert_ids_to_tokens(image)}\n{work['question']}"
    turns = [{"role": "user", "content": question}]
    prompt = dict(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True))
    stop = Rows.end_of_turn(Path(work["shards"]))

    def answer(max_new_tokens: int) -> tuple[list[int], float]:
        started = time.monotonic()
        pixels = images(Image.open(work["image"]), return_tensors="pt")["pixel_values"]
        ids = []
        for token in prompt["input_ids"]:
            ids += [token] * (count if token == image else 1)
        ids = torch.tensor([ids])
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, do_sample=False,
                                 max_new_tokens=max_new_tokens, eos_token_id=stop, pad_token_id=0)
        return out[0, ids.shape[1]:].tolist(), time.monotonic() - started

    answer(4)
    (short, short_seconds), (long, long_seconds) = answer(work["short"]), answer(work["long"])
    text = tokenizer.decode(long, skip_special_tokens=True).strip()
    return {"seconds": [short_seconds, long_seconds], "tokens": [len(short), len(long)], "answer": text}


if __name__ == "__main__":
    work = json.loads(sys.argv[1])
    print(json.dumps(train(work) if work["kind"] == "train" else generate(work)))
