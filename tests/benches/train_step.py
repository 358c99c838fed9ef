"""A training step of `trainer train`, and a greedy answer of `trainer chat`, beside PyTorch and `transformers` on the same CPU.

    python tests/benches/train_step.py [--binaries target/release] [--qwen DIR] [--minimind DIR] [--cases LIST] [--steps 12] [--turns 3]

It generates data with `pipeline demo-data`, builds shards, makes weights, and runs these cases, the two competitors in turn:

| model | preset | rows of a step | needs |
|---|---|---|---|
| demo | demo.toml, `mlp2x_gelu` | 16, images of 32x32 | |
| minimind | minimind_v.toml: the language model of 26 million weights, CLIP ViT-B/16 at 224 | 16 in stage 1, 4 in stage 2, as its recipes | --minimind |
| mllm | mllm_ch_quarter.toml: all widths of mllm_ch a quarter | 4 in micro-batches of 2, as its recipes' micro-batches | --qwen |

`--qwen` and `--minimind` are folders with a tokenizer's files. Stages: `stage1` (projector alone), `stage2` (projector and language
model), `full` (demo). `MODEL-decode` asks one question about one image, greedy, with a key-value cache, 16 and 144 tokens: the
difference is the decoding, without start, tower and prompt.

Both start from the same weights (a checkpoint of ours) and take the same rows in the same order; padding is the collator's, up to
the longest row of a micro-batch. `train_step_peer.py` is the peer, once as it comes (`torch`) and once with logits where labels are
(`torch_labelled`). Losses step by step are compared. Times are of the steps after the first `WARM`: wall, and CPU of the process
(user and system). Peak memory is VmHWM of each process over these steps (the kernel's counter, reset by `/proc/PID/clear_refs` after
the first ones); what of it is mapped files (libraries) is told beside it. One JSON line: medians over the turns, least and most,
and ratios of ours to the peer's (below 1: ours is faster or smaller; for decoding, above 1 is faster).
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
PEER = Path(__file__).with_name("train_step_peer.py")
WARM = 5
LR = 1e-4
PRESET = {"demo": "demo.toml", "minimind": "minimind_v.toml", "mllm": "mllm_ch_quarter.toml"}
STAGES = {"full": "full", "stage1": "freeze_vision_and_llm", "stage2": "freeze_vision"}
GROUPS = {
    "full": ["projector", "language_model", "vision_tower"],
    "stage1": ["projector"],
    "stage2": ["projector", "language_model"],
}
# Rows of a step and of a micro-batch.
ROWS = {
    ("demo", "full"): (16, 16), ("demo", "stage1"): (16, 16),
    ("minimind", "stage1"): (16, 16), ("minimind", "stage2"): (4, 4),
    ("mllm", "stage1"): (4, 2), ("mllm", "stage2"): (4, 2),
}
SHORT, LONG = 16, 144
IMAGES_224 = {
    "image_processor_type": "CLIPImageProcessor",
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


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def make_data(model: str, folder: Path, options: argparse.Namespace) -> Path:
    """The processor's folder; shards lie beside it."""
    pipeline, side = options.binaries / "pipeline", 32 if model == "demo" else 224
    run(pipeline, "demo-data", "--output", folder / "raw", "--samples", 240, "--heldout", 1, "--image-size", side)
    processor = folder / "raw" / "processor"
    if model != "demo":
        processor, tokenizer = folder / "processor", {"minimind": options.minimind, "mllm": options.qwen}[model]
        processor.mkdir()
        for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"]:
            if (tokenizer / name).exists():
                shutil.copy(tokenizer / name, processor / name)
        (processor / "preprocessor_config.json").write_text(json.dumps(IMAGES_224))
    run(pipeline, "build-shards", "--source", "llava", "--input", folder / "raw/llava/demo_instruct.json",
        "--images", folder / "raw/llava/images", "--processor", processor, "--output", folder / "shards")
    return processor


def write_recipe(case: tuple[str, str], folder: Path, place: str, steps: int) -> Path:
    """`place` is the `[model]` table."""
    model, stage = case
    rates = "\n".join(f"{group}.lr = {LR}" for group in GROUPS[stage])
    rows, micro = ROWS[case]
    path = folder / f"{stage}.toml"
    path.write_text(f"""
train_type = "{STAGES[stage]}"
[run]
output = "{folder / stage}"
seed = 1
max_steps = {steps}
[data]
shards = "{folder / 'shards'}"
shuffle = false
[model]
{place}
[batch]
global = {rows}
micro = {micro}
max_length = 640
[groups]
{rates}
[schedule]
kind = "constant"
[logging]
every = 1
tensorboard = false
[checkpoint]
every = {steps}
""")
    return path


