"""What every peer's script shares: the samples, the clock, the account of processor time."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIDE, TOKENS, BATCH = 336, 512, 32
PIXEL_BYTES, TOKEN_BYTES = 3 * SIDE * SIDE, 4 * TOKENS
SAMPLE_BYTES = PIXEL_BYTES + 2 * TOKEN_BYTES


def sample(index):
    """Pixels, ids and labels of sample `index`, as bytes."""
    random = np.random.default_rng(index)
    ids = random.integers(0, 400, TOKENS, dtype=np.int32).tobytes()
    return {"pixels": random.integers(0, 256, PIXEL_BYTES, dtype=np.uint8).tobytes(), "input_ids": ids, "labels": ids}


def collate(rows):
    """Rows of bytes to torch tensors [B, 3, H, W], [B, T], [B, T]."""
    import torch

    def stack(name, kind):
        joined = bytearray().join(row[name] for row in rows)
        return torch.frombuffer(joined, dtype=kind).view(len(rows), -1)

    return stack("pixels", torch.uint8).view(-1, 3, SIDE, SIDE), stack("input_ids", torch.int32), stack("labels", torch.int32)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=3072)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the samples and end")
    return parser.parse_args()


def processor_seconds():
    """User and system time of this process and of all that descend from it and live."""
    parents, ticks = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry)], ticks[int(entry)] = int(fields[1]), int(fields[11]) + int(fields[12])

    def is_ours(process):
        while process not in (0, os.getpid()):
            process = parents.get(process, 0)
        return process == os.getpid()

    return sum(ticks[process] for process in ticks if is_ours(process)) / os.sysconf("SC_CLK_TCK")


def measure(batches, seconds):
    """Takes batches, given as an endless iterator, for a second of warm-up and then for `seconds`; prints one JSON line."""
    warm = time.monotonic()
    while time.monotonic() - warm < 1:
        next(batches)
    start, before, samples = time.monotonic(), processor_seconds(), 0
    while time.monotonic() - start < seconds:
        samples += len(next(batches)[0])
    elapsed, used = time.monotonic() - start, processor_seconds() - before
    gigabytes = samples * SAMPLE_BYTES / 1e9
    print(json.dumps({"samples_per_second": samples / elapsed, "cpu_seconds_per_gigabyte": used / gigabytes}))


@contextlib.contextmanager
def served(script, *arguments):
    """`script` run again with `serve`, for as long as the block lasts: the first line that it prints."""
    server = subprocess.Popen([sys.executable, script, "serve", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def endless(loader):
    """Epoch after epoch of `loader`."""
    while True:
        yield from loader
