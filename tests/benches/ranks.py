"""Seconds per training step of two ranks with one thread each beside one process with two threads.

    python tests/benches/ranks.py --trainer TRAINER_WITH_FEATURE_MPI [--binaries target/release] [--tokenizer DIR] [--steps 60] [--repeats 3]

Data and recipes are those of train_step.py, with `batch.micro` half the global batch, so that both cut a step into the same
micro-batches: one process takes them after one another, two ranks at the same time, and the sums are the same bits. The cases
run in turn. One JSON line: medians per step in milliseconds, and the time of one process over that of two ranks (above 1: two
ranks are faster). `values` are the gradient's, which every step sums over the ranks.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from train_step import ROWS, STAGES, WARM, make_data, write_recipe


def run_case(recipe: Path, micro: int, ranks: int, threads: int, trainer: Path) -> dict:
    output = recipe.parent / f"run-{ranks}-{threads}"
    shutil.rmtree(output, ignore_errors=True)
    launcher = ["mpirun", "-n", str(ranks), "--bind-to", "none", "--allow-run-as-root"] if ranks > 1 else []
    sets = ["--set", f"run.output={output}", "--set", f"batch.micro={micro}"]
    command = [*launcher, str(trainer), "train", "--recipe", str(recipe), *sets]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, RAYON_NUM_THREADS=str(threads)))
    if done.returncode != 0:
        sys.exit(done.stderr)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rest = [b["seconds"] - a["seconds"] for a, b in zip(lines[WARM:], lines[WARM + 1 :])]
    card = json.loads((output / "run.json").read_text())
    return {"ms": 1e3 * statistics.median(rest), "values": card["trained"], "losses": [line["loss"] for line in lines]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", type=Path, required=True)
    parser.add_argument("--binaries", type=Path, default=Path("target/release"))
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = {}
    for model in ["demo", *(["mllm"] if options.tokenizer else [])]:
        with tempfile.TemporaryDirectory() as folder:
            processor = make_data(model, Path(folder), options)
            for stage in STAGES:
                recipe = write_recipe(model, stage, Path(folder), processor, options.steps)
                cases, values = {(1, 2): [], (2, 1): [], (1, 1): []}, 0
                for _ in range(options.repeats):
                    found = {case: run_case(recipe, ROWS[model] // 2, *case, options.trainer) for case in cases}
                    assert found[1, 2]["losses"] == found[2, 1]["losses"], "the bits differ"
                    for case, measured in found.items():
                        cases[case].append(measured["ms"])
                        values = measured["values"]
                ms = {case: statistics.median(times) for case, times in cases.items()}
                results[f"{model} {stage}"] = {
                    "values": values,
                    "one_process_two_threads_ms": round(ms[1, 2], 1),
                    "two_ranks_one_thread_ms": round(ms[2, 1], 1),
                    "one_process_one_thread_ms": round(ms[1, 1], 1),
                    "ratio": round(ms[1, 2] / ms[2, 1], 3),
                }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