def make_weights(model: str, stage: str, folder: Path, processor: Path, options: argparse.Namespace) -> Path:
    """A checkpoint with the weights that both competitors start from."""
    # `LlavaForConditionalGeneration` knows no norm before the projector.
    text = (ROOT / "trainer/configs/model" / PRESET[model]).read_text().replace('"ln_mlp"', '"mlp2x_gelu"')
    # The table grows by `<image>`, to a multiple of 64, as `trainer init` makes it.
    text = text.replace("vocab_size = 6400", "vocab_size = 6464")
    (folder / "preset.toml").write_text(text)
    place = f'init = "{folder / "preset.toml"}"\nprocessor = "{processor}"'
    recipe = write_recipe((model, stage), folder, place, 1)
    # A rate that changes next to nothing: a step at a real one teaches a fresh model to end its answers at once.
    rates = [part for group in GROUPS[stage] for part in ("--set", f"groups.{group}.lr=1e-9")]
    run(options.binaries / "trainer", "train", "--recipe", recipe, "--set", f"run.output={folder / 'start'}", *rates)
    start = folder / "start/checkpoints/step-1"
    if not (start / "config.json").is_file():
        sys.exit(f"no checkpoint in {start}")
    # The export is what `transformers` opens: with a tokenizer of its own, and a linear projector as its class has it.
    if model != "demo":
        run(options.binaries / "trainer", "export", "--model", start, "--output", folder / "exported")
        return folder / "exported"
    return start


