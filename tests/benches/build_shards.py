"""Images per second of `pipeline build-shards` beside a Python script with Pillow and the Hugging Face processor.

    python tests/benches/build_shards.py --tokenizer DIR [--samples 2000] [--repeats 3] [--binary target/release/pipeline]

DIR holds the tokenizer files of a Qwen2.5 model. The script draws `samples` JPEG photos of 640x480 (smooth gradients, edges
and noise, quality 90, 4:2:0) with one caption each in the COCO layout, then runs the two competitors in turn, `repeats` times:

- vela: `pipeline build-shards --source coco`, with 1 and 2 workers;
- python: Pillow decode, the Chinese-CLIP image processor on its Pillow backend (224x224, bicubic, not cropped), chat template and
  tokenizer of `transformers`, one Parquet file by pyarrow; in 1 and 2 processes;
- datasets: the same work in `datasets.Dataset.map(num_proc=2)`, then `to_parquet`.

All write u8 pixels and token ids. Before any time counts, the pixels of the first 20 photos are compared byte for byte. At the end a build with 2
workers and small shards is killed at half of its shards and run again: `restart` says how many shards were kept and made again.
It prints one JSON line with medians, minima and maxima in samples per second and the peak resident bytes of `pipeline`.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 224
PREPROCESSOR = {
    "image_processor_type": "ChineseCLIPImageProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}


def draw_photos(folder: Path, samples: int) -> None:
    """Writes `samples` JPEGs and their captions in the COCO layout."""
    (folder / "images").mkdir(parents=True)
    rows, columns = np.mgrid[0:480, 0:640]
    images, annotations = [], []
    for index in range(samples):
        random = np.random.default_rng(index)
        waves = random.uniform(0.002, 0.05, (3, 2))
        planes = [127 + 80 * np.sin(rows * a + columns * b + index) for a, b in waves]
        pixels = np.stack(planes, -1) + random.normal(0, 8, (480, 640, 3))
        top, left = random.integers(0, 300, 2)
        pixels[top : top + 120, left : left + 160] = random.integers(0, 256, 3)
        name = f"{index:012d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / name, quality=90)
        images.append({"id": index, "file_name": name, "height": 480, "width": 640})
        caption = f"A photo with a coloured rectangle near row {top} and column {left}, number {index}."
        annotations.append({"image_id": index, "id": index, "caption": caption})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def make_processor(folder: Path, tokenizer: Path) -> None:
    """Joins a tokenizer's files and the image settings into one processor folder."""
    folder.mkdir()
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"]:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


class PythonBuilder:
    """What a user of Pillow and `transformers` writes."""

    def __init__(self, processor: Path):
        from transformers import AutoTokenizer
        from transformers.models.chinese_clip import image_processing_pil_chinese_clip as pil_backend

        self.tokenizer = AutoTokenizer.from_pretrained(processor)
        settings = dict(PREPROCESSOR, do_rescale=False, do_normalize=False)
        settings.pop("image_processor_type")
        self.image_processor = pil_backend.ChineseCLIPImageProcessorPil(**settings)

    def pixels(self, path: Path) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        return np.asarray(self.image_processor(image, return_tensors="np")["pixel_values"][0]).astype(np.uint8)

    def ids(self, caption: str) -> list[int]:
        messages = [{"role": "user", "content": "<image>\nDescribe the image."}, {"role": "assistant", "content": caption}]
        return self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]


def python_slice(arguments: tuple[Path, Path, Path, int, int]) -> None:
    """Builds samples `first, first + stride, ...` into one Parquet file."""
    data, processor, output, first, stride = arguments
    import torch

    torch.set_num_threads(1)
    builder = PythonBuilder(processor)
    captions = json.loads((data / "captions.json").read_text())
    ids, pixels = [], []
    for image, annotation in list(zip(captions["images"], captions["annotations"]))[first::stride]:
        ids.append(builder.ids(annotation["caption"]))
        pixels.append(builder.pixels(data / "images" / image["file_name"]).tobytes())
    table = pa.table({"input_ids": ids, "pixels": pa.array(pixels, pa.binary())})
    pq.write_table(table, output / f"{first}.parquet", compression={"input_ids": "zstd", "pixels": "none"},
                   use_dictionary=False, write_statistics=False, row_group_size=100)


