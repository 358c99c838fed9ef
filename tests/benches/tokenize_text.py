"""Tokenising on one core: Vela beside the Python `tokenizers` (batch) and `transformers` (chat template with labels).

    python tests/benches/tokenize_text.py [--repeats 5] [--megabytes 20] [--profile release | --binary FILE] [--tokenizer DIR]

The corpus is drawn by seed: captions and question-answer dialogues, half English, half Chinese, words by Zipf's law. The tokenizer
is Qwen2.5's published one (folder `tokenizers/qwen2.5-0.5b-instruct` in VELA_DATA, or in ../shared/data next to the repository). Both
sides are pinned to one core and take turns, `repeats` times; start-up is not counted. `text` encodes each text by itself: Vela's ids are
compared with `encode_batch` and `encode_batch_fast` (the faster of the two is the peer). `dialogue` renders and labels:
`Processor::encode_dialogue` beside `apply_chat_template(return_assistant_tokens_mask=True)` on a part of the corpus, and beside
`encode_batch_fast` of ready-made text. It prints one JSON line: medians, minima and maxima in MB/s, by the clock and by CPU
time, and ratios of medians; it fails if an id or a count of labels differs.
"""
import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("VELA_DATA", ROOT.parent / "shared" / "data"))

ENGLISH = ("the a of in is on and with to there it at are red blue green white black small large two three people man woman picture image "
           "table street standing sitting wearing background left right front behind next car dog cat tree building window water sky "
           "light shirt hat holding near road grass wooden chair plate food bicycle umbrella bench sign clock train beach wave surfboard "
           "it's doesn't 2 10 1920 scene atmosphere appears suggests various including positioned visible overall enjoying").split()
CHINESE = ("的 是 在 一个 图片 中 有 和 了 人 穿着 红色 蓝色 白色 黑色 绿色 左边 右边 前面 后面 背景 街道 建筑 窗户 桌子 椅子 天空 树木 汽车 "
           "自行车 女人 男人 孩子 站着 坐着 拿着 看起来 非常 明亮 温馨 氛围 画面 展示 描述 位于 上面 下面 旁边 小狗 猫 食物 盘子 帽子 衬衫 水 草地 "
           "木质 灯光 2 三 10 种 整体 给人 感觉 可以看到 其中 以及").split()
QUESTIONS = ["What is in the picture?", "Describe the image in detail.", "What colour is the car?", "图片中展示了什么？", "讲述一下图片内容。", "她穿着什么？"]


def sentence(draw, words, glue, stop):
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return glue.join(draw.choices(words, weights, k=draw.randint(6, 18))) + stop


def make_corpus(path, megabytes):
    draw, size = random.Random(2026), 0
    with path.open("w", encoding="utf-8") as out:
        while size < megabytes * 1_000_000:
            chinese = draw.random() < 0.5
            words, glue, stop = (CHINESE, "", "。") if chinese else (ENGLISH, " ", ".")
            dialogue = []
            for _ in range(draw.choice([1, 1, 1, 2, 4])):
                answer = ("" if chinese else " ").join(sentence(draw, words, glue, stop) for _ in range(draw.randint(1, 9)))
                dialogue += [draw.choice(QUESTIONS), answer[:1].upper() + answer[1:]]
            dialogue[0] = "<image>\n" + dialogue[0]
            size += sum(len(text.encode()) for text in dialogue)
            out.write(json.dumps(dialogue, ensure_ascii=False) + "\n")


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Timed:
    """One pass of a Python peer."""
    def __init__(self, run):
        self.run = run

    def __call__(self):
        start, cpu = time.perf_counter(), cpu_seconds()
        result = self.run()
        return {"seconds": time.perf_counter() - start, "cpu": cpu_seconds() - cpu, **result}


