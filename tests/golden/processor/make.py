"""Expected values for vela-processor, made by the references themselves.

    requirements: pillow==13.0.0 transformers==5.23.0 tokenizers==0.23.3 torch torchvision numpy jinja2
    run:          python make.py            (in this folder; writes everything beside the script)

Pixels: Pillow decodes, `transformers.image_utils.load_image` orients and converts, the PIL image processors resize and
crop. Text: `apply_chat_template(return_assistant_tokens_mask=True)` with `{% generation %}` marks around each answer
and its end-of-turn token. (Text that looks like special tokens is in `../templates`: here it would become some.) The
Qwen2.5 cases need its published tokenizer files (folder `tokenizers/` in VELA_DATA, or in ../shared/data next to the
repository); only ids and masks are kept of it.
"""
import copy
import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.image_utils import load_image
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("VELA_DATA", HERE.parents[2].parent / "shared" / "data"))
CLASSES = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "ChineseCLIPImageProcessor": ChineseCLIPImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
}


def write_json(name, value):
    lines = json.dumps(value, ensure_ascii=False, indent=None, separators=(", ", ": "))
    (HERE / name).write_text(lines.replace("}, {", "},\n{") + "\n", encoding="utf-8")


# ---- pictures -------------------------------------------------------------------------------------------------------