def run_python(data: Path, processor: Path, output: Path, workers: int) -> float:
    output.mkdir()
    start = time.monotonic()
    jobs = [(data, processor, output, first, workers) for first in range(workers)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(python_slice, jobs)
    return time.monotonic() - start


def run_datasets(data: Path, processor: Path, output: Path, workers: int) -> float:
    """`datasets.map` with `workers` processes, cache and output in `output`, in a process of its own."""
    output.mkdir()
    start = time.monotonic()
    command = [sys.executable, __file__, "--tokenizer", processor, "--datasets-job", data, output, str(workers)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return time.monotonic() - start


def datasets_job(data: Path, processor: Path, output: Path, workers: int) -> None:
    import datasets
    import torch

    torch.set_num_threads(1)
    captions = json.loads((data / "captions.json").read_text())
    names = [str(data / "images" / image["file_name"]) for image in captions["images"]]
    texts = [annotation["caption"] for annotation in captions["annotations"]]
    rows = datasets.Dataset.from_dict({"image": names, "caption": texts})
    builders: dict[int, PythonBuilder] = {}

    def process(row: dict) -> dict:
        builder = builders.setdefault(0, None) or PythonBuilder(processor)
        builders[0] = builder
        return {"input_ids": builder.ids(row["caption"]), "pixels": builder.pixels(Path(row["image"])).tobytes()}

    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32")), "pixels": datasets.Value("binary")})
    made = rows.map(process, num_proc=workers, remove_columns=["image", "caption"], features=features,
                    cache_file_name=str(output / "cache.arrow"), writer_batch_size=100)
    made.to_parquet(output / "rows.parquet")


PEAKS: list[int] = []


def vela_command(binary: Path, data: Path, processor: Path, output: Path, workers: int) -> list[str]:
    command = [binary, "build-shards", "--source", "coco", "--input", data / "captions.json", "--images", data / "images",
               "--processor", processor, "--output", output, "--workers", str(workers), "--json"]
    return [str(part) for part in command]


def run_vela(binary: Path, data: Path, processor: Path, output: Path, workers: int) -> float:
    start = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(vela_command(binary, data, processor, output, workers), stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            # Not `ru_maxrss`: that of a child starts with what its parent held.
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                PEAKS.extend(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
            except FileNotFoundError:
                pass
            time.sleep(0.02)
        seconds = time.monotonic() - start
        if process.returncode != 0:
            errors.seek(0)
            sys.exit(errors.read().decode())
    return seconds


def restart_after_kill(binary: Path, data: Path, processor: Path, output: Path) -> dict:
    """Kills a build with 2 workers once half of its shards are there, and runs it again."""
    command = vela_command(binary, data, processor, output, 2) + ["--shard-size", "16MiB"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = len(json.loads((data / "captions.json").read_text())["annotations"])
    expected = -(-records // max(1, (16 << 20) // (3 * SIDE * SIDE + 4096)))
    while process.poll() is None and len(list(output.glob("*.parquet"))) < expected // 2:
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = len(list(output.glob("*.parquet")))
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return {"shards": report["shards"], "finished_before_the_kill": there, "kept": report["kept_shards"]}


def check_pixels(data: Path, processor: Path, vela_output: Path) -> int:
    """Largest difference over the first 20 photos between our shard and the Python pixels; the order is the file's."""
    builder = PythonBuilder(processor)
    shards = sorted(vela_output.glob("*.parquet"))
    largest, seen = 0, 0
    for shard in shards:
        table = pq.read_table(shard)
        column = next(name for name in table.column_names if "pixels" in name or name == "image")
        for value, sample in zip(table.column(column).to_pylist(), table.column("id").to_pylist()):
            if value is None or len(value) != 3 * SIDE * SIDE or seen == 20:
                continue
            name = f"{int(sample.split('/')[1]):012d}.jpg"
            expected = builder.pixels(data / "images" / name)
            found = np.frombuffer(value, np.uint8).reshape(3, SIDE, SIDE)
            largest = max(largest, int(np.abs(expected.astype(int) - found.astype(int)).max()))
            seen += 1
    assert seen == 20, f"expected 20 photos to compare, found {seen}"
    return largest


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--binary", type=Path, default=Path("target/release/pipeline"))
    parser.add_argument("--datasets-job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.datasets_job:
        data, output, workers = options.datasets_job
        datasets_job(Path(data), options.tokenizer, Path(output), int(workers))
        return
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        data, processor = scratch / "data", scratch / "processor"
        draw_photos(data, options.samples)
        make_processor(processor, options.tokenizer)
        seconds: dict[str, list[float]] = {}
        for repeat in range(options.repeats):
            for workers in (1, 2):
                for name in ("vela", "python", "datasets"):
                    output = scratch / f"{name}-{workers}-{repeat}"
                    if name == "vela":
                        took = run_vela(options.binary, data, processor, output, workers)
                    elif name == "python":
                        took = run_python(data, processor, output, workers)
                    elif workers == 2:
                        took = run_datasets(data, processor, output, workers)
                    else:
                        continue
                    seconds.setdefault(f"{name}_{workers}", []).append(took)
        difference = check_pixels(data, processor, scratch / "vela-1-0")
        restart = restart_after_kill(options.binary, data, processor, scratch / "restart")
        rates = {name: [options.samples / value for value in values] for name, values in seconds.items()}
        print(json.dumps({
            "samples": options.samples,
            "largest_pixel_difference": difference,
            "samples_per_second": {name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
                                   for name, values in rates.items()},
            "ratio_1_worker": statistics.median(rates["vela_1"]) / statistics.median(rates["python_1"]),
            "ratio_2_workers": statistics.median(rates["vela_2"]) / statistics.median(rates["python_2"]),
            "ratio_to_datasets_map": statistics.median(rates["vela_2"]) / statistics.median(rates["datasets_2"]),
            "peak_resident_bytes": max(PEAKS),
            "restart": restart,
        }))


if __name__ == "__main__":
    main()