def account(pid: int, key: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise FileNotFoundError(key)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_vela(recipe: Path, output: Path, steps: int, options: argparse.Namespace) -> dict:
    """Slopes of wall and CPU time over the metrics lines after the first `WARM`, and the peak over them."""
    shutil.rmtree(output, ignore_errors=True)
    environment = dict(os.environ, RAYON_NUM_THREADS=str(options.threads))
    command = [str(options.binaries / "trainer"), "train", "--recipe", str(recipe), *options.set]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    metrics, seen, peak = output / "metrics.jsonl", [], (0.0, 0.0)
    while child.poll() is None:
        count = metrics.read_text().count("\n") if metrics.exists() else 0
        try:
            if count >= WARM and (not seen or count > seen[-1][0]):
                if not seen:
                    Path(f"/proc/{child.pid}/clear_refs").write_text("5")
                seen.append((count, cpu_seconds(child.pid)))
            # The last line stands before the checkpoint, which is no part of a step.
            if seen and count < WARM + steps:
                peak = (account(child.pid, "VmHWM:"), account(child.pid, "RssFile:"))
        except (FileNotFoundError, ProcessLookupError, IndexError):
            break
        time.sleep(0.005)
    if child.wait() != 0:
        sys.exit(child.stderr.read())
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seen = [point for point in seen if point[0] < len(lines)]
    (first, first_cpu), (last, last_cpu) = seen[0], seen[-1]
    ends = [line["seconds"] for line in lines[WARM - 1 :]]
    rest = lines[WARM:]
    return {
        "wall_ms": 1e3 * (ends[-1] - ends[0]) / (len(ends) - 1),
        "median_ms": 1e3 * statistics.median(b - a for a, b in zip(ends, ends[1:])),
        "cpu_ms": 1e3 * (last_cpu - first_cpu) / max(last - first, 1),
        "peak_mib": peak[0],
        "file_mib": peak[1],
        "tokens_per_row": statistics.mean(line["tokens_per_second"] / line["samples_per_second"] for line in rest),
        "labels_per_row": statistics.mean(line["label_tokens_per_second"] / line["samples_per_second"] for line in rest),
        "losses": [line["loss"] for line in lines],
    }


def run_peer(work: dict, options: argparse.Namespace) -> dict:
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads), MKL_NUM_THREADS=str(options.threads))
    done = subprocess.run([sys.executable, str(PEER), json.dumps(work)], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def train_case(case: tuple[str, str], folder: Path, start: Path, options: argparse.Namespace) -> dict[str, dict]:
    """One turn of each competitor."""
    (model, stage), (rows, micro) = case, ROWS[case]
    recipe = write_recipe(case, folder, f'path = "{start}"', options.steps + WARM)
    work = {
        "kind": "train", "checkpoint": str(start), "shards": str(folder / "shards"), "stage": STAGES[stage], "rows": rows,
        "micro": micro, "steps": options.steps, "threads": options.threads, "lr": LR,
    }
    found = {}
    for name in options.competitors:
        match name:
            case "vela":
                found[name] = run_vela(recipe, folder / stage, options.steps, options)
            case "torch":
                found[name] = run_peer({**work, "labelled": False}, options)
            case "torch_labelled":
                found[name] = run_peer({**work, "labelled": True}, options)
    return found


def decode_case(folder: Path, start: Path, options: argparse.Namespace) -> dict[str, dict]:
    image = sorted((folder / "raw/llava/images").iterdir())[0]
    question = "What do you see in this picture? Tell me everything about it."
    environment = dict(os.environ, RAYON_NUM_THREADS=str(options.threads))
    found = {}
    for name in options.competitors:
        if name == "vela":
            said = []
            for limit in (SHORT, LONG):
                command = [options.binaries / "trainer", "chat", "--model", start, "--image", image, "--question", question,
                           "--max-new-tokens", limit, "--json"]
                done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
                if done.returncode != 0:
                    sys.exit(done.stderr)
                said.append(json.loads(done.stdout.splitlines()[-1]))
            seconds = [answer["tokens"] / answer["tokens_per_second"] for answer in said]
            found[name] = {"seconds": seconds, "tokens": [answer["tokens"] for answer in said], "answer": said[1]["answer"]}
        elif name == "torch":
            work = {"kind": "generate", "checkpoint": str(start), "image": str(image), "question": question, "short": SHORT,
                    "long": LONG, "threads": options.threads, "shards": str(folder / "shards")}
            found[name] = run_peer(work, options)
    for answer in found.values():
        (few, many), (short, long) = answer["tokens"], answer.pop("seconds")
        answer["tokens"] = many
        answer["decode_tokens_per_second"] = (many - few) / (long - short)
        answer["tokens_per_second"] = many / long
    return found


def summary(runs: list[dict[str, dict]]) -> dict:
    """Medians of each competitor over the turns, [least, most], and ratios."""
    names = list(runs[0])
    report: dict = {}
    for name in names:
        report[name] = {}
        for key, value in runs[0][name].items():
            if isinstance(value, (int, float)):
                values = [turn[name][key] for turn in runs]
                report[name][key] = [round(number, 2) for number in (statistics.median(values), min(values), max(values))]
    for other in names:
        if other == "vela" or "vela" not in names:
            continue
        ratio = report[f"vela/{other}"] = {}
        for key in report[other]:
            if key in report["vela"] and report[other][key][0]:
                # Turn by turn: a pair ran one after the other.
                pairs = [turn["vela"][key] / turn[other][key] for turn in runs if turn[other][key]]
                ratio[key] = round(statistics.median(pairs), 3)
        ours, theirs = runs[0]["vela"], runs[0][other]
        if "losses" in ours:
            errors = [abs(a / b - 1) for a, b in zip(ours["losses"], theirs["losses"])]
            ratio["loss_error_first"], ratio["loss_error_most"] = errors[0], max(errors)
            ratio["loss_first"], ratio["loss_last"] = ours["losses"][0], ours["losses"][-1]
        if "answer" in ours:
            ratio["answers_equal"] = all(turn["vela"]["answer"] == turn[other]["answer"] for turn in runs)
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    parser.add_argument("--qwen", type=Path, help="tokenizer files of a Qwen2.5 model")
    parser.add_argument("--minimind", type=Path, help="tokenizer files of minimind")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", default="", help="only these, such as `minimind-stage1,mllm-decode`")
    parser.add_argument("--competitors", default="vela,torch,torch_labelled")
    parser.add_argument("--set", action="append", default=[], help="an override of our recipe, such as `batch.recompute=block`")
    parser.add_argument("--keep", type=Path, help="a folder that keeps data and weights for the next call")
    options = parser.parse_args()
    options.competitors = options.competitors.split(",")
    options.set = [part for value in options.set for part in ("--set", value)]
    cases = [*ROWS, ("minimind", "decode"), ("mllm", "decode")]
    has = {"demo": True, "minimind": options.minimind, "mllm": options.qwen}
    cases = [case for case in cases if has[case[0]]]
    if options.cases:
        cases = [case for case in cases if "-".join(case) in options.cases.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        scratch, starts = options.keep or Path(scratch), {}
        for model in dict.fromkeys(model for model, _ in cases):
            folder = scratch / model
            ready = folder / "ready.json"
            if not ready.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                stage = "full" if model == "demo" else "stage2"
                start = make_weights(model, stage, folder, make_data(model, folder, options), options)
                ready.write_text(json.dumps(str(start)))
            starts[model] = Path(json.loads(ready.read_text()))
        runs: dict[str, list] = {"-".join(case): [] for case in cases}
        for turn in range(options.turns):
            for model, stage in cases:
                folder, start = scratch / model, starts[model]
                found = decode_case(folder, start, options) if stage == "decode" else train_case((model, stage), folder, start, options)
                runs[f"{model}-{stage}"].append(found)
                print(f"turn {turn + 1}: {model}-{stage} " + json.dumps(summary([found])), file=sys.stderr, flush=True)
    print(json.dumps({case: summary(found) for case, found in runs.items()}))


if __name__ == "__main__":
    main()
