"""Writes cases.jsonl: texts printed by Python's repr beside the same value as JSON.

requirements: none beyond Python >= 3.9
"""
import json
import pathlib
import random

random.seed(7)
ALPHABET = ["a", "B", "'", '"', "\\", "\n", "\r", "\t", "\0", "\x07", "\x1b", "\x7f", "\xa0", "\xad", "\u200b", "\u2028",
            "\ufeff", "中", "图", "。", "é", "ÿ", "\u0301", "😀", "\U000e0001", " ", "{", "}", ":", ",", "0"]


def text(limit=12):
    return "".join(random.choice(ALPHABET) for _ in range(random.randrange(limit)))


def value(depth):
    kind = random.randrange(8 if depth else 5)
    if kind == 0:
        return random.choice([None, True, False])
    if kind == 1:
        return random.choice([0, -1, 7, 2**31, -(2**63), 2**63 - 1])
    if kind == 2:
        return random.choice([0.5, -1.25, 1e-300, 1e300, 3.0])
    if kind in (3, 4):
        return text()
    if kind == 5:
        return [value(depth - 1) for _ in range(random.randrange(4))]
    if kind == 6:
        return tuple(value(depth - 1) for _ in range(random.randrange(4)))
    return {text(): value(depth - 1) for _ in range(random.randrange(4))}


CAPTIONS = [
    {"global_caption": "图片中有一只猫，它说：'喵'。", "local_caption": ["一只橙色的猫", "it's \"red\""]},
    {"global_caption": "第一行\n第二行\\反斜杠", "local_caption": None},
    {"global_caption": "", "local_caption": "一段文字"},
]
cases = CAPTIONS + [value(3) for _ in range(300)]
lines = [json.dumps({"repr": repr(case), "json": case}, ensure_ascii=True) for case in cases]
pathlib.Path(__file__).with_name("cases.jsonl").write_text("\n".join(lines) + "\n", encoding="ascii")
