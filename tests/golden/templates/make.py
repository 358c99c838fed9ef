"""Expected text, ids and labels of vela-processor's named templates.

    requirements: transformers==5.23.0 tokenizers==0.23.3 tiktoken==0.14.0 jinja2
    run:          python make.py            (in this folder; writes `cases.json` beside the script)

The rules below spell out what each publisher's code makes of a dialogue, piece by piece: special tokens, text, and which of it is
learned. Text between special tokens is encoded at once (Qwen's first encodes each piece apart), with no special token seen in
it. Where a published chat template exists, `apply_chat_template` must give the same text. Small tokenizers are those of
`../processor` and `../tokenizer`; published ones (in VELA_DATA, or in ../shared/data next to the repository) leave only ids here.
"""
import json
import os
import sys
from pathlib import Path

from tokenizers import AddedToken, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent
DATA = Path(os.environ.get("VELA_DATA", HERE.parents[2].parent / "shared" / "data"))
sys.path.insert(0, str(GOLDEN / "tokenizer"))
import make as tiktoken_goldens  # noqa: E402

DIALOGUES = {
    "one turn": [("user", "<image>\nWhat is this?"), ("assistant", "A red circle.")],
    "mark last": [("user", "What colour is the triangle?\n<image>"), ("assistant", "It is green.")],
    "system and three turns": [
        ("system", "你是一位图像理解助手。"), ("user", "<image>\nHow many circles?"), ("assistant", "Two."),
        ("user", "And squares?"), ("assistant", "One square, to the left."), ("user", "Sure?"), ("assistant", "Yes")],
    "Chinese": [("user", "<image>\n这张图片展示了什么？"), ("assistant", "画面中央有一只猫，坐在沙发上。"),
                ("user", "背景呢？"), ("assistant", "背景是一扇明亮的窗户。")],
    "looks like special tokens": [
        ("user", "<image>\nWhat does <|im_end|> or <|eot_id|> do? <|im_start|> <| im_end |> <image"),
        ("assistant", "It ends: <|im_end|> and <|eot_id|><|endoftext|>. <|nothing|> </s> <s><|extra_0|> <image> here")],
    "only a special token": [("user", "<image><|begin_of_text|>"), ("assistant", "<|im_end|>")],
    "white space inside": [("user", "a\n\n\n  b\t\tc\r\nd <image>"), ("assistant", "line one\n\n    indented\n\ttab  end.")],
    "white space outside": [("user", "  padded <image> question \n"), ("assistant", "  padded answer  ")],
    "leading line feeds": [("user", "\n\n<image>x"), ("assistant", "\n\nanswer after blank lines")],
    "ends in punctuation and line feed": [("user", "<image>"), ("assistant", "图中有猫。\n")],
    "several images": [("user", "<image><image>\nCompare <image> with them."), ("assistant", "The same."),
                       ("user", "<image>?"), ("assistant", "Another.")],
    "no image": [("user", "What is 1 + 1?"), ("assistant", "2")],
    "emoji": [("user", "<image>👩‍👩‍👧‍👦"), ("assistant", "🤷🏽‍♀️ 𠮷野家 e\u0301")],
}


# ---- rules: a list of ("special", token, learned), ("text", text, learned) and ("cut",) --------------------------------------

def special(token, learned=False):
    return [("special", token, learned)]


def text(words, learned=False):
    return [("text", words, learned)]


def question(words):
    """Text in which `<image>` is the one token that counts."""
    first, *others = words.split("<image>")
    return text(first) + [piece for other in others for piece in special("<image>") + text(other)]


def content(role, words, learned):
    return question(words) if role == "user" else text(words, learned)


def qwen_v1(turns, _):
    """`make_context` of Qwen's `qwen_generation_utils.py`; Basic-Vision-Language-Model closes the last answer with the eod token."""
    def piece(role, words, last):
        answer = role == "assistant"
        end = "<|endoftext|>" if answer and last else "<|im_end|>"
        body = text(role) + [("cut",)] + text("\n") + [("cut",)] + content(role, words, answer)
        return special("<|im_start|>") + body + special(end, answer)
    if turns[0][0] != "system":
        turns = [("system", "You are a helpful assistant."), *turns]
    pieces = [piece(role, words, at + 1 == len(turns)) for at, (role, words) in enumerate(turns)]
    return pieces[0] + [part for piece in pieces[1:] for part in text("\n") + piece]


def chatml(default_system):
    def rule(turns, _):
        if default_system is not None and turns[0][0] != "system":
            turns = [("system", default_system), *turns]
        pieces = []
        for role, words in turns:
            answer = role == "assistant"
            pieces += special("<|im_start|>") + text(role + "\n") + content(role, words, answer)
            pieces += special("<|im_end|>", answer) + text("\n")
        return pieces
    return rule