def photo(width, height, seed, channels=3):
    """Smooth gradients, discs with hard edges, noise in one half."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for channel in range(channels):
        plane = 127 + 90 * np.sin(x / (9 + 4 * channel) + seed) * np.cos(y / (13 - 2 * channel))
        plane += np.where((x - width / 3) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2, 120 - 70 * channel, 0)
        plane += np.where(x > width / 2, random.normal(0, 30, (height, width)), 0)
        planes.append(plane)
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def png_bytes(width, height, depth, color_type, rows, chunks=()):
    """A PNG in modes Pillow does not write."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    extra = b"".join(chunk(kind, data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def patched_sampling(data, factors):
    """Other luma sampling factors over the same blocks: what they show is scrambled, but the same for every decoder."""
    at = data.index(b"\xff\xc0")
    data = bytearray(data)
    data[at + 11] = factors
    return bytes(data)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def make_files():
    """Name to file content."""
    rgb = Image.fromarray(photo(61, 47, 1))
    square = Image.fromarray(photo(64, 64, 2))
    gray = Image.fromarray(photo(45, 58, 3, 1)[..., 0])
    rgba = Image.fromarray(photo(40, 52, 4, 4))
    wide = Image.fromarray(photo(301, 83, 5))
    files = {}
    for name, sampling in [("444", 0), ("422", 1), ("420", 2)]:
        for picture, tag in [(rgb, "odd"), (wide, "wide")]:
            files[f"jpeg_{name}_{tag}.jpg"] = encoded(picture, "JPEG", quality=85, subsampling=sampling)
        files[f"jpeg_{name}_progressive.jpg"] = encoded(rgb, "JPEG", quality=60, subsampling=sampling, progressive=True)
    files["jpeg_440.jpg"] = patched_sampling(encoded(square, "JPEG", quality=90, subsampling=1), 0x12)
    files["jpeg_411.jpg"] = patched_sampling(encoded(square, "JPEG", quality=90, subsampling=2), 0x41)
    files["jpeg_restart.jpg"] = encoded(rgb, "JPEG", quality=75, restart_marker_blocks=2)
    files["jpeg_quality_5.jpg"] = encoded(rgb, "JPEG", quality=5)
    files["jpeg_quality_100.jpg"] = encoded(rgb, "JPEG", quality=100)
    files["jpeg_gray.jpg"] = encoded(gray, "JPEG", quality=80)
    files["jpeg_gray_progressive.jpg"] = encoded(gray, "JPEG", quality=80, progressive=True)
    files["jpeg_keep_rgb.jpg"] = encoded(rgb, "JPEG", quality=80, keep_rgb=True)
    cmyk = Image.fromarray(photo(48, 40, 6, 4), "CMYK")
    files["jpeg_cmyk.jpg"] = encoded(cmyk, "JPEG", quality=90)
    adobe = bytearray(files["jpeg_cmyk.jpg"])
    adobe[adobe.index(b"Adobe") + 11] = 2
    files["jpeg_ycck.jpg"] = bytes(adobe)
    files["jpeg_one_pixel.jpg"] = encoded(Image.new("RGB", (1, 1), (10, 200, 30)), "JPEG")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"exif_{orientation}.jpg"] = encoded(rgb, "JPEG", quality=70, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    files["exif_6.png"] = encoded(rgb.resize((30, 20)), "PNG", exif=exif)
    files["exif_6.webp"] = encoded(rgb.resize((30, 20)), "WEBP", lossless=True, exif=exif)
    files["exif_6.tiff"] = encoded(rgb.resize((30, 20)), "TIFF", exif=exif)
    palette = rgb.quantize(37)
    files["png_rgb.png"] = encoded(rgb, "PNG")
    files["png_rgba.png"] = encoded(rgba, "PNG")
    files["png_gray.png"] = encoded(gray, "PNG")
    files["png_gray_alpha.png"] = encoded(rgba.convert("LA"), "PNG")
    files["png_bits.png"] = encoded(gray.convert("1"), "PNG")
    files["png_palette.png"] = encoded(palette, "PNG")
    files["png_palette_4bit.png"] = encoded(rgb.quantize(9), "PNG", bits=4)
    files["png_palette_transparent.png"] = encoded(palette, "PNG", transparency=5)
    files["png_palette_alphas.png"] = encoded(palette, "PNG", transparency=bytes(range(0, 222, 6)))
    files["png_rgb_transparent.png"] = encoded(rgb, "PNG", transparency=tuple(photo(61, 47, 1)[3, 4].tolist()))
    files["png_gray_transparent.png"] = encoded(gray, "PNG", transparency=int(photo(45, 58, 3, 1)[5, 6, 0]))
    deep = (photo(33, 29, 7, 1)[..., 0].astype(np.uint16) * 5)
    files["png_gray16.png"] = encoded(Image.fromarray(deep), "PNG")
    deep = photo(33, 29, 8, 4).astype(">u2") * 257 + 100
    for name, color_type, channels in [("gray16_alpha", 4, 2), ("rgb16", 2, 3), ("rgba16", 6, 4)]:
        rows = [np.ascontiguousarray(row[:, :channels]).tobytes() for row in deep.astype(">u2")]
        files[f"png_{name}.png"] = png_bytes(33, 29, 16, color_type, rows)
    rows = [np.ascontiguousarray(row[:, 0]).tobytes() for row in deep.astype(">u2")]
    files["png_gray16_transparent.png"] = png_bytes(33, 29, 16, 0, rows, [(b"tRNS", rows[3][:2])])
    rows = [np.packbits(np.unpackbits(photo(32, 16, 9, 1)[r, :, :1], axis=1)[:, :2]).tobytes() for r in range(16)]
    files["png_gray_2bit.png"] = png_bytes(32, 16, 2, 0, rows)
    files["gif_palette.gif"] = encoded(palette, "GIF")
    files["gif_transparent.gif"] = encoded(palette, "GIF", transparency=3)
    frames = [Image.fromarray(photo(32, 24, seed)).quantize(16) for seed in (10, 11)]
    files["gif_animated.gif"] = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    files["webp_lossy.webp"] = encoded(wide, "WEBP", quality=70)
    files["webp_lossless.webp"] = encoded(rgb, "WEBP", lossless=True)
    files["webp_alpha.webp"] = encoded(rgba, "WEBP", lossless=True, exact=True)
    files["bmp_rgb.bmp"] = encoded(rgb, "BMP")
    files["bmp_palette.bmp"] = encoded(palette, "BMP")
    files["bmp_bits.bmp"] = encoded(gray.convert("1"), "BMP")
    files["tiff_rgb_lzw.tiff"] = encoded(rgb, "TIFF", compression="tiff_lzw")
    files["tiff_gray.tiff"] = encoded(gray, "TIFF")
    files["tiff_bits.tiff"] = encoded(gray.convert("1"), "TIFF")
    return files


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def tower_input(image, config):
    # `load_image` drops alpha but leaves a palette's transparency note, which the processor would then blend on white.
    image = Image.fromarray(np.array(image))
    processor = CLASSES[config["image_processor_type"]](**{k: v for k, v in config.items() if k != "image_processor_type"})
    pixels = processor(images=image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    assert pixels.dtype == np.uint8, pixels.dtype
    return pixels


CONFIGS = [
    {"image_processor_type": "CLIPImageProcessor"},
    {"image_processor_type": "ChineseCLIPImageProcessor", "size": {"height": 56, "width": 40}, "do_center_crop": False},
    {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}, "resample": 3},
    {"image_processor_type": "CLIPImageProcessor", "size": 33, "crop_size": {"height": 47, "width": 21}, "resample": 2},
    {"image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": 50},
]


def hashed_pixels(width, height, seed):
    """The picture that the Rust test makes by the same integer formula: noise, with flat blocks of black and white."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    word = (x * 2654435761 + y * 2246822519 + c * 3266489917 + seed * 668265263) & 0xFFFFFFFF
    word ^= word >> 15
    word = (word * 2246822519) & 0xFFFFFFFF
    noise = word >> 24
    block = ((x // 7) + (y // 5)) % 3
    return np.where(block == 0, noise, np.where(block == 1, 0, 255)).astype(np.uint8)


def make_pixels():
    folder = HERE / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cases = []
    for name, content in make_files().items():
        path = folder / name
        path.write_bytes(content)
        image = load_image(str(path))
        tensors = [digest(tower_input(image, config)) for config in CONFIGS]
        cases.append({"file": name, "width": image.width, "height": image.height, "rgb": digest(np.array(image)),
                      "tensors": tensors})
    random = np.random.default_rng(12)
    resizes = []
    for case in range(150):
        width, height = (int(v) for v in random.integers(1, 130, 2))
        if case % 3 == 0:
            config = {"image_processor_type": "SiglipImageProcessor", "resample": int(random.integers(0, 6)),
                      "size": {"height": int(random.integers(1, 150)), "width": int(random.integers(1, 150))}}
        else:
            config = {"image_processor_type": "CLIPImageProcessor", "resample": int(random.integers(0, 6)),
                      "size": {"shortest_edge": int(random.integers(1, 90))},
                      "crop_size": {"height": int(random.integers(1, 110)), "width": int(random.integers(1, 110))}}
        pixels = tower_input(Image.fromarray(hashed_pixels(width, height, case)), config)
        resizes.append({"width": width, "height": height, "seed": case, "config": config, "tensor": digest(pixels)})
    small = tower_input(Image.fromarray(hashed_pixels(9, 7, 0)), {"image_processor_type": "SiglipImageProcessor",
                                                                  "size": {"height": 4, "width": 5}})
    write_json("pixels.json", {"configs": CONFIGS, "files": cases, "resizes": resizes,
                               "in_full": {"width": 9, "height": 7, "seed": 0, "out_height": 4, "out_width": 5,
                                           "chw": small.flatten().tolist()}})


# ---- text -----------------------------------------------------------------------------------------------------------

LLAMA3_TEMPLATE = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN_TEMPLATE = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- elif (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")

CORPUS = [
    "The red circle is to the left of the blue square. What colour is the triangle? It is green.",
    "There are three shapes in the picture. How many circles do you see? I see two circles and a square.",
    "图片中有一个红色的圆形和一个蓝色的方形。三角形是什么颜色的？三角形是绿色的。",
    "这张图片展示了什么？画面中央有一只猫，坐在沙发上，背景是一扇明亮的窗户。",
    "You are a helpful assistant. Describe the image in detail. assistant user system",
    "Today Date: 26 Jul 2024 0123456789 the the the of and to in is it that",
]

DIALOGUES = {
    "one turn": [("user", "<image>\nWhat is this?"), ("assistant", "A red circle.")],
    "mark last": [("user", "What colour is the triangle?\n<image>"), ("assistant", "It is green.")],
    "system and three turns": [
        ("system", "Be brief."), ("user", "<image>\nHow many circles?"), ("assistant", "Two."),
        ("user", "And squares?"), ("assistant", "One square, to the left."), ("user", "Sure?"), ("assistant", "Yes")],
    "Chinese": [("user", "<image>\n这张图片展示了什么？"), ("assistant", "画面中央有一只猫，坐在沙发上。"),
                ("user", "背景呢？"), ("assistant", "背景是一扇明亮的窗户。")],
    "emoji and rare letters": [("user", "Say 👩‍👩‍👧‍👦 in 𝔘nicode 🏳️‍🌈"), ("assistant", "👩‍👩‍👧‍👦🎉 𠮷野家 é ñ ﷽"),
                               ("user", "🤷🏽"), ("assistant", "🤷🏽‍♀️")],
    "decomposed accents": [("user", "Cafe\u0301 A\u030a \u1112\u1161\u11ab"), ("assistant", "re\u0301sume\u0301 \u1112\u1161\u11ab")],
    "white space inside": [("user", "a\n\n\n  b\t\tc\r\nd"), ("assistant", "line one\n\n    indented\n\ttab  end."),
                           ("user", "more"), ("assistant", "1,234.5  =  six\n\n")],
    "white space outside": [("user", "  padded question \n"), ("assistant", "  padded answer  "),
                            ("user", "x"), ("assistant", "trailing\n")],
    "leading newlines": [("user", "x"), ("assistant", "\n\nanswer after blank lines")],
    "several images": [("user", "<image><image>\nCompare <image> with them."), ("assistant", "The same."),
                       ("user", "<image>?"), ("assistant", "Another.")],
    "long": [("user", "Describe the image in detail. " * 20), ("assistant", "There are three shapes. " * 40)],
}


def train(folder, split, specials, template, config, as_files):
    """A small tokenizer in the layout of the family it stands for."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if as_files else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    first = tokenizer.get_vocab_size()
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    listed = {str(first + index): {"content": token, **flags} for index, token in enumerate(specials)}
    if as_files:
        tokenizer.model.save(str(folder))
        config = {**config, "added_tokens_decoder": listed}
    else:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
        bos = config["bos_token"]
        # Llama 3 adds a BOS to whatever it encodes: the doubled BOS of many training scripts.
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                          special_tokens=[(bos, tokenizer.token_to_id(bos))])])
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {**config, "chat_template": plain(template)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(CONFIGS[0]) + "\n")


