"""Writes texts.jsonl: hashes of the question and answer that LLaVA's script makes of each ScienceQA problem.

The script is scripts/convert_sqa_to_llava.py with convert_sqa_to_llava_base_prompt.py of github.com/haotian-liu/LLaVA (commit
82bc69e); the problems are VELA_DATA/scienceqa/problems.json. Neither is copied here, nor is their text: a line holds the 64-bit
FNV-1a hash of each text in UTF-8, white space around it removed.

Run: PYTHONPATH=LLaVA/scripts VELA_DATA=data python make.py
"""

import json
import os
from pathlib import Path

from convert_sqa_to_llava_base_prompt import build_prompt_chatbot

FORMS = {"lea": "QCM-LEA", "lepa": "QCM-LEPA", "a": "QCM-A"}


def short_hash(text):
    state = 0xCBF29CE484222325
    for byte in text.strip().encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return f"{state:016x}"


def without(prefix, text):
    """As convert_sqa_to_llava.py does it: every occurrence, if the text begins with it."""
    return text.replace(prefix, "") if text.startswith(prefix) else text


problems = json.loads((Path(os.environ["VELA_DATA"]) / "scienceqa/problems.json").read_text())
with open(Path(__file__).with_name("texts.jsonl"), "w") as out:
    for form, name in FORMS.items():
        texts = build_prompt_chatbot(problems, list(problems), name, use_caption=False, is_test=False)
        for pid, (question, answer) in texts.items():
            question, answer = without("Question: ", question), without("Answer: ", answer)
            if problems[pid]["image"] is not None:
                question = f"{question}\n<image>"
            line = {"form": form, "pid": pid, "question": short_hash(question), "answer": short_hash(answer)}
            out.write(json.dumps(line) + "\n")