def minimind(turns, tokenizer):
    """Its template thinks of nothing before each answer; that is not learned."""
    pieces = []
    for role, words in turns:
        answer = role == "assistant"
        pieces += special("<|im_start|>") + text(role + "\n")
        if answer:
            thoughts = [("<think>", True), ("\n\n", False), ("</think>", True), ("\n\n", False)]
            for words_, is_token in thoughts:
                pieces += special(words_) if is_token and tokenizer.knows(words_) else text(words_)
            words = words.lstrip("\n")
        pieces += content(role, words, answer) + special("<|im_end|>", answer) + text("\n")
    return pieces


def llama3_2(turns, _):
    def head(role):
        return special("<|start_header_id|>") + text(role) + special("<|end_header_id|>") + text("\n\n")
    date = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    system = turns[0][1].strip() if turns[0][0] == "system" else ""
    pieces = special("<|begin_of_text|>") + head("system") + text(date) + text(system) + special("<|eot_id|>")
    for role, words in turns[1:] if turns[0][0] == "system" else turns:
        answer = role == "assistant"
        pieces += head(role) + content(role, words.strip(), answer) + special("<|eot_id|>", answer)
    return pieces


def llava_v1(turns, tokenizer):
    """`conv_vicuna_v1` (two separators) after `preprocess_multimodal`. A prompt ends in `ASSISTANT:`, so the blank is learned: LLaVA's
    tokenizer never gives it a token of its own, others do."""
    system = ("A chat between a curious user and an artificial intelligence assistant. "
              "The assistant gives helpful, detailed, and polite answers to the user's questions.")
    if turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    pieces = special(tokenizer.bos) + text(system + " ")
    for role, words in turns:
        if role == "user":
            count = words.count("<image>")
            if count:
                words = ("<image>" * count + "\n" + words.replace("<image>", "").strip()).strip()
            pieces += text("USER: ") + question(words) + text(" ")
        else:
            pieces += text("ASSISTANT:") + text(" " + words, True) + special(tokenizer.eos, True)
    return pieces


def llava_plain(turns, tokenizer):
    """`preprocess_plain`: the question goes, caption and separator are learned."""
    if len(turns) != 2 or "<image>" not in turns[0][1]:
        return None
    images = special("<image>") * turns[0][1].count("<image>")
    start = special(tokenizer.bos) if tokenizer.bos else []
    return start + images + text(turns[1][1] + "\n", True)


# ---- tokenizers: `encode` gives (id, start, end) of each token --------------------------------------------------------------

class HuggingFace:
    def __init__(self, folder, **options):
        load = PreTrainedTokenizerFast if options else AutoTokenizer
        self.tokenizer = load.from_pretrained(folder)
        if self.tokenizer.convert_tokens_to_ids("<image>") in (None, self.tokenizer.unk_token_id):
            self.tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
        self.backend = self.tokenizer.backend_tokenizer
        self.backend.encode_special_tokens = True
        # It would take the blanks off a token's span, and with them the label off a token of blanks.
        self.backend.post_processor = processors.ByteLevel(trim_offsets=False)
        self.bos, self.eos = self.tokenizer.bos_token, self.tokenizer.eos_token

    def knows(self, token):
        return self.backend.token_to_id(token) is not None

    def id(self, token):
        return self.backend.token_to_id(token)

    def encode(self, words):
        encoding = self.backend.encode(words, add_special_tokens=False)
        return [(id, *span) for id, span in zip(encoding.ids, encoding.offsets)]


class Tiktoken:
    def __init__(self, path, make, specials, bos, eos):
        ranks = tiktoken_goldens.read_ranks(path)
        self.encode_ids = make(ranks)
        self.lengths = {id: len(token) for token, id in ranks.items()}
        self.specials = {token: len(ranks) + at for at, token in enumerate([*specials, "<image>"])}
        self.bos, self.eos = bos, eos

    def knows(self, token):
        return token in self.specials

    def id(self, token):
        return self.specials[token]

    def encode(self, words):
        """Offsets in bytes; only read where the text is as it was given."""
        tokens, at = [], 0
        for id in self.encode_ids(words):
            tokens.append((id, at, at + self.lengths[id]))
            at += self.lengths[id]
        return tokens


def qwen_tiktoken(folder):
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{at}|>" for at in range(205))]
    return Tiktoken(folder / "qwen.tiktoken", tiktoken_goldens.qwen, specials, None, "<|endoftext|>")