def plain(template):
    return template.replace("{%- generation %}", "").replace("{% endgeneration %}", "")


def text_cases(folder, marked_template, check_template=None):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.convert_tokens_to_ids("<image>") in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    cases = []
    for name, dialogue in DIALOGUES.items():
        messages = [{"role": role, "content": text} for role, text in dialogue]
        options = {"date_string": "26 Jul 2024"}
        out = tokenizer.apply_chat_template(messages, chat_template=marked_template, tokenize=True, return_dict=True,
                                            return_assistant_tokens_mask=True, **options)
        text = tokenizer.apply_chat_template(messages, chat_template=marked_template, tokenize=False, **options)
        if check_template:
            assert text == tokenizer.apply_chat_template(messages, chat_template=check_template, tokenize=False), name
        prompt = tokenizer.apply_chat_template(messages[:-1], chat_template=marked_template, tokenize=True,
                                               return_dict=True, add_generation_prompt=True, **options)
        cases.append({"name": name, "turns": dialogue, "text": text, "ids": out["input_ids"],
                      "mask": "".join(map(str, out["assistant_masks"])), "prompt_ids": prompt["input_ids"],
                      "decoded": tokenizer.decode(out["input_ids"])})
    return cases


def with_marks(template):
    """Qwen2.5's own template, with its answers set apart by generation marks."""
    branch = '{%- if (message.role == "user")'
    assert template.count(branch) == 1
    return template.replace(branch, (
        '{%- if message.role == "assistant" and not message.tool_calls %}'
        "{{- '<|im_start|>assistant\\n' }}{%- generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}"
        "{{- '\\n' }}\n    {%- elif (message.role == \"user\")"))


def make_text():
    train(HERE / "llama3", LLAMA3_SPLIT, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
          "<|end_header_id|>", "<|eot_id|>"], LLAMA3_TEMPLATE,
          {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
           "clean_up_tokenization_spaces": False}, as_files=False)
    train(HERE / "qwen2", QWEN_SPLIT, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], QWEN_TEMPLATE,
          {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "bos_token": None, "eos_token": "<|im_end|>",
           "pad_token": "<|endoftext|>", "unk_token": None, "clean_up_tokenization_spaces": False}, as_files=True)
    cases = {"llama3": text_cases(HERE / "llama3", LLAMA3_TEMPLATE),
             "qwen2": text_cases(HERE / "qwen2", QWEN_TEMPLATE, plain(QWEN_TEMPLATE))}
    published = DATA / "tokenizers" / "qwen2.5-0.5b-instruct"
    if published.is_dir():
        template = json.loads((published / "tokenizer_config.json").read_text())["chat_template"]
        cases["qwen2.5"] = text_cases(published, with_marks(template), template)
    write_json("text.json", cases)


if __name__ == "__main__":
    make_text()
    make_pixels()
