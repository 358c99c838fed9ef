"""Seconds per training step of `trainer train` beside PyTorch on the same CPU.

    python tests/benches/train_step.py [--binaries target/release] [--tokenizer DIR] [--steps 60] [--repeats 3] [--threads 2]

It generates data with `pipeline demo-data`, builds shards, and runs these cases, the two competitors in turn:

- demo, full and stage 1 (projector alone): trainer/configs/model/demo.toml (projector `mlp2x_gelu`), 16 rows of 32x32 images;
- mllm, full and stage 1 (only with --tokenizer, the tokenizer files of a Qwen2.5 model): mllm_ch_tiny.toml, 8 rows of 224x224.

PyTorch is `LlavaForConditionalGeneration` of `transformers`, loaded from the checkpoint our run leaves (so config and sizes
are ours), eager, in f32, with `torch.optim.AdamW` and gradient clipping. Its rows have the mean length of ours and as many
labels, so it computes no padding. Both are measured over the steps after the first ones: wall time, and CPU time of the
process (user and system), which other load on the machine changes less. One JSON line: medians per step in milliseconds and
PyTorch's time over ours (above 1: ours is faster).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WARM = 5
ROWS = {"demo": 16, "mllm": 8}
PRESET = {"demo": "demo.toml", "mllm": "mllm_ch_tiny.toml"}
STAGES = {"full": "full", "stage1": "freeze_vision_and_llm"}
GROUPS = {"full": ["projector", "language_model", "vision_tower"], "stage1": ["projector"]}
IMAGES_224 = {
    "image_processor_type": "ChineseCLIPImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}\n{done.stdout}\n{done.stderr}")


def make_data(model: str, folder: Path, options: argparse.Namespace) -> Path:
    """The processor's folder; shards lie beside it."""
    pipeline, side = options.binaries / "pipeline", {"demo": 32, "mllm": 224}[model]
    run(pipeline, "demo-data", "--output", folder / "raw", "--samples", 800, "--heldout", 1, "--image-size", side)
    processor = folder / "raw" / "processor"
    if model == "mllm":
        processor = folder / "processor"
        processor.mkdir()
        for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"]:
            if (options.tokenizer / name).exists():
                shutil.copy(options.tokenizer / name, processor / name)
        (processor / "preprocessor_config.json").write_text(json.dumps(IMAGES_224))
    run(pipeline, "build-shards", "--source", "llava", "--input", folder / "raw/llava/demo_instruct.json",
        "--images", folder / "raw/llava/images", "--processor", processor, "--output", folder / "shards")
    return processor


