"""What the fast image processors and LLaVA's padding make of pictures: expected values for vela-processor.

    requirements: pillow==13.0.0 transformers==5.23.0 torch torchvision numpy; a CPU with AVX2
    run:          python make_fast.py          (in this folder; writes `fast.json` beside the script)

`resizes`: the torchvision-backed CLIP, Chinese-CLIP and SigLIP image processors of transformers 5, without rescaling, on pictures
that the Rust test makes by the same formula (`hashed_pixels` of make.py). Without AVX2 torchvision resizes bilinearly in
floating point; the expected values are those of its integer arithmetic. `squares`: `expand2square` as LLaVA 1.5 does it before its
CLIP processor (the PIL one, and the torchvision one), written here from its description; compared with transformers' class for LLaVA.
"""
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ChineseCLIPImageProcessor, CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

HERE = Path(__file__).resolve().parent
FAST = {"CLIPImageProcessor": CLIPImageProcessor, "ChineseCLIPImageProcessor": ChineseCLIPImageProcessor,
        "SiglipImageProcessor": SiglipImageProcessor}
SLOW = {"CLIPImageProcessor": CLIPImageProcessorPil, "SiglipImageProcessor": SiglipImageProcessorPil}


def hashed_pixels(width, height, seed):
    """The picture that the Rust test makes by the same integer formula."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    word = (x * 2654435761 + y * 2246822519 + c * 3266489917 + seed * 668265263) & 0xFFFFFFFF
    word ^= word >> 15
    word = (word * 2246822519) & 0xFFFFFFFF
    noise = word >> 24
    block = ((x // 7) + (y // 5)) % 3
    return np.where(block == 0, noise, np.where(block == 1, 0, 255)).astype(np.uint8)


def processed(classes, config, picture):
    options = {key: value for key, value in config.items() if key not in ("image_processor_type", "image_aspect_ratio")}
    processor = classes[config["image_processor_type"]](**options)
    pixels = processor(images=picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    assert pixels.dtype == np.uint8, pixels.dtype
    return np.ascontiguousarray(pixels)


def fast_pixels(config, picture):
    """None where PyTorch 2.15 fails: some resizes of one-pixel sides stop at its own assertion."""
    try:
        return processed(FAST, config, picture)
    except RuntimeError as error:
        assert "INTERNAL ASSERT" in str(error), error
        print(f"no value for {picture.size} by {config}")
        return None


def digest(pixels):
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def draw_config(random, case):
    """Sizes up and down, crops larger and smaller, sides of one pixel."""
    filters = [3, 2, 3, 1, 2, 3, 0]
    resample = filters[case % len(filters)]
    if case % 3 == 0:
        return {"image_processor_type": "SiglipImageProcessor", "resample": resample,
                "size": {"height": int(random.integers(1, 160)), "width": int(random.integers(1, 160))}}
    name = ["CLIPImageProcessor", "ChineseCLIPImageProcessor"][case % 2]
    return {"image_processor_type": name, "resample": resample, "size": {"shortest_edge": int(random.integers(1, 100))},
            "crop_size": {"height": int(random.integers(1, 120)), "width": int(random.integers(1, 120))}}


def make_resizes(random):
    cases = []
    for case in range(160):
        width, height = (int(v) for v in random.integers(1, 140, 2))
        if case % 8 == 0:
            width = 1
        if case % 8 == 4:
            height = 1
        config = draw_config(random, case)
        if config.get("crop_size") and max(width, height) > 20 * min(width, height):
            config["size"]["shortest_edge"] = int(random.integers(1, 8))
        pixels = fast_pixels(config, Image.fromarray(hashed_pixels(width, height, case)))
        if pixels is None:
            continue
        cases.append({"width": width, "height": height, "seed": case, "config": config, "tensor": digest(pixels)})
    for side in (224, 336, 384):
        for width, height in ((640, 480), (427, 640), (1001, 333), (100, 75)):
            config = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side},
                      "crop_size": {"height": side, "width": side}}
            pixels = processed(FAST, config, Image.fromarray(hashed_pixels(width, height, side)))
            cases.append({"width": width, "height": height, "seed": side, "config": config, "tensor": digest(pixels)})
    return cases


def expand_to_square(picture, mean):
    """A square as wide as the longer side in the mean's colour, cut to whole numbers; the picture in its middle."""
    width, height = picture.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def make_squares(random):
    cases = []
    for case in range(40):
        width, height = (int(v) for v in random.integers(1, 140, 2))
        name = ["CLIPImageProcessor", "SiglipImageProcessor"][case % 2]
        side = int(random.integers(1, 100))
        config = {"image_processor_type": name, "image_mean": [round(float(v), 4) for v in random.uniform(0, 1, 3)],
                  "resample": [3, 2][case // 2 % 2]}
        config["size"] = {"shortest_edge": side} if case % 2 == 0 else {"height": side, "width": side}
        if case % 2 == 0:
            config["crop_size"] = {"height": side, "width": side}
        picture = Image.fromarray(hashed_pixels(width, height, case))
        square = expand_to_square(picture, config["image_mean"])
        slow, fast = processed(SLOW, config, square), fast_pixels(config, square)
        if fast is None:
            continue
        if case % 2 == 0:
            own = {**config, "do_pad": True}
            assert (processed({"CLIPImageProcessor": LlavaImageProcessor}, own, picture) == fast).all(), case
        cases.append({"width": width, "height": height, "seed": case, "config": {**config, "image_aspect_ratio": "pad"},
                      "pillow": digest(slow), "torchvision": digest(fast)})
    return cases


def main():
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    random = np.random.default_rng(21)
    content = json.dumps({"resizes": make_resizes(random), "squares": make_squares(random)})
    (HERE / "fast.json").write_text(content.replace("}, {", "},\n{") + "\n")


if __name__ == "__main__":
    main()