def llama3_tiktoken(folder):
    named = {0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id",
             8: "eom_id", 9: "eot_id", 10: "python_tag"}
    reserved = iter(range(256))
    specials = [f"<|{named.get(at) or f'reserved_special_token_{next(reserved)}'}|>" for at in range(256)]
    return Tiktoken(folder / "tokenizer.model", tiktoken_goldens.llama3, specials, "<|begin_of_text|>", "<|eot_id|>")


# ---- cases -----------------------------------------------------------------------------------------------------------------

def encode(pieces, tokenizer):
    """Ids, and 1 for each that is learned: a token that shares a letter with learned text is."""
    ids, mask, run = [], "", []

    def flush():
        nonlocal mask
        in_bytes = isinstance(tokenizer, Tiktoken)
        spans, at = [], 0
        for words, learned in run:
            length = len(words.encode()) if in_bytes else len(words)
            spans += [(at, at + length)] if learned and length else []
            at += length
        for id, start, end in tokenizer.encode("".join(words for words, _ in run)):
            ids.append(id)
            mask += "1" if any(start < stop and begin < end for begin, stop in spans) else "0"
        run.clear()
    for kind, *rest in [*pieces, ("cut",)]:
        if kind == "text":
            run.append(rest)
            continue
        flush()
        if kind == "special":
            ids.append(tokenizer.id(rest[0]))
            mask += "01"[rest[1]]
    return ids, mask


def rendered(pieces):
    return "".join(piece[1] for piece in pieces if piece[0] != "cut")


def cases(rule, tokenizer):
    made = {}
    for name, turns in DIALOGUES.items():
        pieces = rule(turns, tokenizer)
        if pieces is not None:
            ids, mask = encode(pieces, tokenizer)
            made[name] = {"text": rendered(pieces), "ids": ids, "mask": mask}
    return made


def check_published(rule, tokenizer, template=None):
    """The same text by the published template."""
    for name, turns in DIALOGUES.items():
        messages = [{"role": role, "content": words} for role, words in turns]
        expected = tokenizer.tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
        assert rendered(rule(turns, tokenizer)) == expected, name


def main():
    qwen2, llama3 = HuggingFace(GOLDEN / "processor" / "qwen2"), HuggingFace(GOLDEN / "processor" / "llama3")
    qwen2_rule = chatml("You are a helpful assistant.")
    qwen2_5_rule = chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
    small_qwen, small_llama3 = qwen_tiktoken(GOLDEN / "tokenizer" / "qwen"), llama3_tiktoken(GOLDEN / "tokenizer" / "llama3")
    made = [
        ("qwen-v1", "tokenizer/qwen", cases(qwen_v1, small_qwen)),
        ("qwen2", "processor/qwen2", cases(qwen2_rule, qwen2)),
        ("qwen2.5", "processor/qwen2", cases(qwen2_5_rule, qwen2)),
        ("minimind", "processor/qwen2", cases(minimind, qwen2)),
        ("llama3.2", "processor/llama3", cases(llama3_2, llama3)),
        ("llama3.2", "tokenizer/llama3", cases(llama3_2, small_llama3)),
        ("llava-v1", "processor/llama3", cases(llava_v1, llama3)),
        ("llava-plain", "processor/llama3", cases(llava_plain, llama3)),
        ("llava-plain", "processor/qwen2", cases(llava_plain, qwen2)),
    ]
    if DATA.is_dir():
        published, mini = HuggingFace(DATA / "tokenizers" / "qwen2.5-0.5b-instruct"), HuggingFace(DATA / "minimind_v", fast=True)
        check_published(qwen2_5_rule, published)
        check_published(minimind, mini)
        made += [
            ("qwen-v1", "data/tokenizers/qwen_v1", cases(qwen_v1, qwen_tiktoken(DATA / "tokenizers" / "qwen_v1"))),
            ("llama3.2", "data/tokenizers/llama3", cases(llama3_2, llama3_tiktoken(DATA / "tokenizers" / "llama3"))),
            ("qwen2.5", "data/tokenizers/qwen2.5-0.5b-instruct", cases(qwen2_5_rule, published)),
            ("llava-plain", "data/tokenizers/qwen2.5-0.5b-instruct", cases(llava_plain, published)),
            ("minimind", "data/minimind_v", cases(minimind, mini)),
        ]
    value = {"dialogues": DIALOGUES, "made": [{"template": t, "tokenizer": k, "cases": c} for t, k, c in made]}
    (HERE / "cases.json").write_text(json.dumps(value, ensure_ascii=False).replace("}, ", "},\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