class Vela:
    """The example, one pass per line of its input."""
    def __init__(self, binary, folder, corpus, mode):
        self.process = subprocess.Popen([binary, folder, corpus, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def cpu(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __call__(self):
        cpu = self.cpu()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        result = json.loads(self.process.stdout.readline())
        return {**result, "cpu": self.cpu() - cpu}


def fnv(ids, state):
    for id in ids:
        state = ((state ^ id) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return state


def hashed(lists):
    state = 0xCBF29CE484222325
    for ids in lists:
        state = fnv(ids, state)
    return f"{state:016x}"


def summary(passes, megabytes):
    def spread(key):
        rates = sorted(megabytes / one[key] for one in passes)
        return {"median": round(statistics.median(rates), 2), "min": round(rates[0], 2), "max": round(rates[-1], 2)}
    return {"clock": spread("seconds"), "cpu": spread("cpu")}


def compare(competitors, repeats, megabytes):
    """Everybody once per round; the first round warms up and is not counted."""
    passes = {name: [] for name in competitors}
    for repeat in range(repeats + 1):
        for name, run in competitors.items():
            one = run()
            if repeat:
                passes[name].append(one)
    return passes, {name: summary(made, megabytes) for name, made in passes.items()}


def build(profile):
    command = ["cargo", "build", "--profile", profile, "-p", "vela-processor", "--example", "tokenize_throughput"]
    subprocess.run(command, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / ("debug" if profile == "dev" else profile) / "examples" / "tokenize_throughput"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--profile", default="release")
    parser.add_argument("--binary", type=Path, help="the example, where it is built already")
    parser.add_argument("--tokenizer", type=Path, default=DATA / "tokenizers" / "qwen2.5-0.5b-instruct")
    options = parser.parse_args()
    binary = options.binary or build(options.profile)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    from tokenizers import AddedToken
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    with tempfile.TemporaryDirectory() as scratch:
        folder, corpus = Path(scratch) / "processor", Path(scratch) / "corpus.jsonl"
        shutil.copytree(options.tokenizer, folder)
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
        make_corpus(corpus, options.megabytes)
        print(json.dumps(measure(options, tokenizer, binary, folder, corpus)))


def measure(options, tokenizer, binary, folder, corpus):
    dialogues = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    texts = [text for dialogue in dialogues for text in dialogue]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    backend = tokenizer.backend_tokenizer

    def batch(encode, texts):
        return lambda: {"tokens": sum(len(one.ids) for one in encode(texts, add_special_tokens=False))}
    # `encode_special_tokens` for equal ids: to Vela an image mark outside a dialogue is text.
    backend.encode_special_tokens = True
    text_peers = {"encode_batch": Timed(batch(backend.encode_batch, texts)), "encode_batch_fast": Timed(batch(backend.encode_batch_fast, texts))}
    passes, text = compare({"vela": Vela(binary, folder, corpus, "text"), **text_peers}, options.repeats, megabytes)
    expected = hashed(one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False))
    assert passes["vela"][0]["hash"] == expected, "an id differs"
    backend.encode_special_tokens = False

    messages = [[{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(dialogue)] for dialogue in dialogues]
    rendered = [tokenizer.apply_chat_template(one, tokenize=False) for one in messages]
    part = max(1, len(messages) // 20)
    template = marked(tokenizer.chat_template)

    def labelled():
        made = [tokenizer.apply_chat_template(one, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
                for one in messages[:part]]
        return {"tokens": sum(len(one["input_ids"]) for one in made), "labels": sum(sum(one["assistant_masks"]) for one in made)}
    part_path = corpus.with_name("part.jsonl")
    part_path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in dialogues[:part]), encoding="utf-8")
    peer = {"encode_batch_fast of rendered text": Timed(batch(backend.encode_batch_fast, rendered))}
    passes, dialogue = compare({"vela": Vela(binary, folder, corpus, "dialogue"), **peer}, options.repeats, megabytes)
    expected = hashed(one.ids for one in backend.encode_batch_fast(rendered, add_special_tokens=False))
    assert passes["vela"][0]["hash"] == expected, "an id of a dialogue differs"
    part_megabytes = sum(len(text.encode()) for one in dialogues[:part] for text in one) / 1e6
    passes, labels = compare({"vela": Vela(binary, folder, part_path, "dialogue"), "apply_chat_template": Timed(labelled)}, options.repeats, part_megabytes)
    one, other = passes["vela"][0], passes["apply_chat_template"][0]
    assert (one["tokens"], one["labels"]) == (other["tokens"], other["labels"]), (one, other)

    results = {"text": text, "dialogue": dialogue, "dialogue with labels": labels}
    ratios = {f"{part} / {name}": {by: round(made["vela"][by]["median"] / made[name][by]["median"], 2) for by in ("clock", "cpu")}
              for part, made in results.items() for name in made if name != "vela"}
    return {"megabytes": round(megabytes, 1), "dialogues": len(dialogues), "profile": options.profile, "repeats": options.repeats,
            "mb_per_second": results, "ratios": ratios}


def marked(template):
    """The published template with generation marks around what is learned."""
    branch = '{%- if (message.role == "user")'
    assert template.count(branch) == 1
    return template.replace(branch, (
        '{%- if message.role == "assistant" and not message.tool_calls %}'
        "{{- '<|im_start|>assistant\\n' }}{%- generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}"
        "{{- '\\n' }}\n    {%- elif (message.role == \"user\")"))


if __name__ == "__main__":
    main()