def write_recipe(model: str, stage: str, folder: Path, processor: Path, steps: int) -> Path:
    rates = "\n".join(f"{group}.lr = 1e-4" for group in GROUPS[stage])
    path, preset = folder / f"{stage}.toml", folder / "preset.toml"
    # `LlavaForConditionalGeneration` knows no norm before the projector.
    preset.write_text((ROOT / "trainer/configs/model" / PRESET[model]).read_text().replace('"ln_mlp"', '"mlp2x_gelu"'))
    path.write_text(f"""
train_type = "{STAGES[stage]}"
[run]
output = "{folder / stage}"
seed = 1
max_steps = {steps}
[data]
shards = "{folder / 'shards'}"
[model]
init = "{preset}"
processor = "{processor}"
[batch]
global = {ROWS[model]}
max_length = 512
[groups]
{rates}
[logging]
every = 1
[checkpoint]
every = {steps}
""")
    return path


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_vela(recipe: Path, output: Path, options: argparse.Namespace) -> dict:
    """Slopes of wall and CPU time over the metrics lines after the first `WARM`."""
    shutil.rmtree(output, ignore_errors=True)
    environment = dict(os.environ, RAYON_NUM_THREADS=str(options.threads))
    command = [str(options.binaries / "trainer"), "train", "--recipe", str(recipe)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    metrics, seen = output / "metrics.jsonl", []
    while child.poll() is None:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if len(lines) >= WARM and (not seen or len(lines) > seen[-1][0]):
            try:
                seen.append((len(lines), cpu_seconds(child.pid)))
            except (FileNotFoundError, ProcessLookupError, IndexError):
                break
        time.sleep(0.01)
    if child.wait() != 0:
        sys.exit(child.stderr.read())
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    # The last line stands before the checkpoint, which is no part of a step.
    seen = [point for point in seen if point[0] < len(lines)]
    first, last = seen[0], seen[-1]
    rest = lines[WARM:]
    tokens = statistics.mean(line["tokens_per_second"] / line["samples_per_second"] for line in rest)
    labels = statistics.mean(line["label_tokens_per_second"] / line["samples_per_second"] for line in rest)
    return {
        "wall_ms": 1e3 * (lines[-1]["seconds"] - lines[WARM - 1]["seconds"]) / (len(lines) - WARM),
        "cpu_ms": 1e3 * (last[1] - first[1]) / (last[0] - first[0]),
        "data_wait": statistics.mean(line["data_wait"] for line in rest),
        "tokens_per_row": round(tokens),
        "labels_per_row": round(labels),
    }


def run_torch(work: dict) -> dict:
    """Runs in a process of its own; `work` names the checkpoint and the sizes."""
    import torch
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(work["threads"])
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(work["checkpoint"], dtype=torch.float32).train()
    if work["stage"] == "stage1":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    config, rows, columns = model.config, work["rows"], work["tokens_per_row"]
    side = config.vision_config.image_size
    images = (side // config.vision_config.patch_size) ** 2
    ids = torch.randint(0, min(400, config.text_config.vocab_size), (rows, columns))
    ids[ids == config.image_token_id] = 0
    ids[:, 4 : 4 + images] = config.image_token_id
    labels = ids.clone()
    labels[:, : columns - work["labels_per_row"]] = -100
    pixels = torch.rand(rows, 3, side, side)
    mask = torch.ones_like(ids)

    def step() -> float:
        loss = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    for _ in range(WARM):
        step()
    wall, cpu = time.monotonic(), time.process_time()
    for _ in range(work["steps"]):
        step()
    return {
        "wall_ms": 1e3 * (time.monotonic() - wall) / work["steps"],
        "cpu_ms": 1e3 * (time.process_time() - cpu) / work["steps"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", default="", help="only these, such as `demo-full,mllm-stage1`")
    parser.add_argument("--only", choices=["vela", "torch"], help="one competitor alone (torch still needs one run of ours)")
    parser.add_argument("--torch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torch:
        print(json.dumps(run_torch(json.loads(options.torch))))
        return
    models = ["demo", "mllm"] if options.tokenizer else ["demo"]
    cases = [(model, stage) for model in models for stage in STAGES]
    if options.cases:
        cases = [case for case in cases if "-".join(case) in options.cases.split(",")]
    found: dict[str, dict[str, list[dict]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        processors = {}
        for model in {model for model, _ in cases}:
            folder = Path(scratch) / model
            folder.mkdir()
            processors[model] = make_data(model, folder, options)
        for repeat in range(options.repeats):
            for model, stage in cases:
                folder = Path(scratch) / model
                runs = found.setdefault(f"{model}-{stage}", {"vela": [], "torch": []})
                if options.only != "torch" or repeat == 0:
                    recipe = write_recipe(model, stage, folder, processors[model], options.steps + WARM)
                    runs["vela"].append(run_vela(recipe, folder / stage, options))
                if options.only != "vela":
                    work = {
                        "checkpoint": str(next((folder / stage / "checkpoints").glob("step-*"))), "stage": stage,
                        "rows": ROWS[model], "steps": options.steps, "threads": options.threads,
                        **{key: runs["vela"][0][key] for key in ("tokens_per_row", "labels_per_row")},
                    }
                    command = [sys.executable, __file__, "--torch", json.dumps(work)]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode != 0:
                        sys.exit(done.stderr)
                    runs["torch"].append(json.loads(done.stdout.splitlines()[-1]))
    report = {}
    for case, runs in found.items():
        middle = {name: {key: round(statistics.median(run[key] for run in list_), 4) for key in list_[0]}
                  for name, list_ in runs.items() if list_}
        report[case] = middle
        if len(middle) == 2:
            for key in ("wall_ms", "cpu_ms"):
                middle[f"ratio_{key[:-3]}"] = round(middle["torch"][key] / middle["vela"][key], 3)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
