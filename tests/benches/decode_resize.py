"""Photos per second and core from JPEG bytes to a tower's u8 planes, beside Pillow and torchvision, with the pixels compared.

    python tests/benches/decode_resize.py [--binary target/release/examples/decode_resize_throughput] [--repeats 7]
                                          [--sizes 640x480,2500x1786] [--sides 224,336,384] [--photos DIR] [--clock wall|cpu]

The binary: `cargo build --release -p vela-processor --example decode_resize_throughput`.
The script draws photos (noise in octaves as in nature, gradients, edges, a little sensor noise; JPEG quality 90, 4:2:0 and 4:4:4), or takes
those of DIR. Files lie in memory before any time counts; every competitor has one thread; they take turns, `repeats` times. Clock `cpu`
counts the time that a competitor had a processor, for machines that do other work as well:

- vela in modes `pillow` and `torchvision`;
- Pillow: `Image.open`, `convert("RGB")`, bicubic `resize` to the square, planes by numpy;
- torchvision: `decode_jpeg`, `resize` with antialias on the u8 tensor.

One Markdown table row for each size, sampling and side: photos per second of each (median of the repeats), ratios to Pillow, and the largest difference and
the share of differing bytes against the reference: Pillow for mode `pillow`, torchvision's resize of Pillow's pixels for mode `torchvision`.
The last line is the same as JSON, with minima and maxima.
"""

import argparse
import io
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

COUNTS = {"640x480": 32, "2500x1786": 6}


