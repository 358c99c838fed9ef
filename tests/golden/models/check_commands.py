"""Joins published-style checkpoints with `trainer init`, exports them with `trainer export`, and asks both sides the same
question: the folder must open in `transformers` with nothing missing or unexpected, and the greedy answers, to a prompt and
an image as the folder's own processor reads them, must be equal.

    requirements: torch torchvision pillow transformers==5.* safetensors
    cargo build -p vela-train
    python tests/golden/models/check_commands.py target/debug/trainer FOLDER

Towers and language models are small and random, written by `transformers` in the layouts in use: a whole CLIP, Chinese-CLIP
or SigLIP, one file or shards, f32 or bf16. The first Qwen and minimind come from the folders beside this file.
Last result: see `check_commands.txt`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import transformers as hf
from make import HERE, LANGUAGE, LLAMA3, TEXT_HALF, VISION, randomise
from PIL import Image

PROCESSOR = HERE.parent / "train" / "processor"
QUESTION = "w9 w10 ?"


def towers():
    siglip_text = dict(TEXT_HALF, projection_size=8)
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=dict(TEXT_HALF, eos_token_id=2), vision_config=VISION, projection_dim=8))
    chinese = hf.ChineseCLIPConfig(text_config=TEXT_HALF, vision_config=VISION, projection_dim=8)
    return dict(clip=clip, chinese_clip=hf.ChineseCLIPModel(chinese),
                siglip=hf.SiglipModel(hf.SiglipConfig(text_config=siglip_text, vision_config=VISION)))


def languages():
    """Of as many rows as the tokenizer has ids, so that every answer has words."""
    sizes = dict(LANGUAGE, vocab_size=48)
    return dict(qwen2=hf.Qwen2ForCausalLM(hf.Qwen2Config(**sizes, tie_word_embeddings=True)),
                llama=hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, head_dim=8, rope_parameters=LLAMA3)),
                qwen3=hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes, head_dim=8)))


def make_parts(root):
    pixels = (PROCESSOR / "preprocessor_config.json").read_text().replace("16", "14")
    for seed, (name, model) in enumerate(towers().items()):
        randomise(model, 40 + seed).save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(pixels)
    for seed, (name, model) in enumerate(languages().items()):
        randomise(model, 10 + seed).save_pretrained(root / name)
        model.to(torch.bfloat16).save_pretrained(root / f"{name}_bf16_shards", max_shard_size="10KB")
    for name in ["qwen", "minimind", "minimind3", "vicuna"]:
        shutil.copytree(HERE / f"language_{name}", root / name)
    for folder in [path for path in root.iterdir() if not (path / "preprocessor_config.json").exists()]:
        for name in ["tokenizer.json", "tokenizer_config.json"]:
            shutil.copy(PROCESSOR / name, folder / name)


def run(*arguments):
    done = subprocess.run([sys.argv[1], *map(str, arguments), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return json.loads(done.stdout)


def ask_transformers(folder, image, count):
    model, report = hf.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    left = {kind: found for kind, found in report.items() if found}
    assert not left, f"{folder}: {left}"
    processor = hf.AutoProcessor.from_pretrained(folder)
    turns = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
    tokenizer = processor.tokenizer
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    out = model.eval().generate(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], do_sample=False,
                                max_new_tokens=count, output_scores=True, return_dict_in_generate=True)
    leads = [score[0].topk(2).values for score in out.scores]
    ids = out.sequences[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(ids, skip_special_tokens=True).split(), min((top[0] - top[1]).item() for top in leads), len(ids)


def check(root, image, case):
    vision, language, projector, more = case
    name = "-".join([vision, language, projector, *(flag.strip("-") for flag in more)])
    joined, exported = root / f"{name}.joined", root / f"{name}.export"
    run("init", "--vision", root / vision, "--language", root / language, "--projector", projector, "--output", joined,
        "--seed", 5)
    run("export", "--model", joined, "--output", exported, *more)
    said = {}
    for folder in [joined, exported]:
        asked = run("chat", "--model", folder, "--image", image, "--question", QUESTION, "--max-new-tokens", 10)
        said[folder] = asked["answer"].split()
    there, lead, count = ask_transformers(exported, Image.open(image), 10)
    assert there, f"{name}: an answer without a word shows nothing"
    assert there == said[exported] or lead < 1e-3, f"{name}: {there}, here {said[exported]}, lead {lead}"
    if "bf16" not in more:
        assert said[joined] == said[exported], f"{name}: {said}"
    same = "equal" if there == said[exported] else f"hang on {lead:.1e}"
    print(f"{name}: opens with nothing missing or unexpected, {count} tokens of an answer ({len(there)} words) {same}")


def main():
    root = Path(sys.argv[2])
    root.mkdir(parents=True)
    make_parts(root)
    image = root / "photo.png"
    generator = torch.Generator().manual_seed(5)
    Image.fromarray(torch.randint(0, 256, (30, 20, 3), generator=generator, dtype=torch.uint8).numpy()).save(image)
    print(f"torch {torch.__version__}, transformers {hf.__version__}")
    mlp, linear = "mlp2x_gelu", "linear"
    for case in [
        ("chinese_clip", "qwen2", mlp, []),
        ("siglip", "llama", mlp, []),
        ("clip", "qwen3_bf16_shards", mlp, []),
        ("siglip", "qwen2_bf16_shards", mlp, ["--dtype", "bf16"]),
        ("clip", "llama_bf16_shards", linear, ["--dtype", "f32"]),
        ("clip", "vicuna", linear, []),
        ("clip", "vicuna", mlp, []),
        ("siglip", "qwen", mlp, []),
        ("clip", "qwen", linear, ["--max-shard-size", "20KB"]),
        ("clip", "minimind", linear, []),
        ("siglip", "minimind3", mlp, []),
    ]:
        check(root, image, case)


if __name__ == "__main__":
    main()
