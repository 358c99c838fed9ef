"""Token counts of real LLaVA-Instruct questions and answers, by kind, for the packing example.

Reads the LLaVA files below VELA_DATA (default ../shared/data): 90 + 90 GPT-4 answers about COCO photos and the few-shot dialogues that
LLaVA-Instruct-150K was generated from; counts tokens with Qwen2.5's tokenizer (transformers). Writes instruct_pairs.json: per kind a list
of [question tokens, answer tokens], and the tokens that ChatML adds per dialogue and per pair.
"""

import json
import os
import re
from pathlib import Path

from transformers import AutoTokenizer

data = Path(os.environ.get("VELA_DATA", "../shared/data"))
tokenizer = AutoTokenizer.from_pretrained(data / "tokenizers/qwen2.5-0.5b-instruct")


def count(text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


pairs = {"conv": [], "detail": [], "complex": []}
for row in lines(data / "llava/coco2014_val_gpt4_qa_30x3.jsonl"):
    pairs[row["type"]].append([count(row["instruction"]), count(row["output"])])
questions = {row["question_id"]: row["text"] for row in lines(data / "llava/qa90_questions.jsonl")}
for row in lines(data / "llava/qa90_gpt4_answer.jsonl"):
    pairs[row["category"]].append([count(questions[row["question_id"]]), count(row["text"])])
for kind, folder in [("conv", "conversation"), ("complex", "complex_reasoning")]:
    for path in sorted((data / "llava/prompts" / folder).glob("*_conv.txt")):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"Question:\n(.*?)\n===\nAnswer:\n(.*?)(?=\n===\n|\Z)", text, re.S)
        pairs[kind].extend([count(question), count(answer)] for question, answer in found)

per_dialogue = count("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
per_pair = count("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n")
out = {"per_dialogue": per_dialogue, "per_pair": per_pair, "pairs": pairs}
Path(__file__).with_name("instruct_pairs.json").write_text(json.dumps(out) + "\n", encoding="utf-8")