def octave(random: np.random.Generator, width: int, height: int, cell: int) -> np.ndarray:
    """Noise of one scale: a coarse grid, smoothly enlarged."""
    grid = random.normal(0, 1, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
    planes = [Image.fromarray(grid[..., channel]).resize((width, height), Image.Resampling.BICUBIC) for channel in range(3)]
    return np.stack([np.asarray(plane) for plane in planes], -1)


def draw_photo(width: int, height: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 120 + 60 * np.sin(x / width * 3 + seed) * np.cos(y / height * 2)
    pixels = np.repeat(light[..., None], 3, 2)
    cell = max(width, height) // 4
    while cell >= 2:
        common = octave(random, width, height, cell)
        # Brightness varies more than colour.
        pixels += (cell / width) ** 0.45 * 45 * (0.8 * common.mean(-1, keepdims=True) * 1.7 + 0.3 * common)
        cell //= 2
    for _ in range(12):
        left, top = random.integers(0, width), random.integers(0, height)
        pixels[top : top + height // 6, left : left + width // 8] += random.normal(0, 30, 3)
    pixels += random.normal(0, 2.5, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_sets(scratch: Path, size: str) -> dict[str, Path]:
    """The photos of one size, in a folder for each sampling."""
    width, height = (int(side) for side in size.split("x"))
    folders = {sampling: scratch / f"{size}-{sampling.replace(':', '')}" for sampling in ("4:2:0", "4:4:4")}
    for folder in folders.values():
        folder.mkdir()
    for index in range(COUNTS.get(size, 8)):
        photo = draw_photo(width, height, index)
        for sampling, folder in folders.items():
            photo.save(folder / f"{index:04d}.jpg", quality=90, subsampling=sampling)
    return {f"{size} {sampling}": folder for sampling, folder in folders.items()}


def pillow_tensor(data: bytes, side: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def resized(pixels: torch.Tensor, side: int) -> torch.Tensor:
    return transforms.resize(pixels, [side, side], interpolation=InterpolationMode.BICUBIC, antialias=True)


def torchvision_tensor(data: torch.Tensor, side: int) -> torch.Tensor:
    return resized(decode_jpeg(data, mode=ImageReadMode.RGB), side).contiguous()


def timed(function, files, side, clock) -> float:
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    started = now()
    for data in files:
        function(data, side)
    return now() - started


def vela(binary: str, folder: Path, side: int, mode: str, clock: str, output: Path | None = None) -> float:
    command = [binary, "--images", str(folder), "--side", str(side), "--mode", mode, "--passes", "1"]
    command += ["--output", str(output)] if output else []
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)[{"wall": "seconds", "cpu": "cpu_seconds"}[clock]][0]


def difference(found: np.ndarray, expected: np.ndarray) -> tuple[int, float]:
    apart = np.abs(found.astype(np.int16) - expected)
    return int(apart.max()), float((apart > 0).mean())


def compare(binary: str, folder: Path, files: list[bytes], side: int) -> dict:
    """Largest difference and share of differing bytes of each mode against its reference."""
    decoded = [torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1) for data in files]
    references = {
        "pillow": np.stack([pillow_tensor(data, side) for data in files]),
        "torchvision": np.stack([resized(pixels, side).numpy() for pixels in decoded]),
    }
    parity = {}
    with tempfile.TemporaryDirectory() as scratch:
        for mode, expected in references.items():
            output = Path(scratch) / mode
            vela(binary, folder, side, mode, "wall", output)
            parity[mode] = difference(np.fromfile(output, np.uint8).reshape(expected.shape), expected)
    parity["torchvision against Pillow"] = difference(references["torchvision"], references["pillow"])
    return parity


def measure(binary: str, folder: Path, side: int, repeats: int, clock: str) -> dict:
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    competitors = {
        "vela pillow": lambda: vela(binary, folder, side, "pillow", clock),
        "vela torchvision": lambda: vela(binary, folder, side, "torchvision", clock),
        "Pillow": lambda: timed(pillow_tensor, files, side, clock),
        "torchvision": lambda: timed(torchvision_tensor, tensors, side, clock),
    }
    timed(pillow_tensor, files, side, clock), timed(torchvision_tensor, tensors, side, clock)
    seconds = {name: [] for name in competitors}
    for _ in range(repeats):
        for name, run in competitors.items():
            seconds[name].append(run())
    rates = {name: [len(files) / value for value in values] for name, values in seconds.items()}
    pixels = [Image.open(io.BytesIO(data)).size for data in files]
    bits = 8 * sum(map(len, files)) / sum(width * height for width, height in pixels)
    return {"rates": rates, "bits_per_pixel": bits, "parity": compare(binary, folder, files, side)}


def table_row(name: str, result: dict) -> str:
    median = {key: statistics.median(values) for key, values in result["rates"].items()}
    parity = result["parity"]
    cells = [name, f"{result['bits_per_pixel']:.1f}"] + [f"{median[key]:.1f}" for key in median]
    cells += [f"{median['vela pillow'] / median['Pillow']:.2f}", f"{parity['pillow'][0]}, {parity['pillow'][1]:.2%}"]
    cells += [f"{median['vela torchvision'] / median['Pillow']:.2f}", f"{median['vela torchvision'] / median['torchvision']:.2f}"]
    cells += [f"{parity['torchvision'][0]}, {parity['torchvision'][1]:.2%}"]
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| photos -> side | bits/pixel | vela pillow | vela torchvision | Pillow | torchvision | pillow mode / Pillow | differs (max, bytes) "
    "| torchvision mode / Pillow | / torchvision | differs (max, bytes) |\n" + "|---" * 11 + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default="target/release/examples/decode_resize_throughput")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", default="640x480,2500x1786")
    parser.add_argument("--sides", default="224,336,384")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    print(HEADER)
    with tempfile.TemporaryDirectory() as scratch:
        sets = {str(args.photos): args.photos} if args.photos else {}
        for size in [] if args.photos else args.sizes.split(","):
            sets |= draw_sets(Path(scratch), size)
        for name, folder in sets.items():
            for side in (int(side) for side in args.sides.split(",")):
                row = f"{name} -> {side}"
                results[row] = measure(args.binary, folder, side, args.repeats, args.clock)
                print(table_row(row, results[row]), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
