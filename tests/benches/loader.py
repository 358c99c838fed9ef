"""Samples per second of Vela's loader, in process and over gRPC, beside MosaicML streaming reading the same tensors.

    python tests/benches/loader.py [--seconds 5] [--repeats 3] [--profile release]

Both sides hold 512 samples of 3x336x336 u8 pixels and 500 tokens with labels in a temporary folder, read in shuffled order, and hand out
batches of 32. Vela's side is
`services/loader/examples/loader_throughput.rs`, built here; server and client share the machine. Competitors
run in turn, `repeats` times. It prints one JSON line with medians, minima and maxima in samples per second.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

SAMPLES, SIDE, TOKENS, BATCH = 512, 336, 500, 32


def vela(folder: Path, example: str, seconds: float) -> dict:
    command = [folder / example, "--seconds", str(int(seconds))]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_streaming(folder: str) -> None:
    from streaming import MDSWriter

    columns = {"pixels": "bytes", "input_ids": "bytes", "labels": "bytes"}
    with MDSWriter(out=folder, columns=columns, size_limit="64mb") as writer:
        for index in range(SAMPLES):
            random = np.random.default_rng(index)
            ids = random.integers(0, 400, TOKENS, dtype=np.int32).tobytes()
            pixels = random.integers(0, 256, 3 * SIDE * SIDE, dtype=np.uint8).tobytes()
            writer.write({"pixels": pixels, "input_ids": ids, "labels": ids})


def streaming(folder: str, seconds: float) -> float:
    import torch
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    def collate(rows):
        def stack(name, kind):
            return torch.stack([torch.frombuffer(bytearray(row[name]), dtype=kind) for row in rows])

        return stack("pixels", torch.uint8).view(-1, 3, SIDE, SIDE), stack("input_ids", torch.int32), stack("labels", torch.int32)

    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=collate)
    for _ in loader:
        pass
    start, samples = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        for batch in loader:
            samples += len(batch[0])
    return samples / (time.monotonic() - start)


def summary(values: list[float]) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", default="release")
    options = parser.parse_args()
    build = ["cargo", "build", "--profile", options.profile, "--workspace", "--examples"]
    subprocess.run(build, check=True)
    folder = Path("target") / {"dev": "debug"}.get(options.profile, options.profile) / "examples"
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_streaming(scratch)
        for _ in range(options.repeats):
            report = vela(folder, "loader_throughput", options.seconds)
            rates.setdefault("vela_in_process", []).append(report["in_process"]["samples_per_second"])
            rates.setdefault("vela_grpc", []).append(report["grpc"]["samples_per_second"])
            rates.setdefault("mosaicml_streaming", []).append(streaming(scratch, options.seconds))
    result = {name: summary(values) for name, values in rates.items()}
    peer = result["mosaicml_streaming"]["median"]
    ratios = {f"{name}_ratio": result[name]["median"] / peer for name in ("vela_in_process", "vela_grpc")}
    print(json.dumps({"batch": BATCH, "samples_per_second": result, **ratios}))


if __name__ == "__main__":
    main()
