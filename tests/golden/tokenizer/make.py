"""Expected ids for vela-processor's tokenizers, made by tiktoken and by tokenizers themselves.

    requirements: tiktoken==0.14.0 tokenizers==0.23.3 transformers==5.23.0
    run:          python make.py            (in this folder; writes everything beside the script)

`strings.json` holds texts that tokenizers disagree about. `ids.json` holds their ids for two small tiktoken files that are made
here (`qwen/`, `llama3/`) and for three published tokenizers (folder `tokenizers/` in VELA_DATA, or in ../shared/data next to the
repository): Qwen's first and Llama 3 by tiktoken, Qwen2.5 by tokenizers. `fuzz.json` holds hashes of the ids of 10,000
drawn texts, which `tests/tokenizers.rs` draws by the same rule. No text is encoded with special tokens: what looks like one is text.
"""
import base64
import json
import os
import unicodedata
from pathlib import Path

import tiktoken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("VELA_DATA", HERE.parents[2].parent / "shared" / "data")) / "tokenizers"

QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")

# ---- texts ----------------------------------------------------------------------------------------------------------

SPACES = [" ", " ", " ", "  ", "\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2009", "\u000b", "\u000c", "\u0085", "\u2028"]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🤷🏽‍♀️", "❤️", "🇨🇳", "👍🏿", "1️⃣", "☃", "🫠", "🪿"]
CONTRACTIONS = ["'s", "'S", "'t", "n't", "'re", "'VE", "'m", "'ll", "'Ll", "'d", "'D", "’s", "'\u017f", "'ſt", "o'clock"]
LOOKALIKES = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|extra_0|>", "<|eot_id|>", "<|begin_of_text|>", "<image>", "</s>", "<s>",
              "<|", "|>", "<|im_", "end|>", "< |im_end| >", "<|IM_END|>", "<|reserved_special_token_0|>", "[INST]", "<unk>"]
CODE = ["def f(x):\n    return x**2\n", "for(int i=0;i<n;++i){\n\t\ta[i]+=b;\n}", "<div class=\"a\">&nbsp;</div>", "\\frac{a}{b}",
        "SELECT * FROM t WHERE a!='b';", "https://example.org/a?b=c&d=%20#e", "#!/bin/sh\n", "{\"a\": [1, 2.5e-3, null]}"]
CONTROLS = ["\u0000", "\u0001", "\u001b[0m", "\u007f", "\u200b", "\u200c", "\u200d", "\u200e", "\u202e", "\u2066", "\ufeff", "\ufffd", "\u00ad"]
RANGES = [(0x41, 0x5A), (0xC0, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939), (0xE01, 0xE30),
          (0x1100, 0x1112), (0x3041, 0x3096), (0x30A1, 0x30FA), (0xAC00, 0xD7A3), (0x20000, 0x2A6D0), (0x1D400, 0x1D7FF), (0xFF01, 0xFF5E),
          (0x660, 0x669), (0x2160, 0x2188), (0xB2, 0xB3), (0x300, 0x36F), (0xF900, 0xFA6D), (0xE000, 0xE0FF), (0x21, 0x7E)]


class Draws:
    """SplitMix64 (Steele, Lea, Flood 2014)."""
    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        word = self.state
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        return (word ^ (word >> 31)) % bound

    def letters(self, first, last, most):
        return "".join(chr(first + self.below(last - first + 1)) for _ in range(1 + self.below(most)))

    def piece(self):
        kind = self.below(12)
        if kind == 0:
            return self.letters(ord("a"), ord("z"), 8)
        if kind == 1:
            return self.letters(ord("0"), ord("9"), 7)
        if kind == 2:
            return self.letters(0x4E00, 0x9FA5, 6)
        if kind == 3:
            return "".join(SPACES[self.below(len(SPACES))] for _ in range(1 + self.below(4)))
        if kind in (4, 5):
            first, last = RANGES[self.below(len(RANGES))]
            return self.letters(first, last, 5)
        if kind == 6:
            return "ABCDEFGH"[self.below(8)] + self.letters(0x300, 0x345, 2)
        lists = [EMOJI, CONTRACTIONS, LOOKALIKES, CODE, CONTROLS]
        return lists[kind - 7][self.below(len(lists[kind - 7]))]

    def text(self):
        return "".join(self.piece() for _ in range(1 + self.below(12)))


def hard_strings():
    strings = ["", " ", "  ", "\n", " \n ", "a", " a", "a ", "  a", "\ta\t", "a\n\n\nb", "a \n b", "a\r\n\r\nb", " " * 40, "\n" * 20, "a" * 300,
               "哈" * 100, "!" * 100, "1" * 50, "1234567890", "3.14159", "1,000,000", "２０２４年", "Ⅷ½²٣", "v1.2.3-rc4", "2024-07-26T00:00:00Z",
               "It's we're I'VE they'll he'd I'm don't", "IT'S WE'RE", "'s's's", "''s", "x's'", "‘s ’s", "'ſ 'ſt", "K'K",
               "图片中有一个红色的圆形和一个蓝色的方形。", "这张图片展示了什么？", "你好，world！123", "「日本語」テスト", "한국어 텍스트", "𠮷野家", "龘龘龘",
               "Cafe\u0301 Café", "A\u030a Å \u212b", "\u1112\u1161\u11ab 한", "ﬁ ﬂ ﬀ", "Ａ１！", "e\u0301\u0323 \u1eb9\u0301",
               "שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c", "नमस्ते", "สวัสดี", "Привет", "Γειά", "ẞß", "İi̇",
               "zero\u200bwidth", "\ufeffbom", "soft\u00adhyphen", "a\u0000b", "\u001b[31mred\u001b[0m", "tab\tand\u000bmore",
               "\u00a0nbsp\u00a0", "\u3000全角　空格", "a\u2028b\u2029c\u0085d", "e\u2009n"]
    strings += EMOJI + CONTRACTIONS + LOOKALIKES + CODE + CONTROLS
    strings += [f"a{token}b {token} {token}{token}" for token in LOOKALIKES] + [f"word{space}word{space}{space}." for space in SPACES]
    draws = Draws(5)
    return strings + [draws.text() for _ in range(150)]


# ---- tokenizers -----------------------------------------------------------------------------------------------------

CORPUS = ["The red circle is to the left of the blue square. What's the colour of the triangle? It's green, don't you think?",
          "图片中有一个红色的圆形和一个蓝色的方形。三角形是什么颜色的？三角形是绿色的。这张图片展示了什么？",
          "def f(x):\n    return x ** 2\n\n\n    for i in range(100):\n\t\tprint(i)\n", "1234567890 2024 100 1000 10,000 3.14"] * 5


def small_ranks():
    """256 bytes, some merges, and tokens that no merge makes: Llama 3's file has such."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(other)}
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(byte_of[letter] for letter in token) for token, _ in by_id]
    tokens += [" unreachable".encode(), "龘龘龘".encode(), b"xyz", b"zzzz", "哈哈".encode(), "哈哈哈哈".encode()]
    return {token: rank for rank, token in enumerate(tokens)}


def read_ranks(path):
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def write_ranks(path, ranks):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))


def qwen(ranks):
    encoding = tiktoken.Encoding("qwen", pat_str=QWEN_SPLIT, mergeable_ranks=ranks, special_tokens={})
    return lambda text: encoding.encode_ordinary(unicodedata.normalize("NFC", text))


def llama3(ranks):
    return tiktoken.Encoding("llama3", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def hugging_face(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def fnv(words):
    """FNV-1a, 64 bits, over words of 32 bits, little-endian."""
    state = 0xCBF29CE484222325
    for word in words:
        for byte in word.to_bytes(4, "little"):
            state = ((state ^ byte) * 0x100000001B3) & ((1 << 64) - 1)
    return f"{state:016x}"


def fuzz(encode):
    """One hash per hundred texts: of each its number of ids, then the ids."""
    draws, blocks = Draws(2026), []
    for _ in range(100):
        words = []
        for _ in range(100):
            ids = encode(draws.text())
            words += [len(ids), *ids]
        blocks.append(fnv(words))
    return blocks


def write_json(name, value):
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    (HERE / name).write_text(text.replace("],", "],\n") + "\n")


def main():
    ranks = small_ranks()
    write_ranks(HERE / "qwen" / "qwen.tiktoken", ranks)
    write_ranks(HERE / "llama3" / "tokenizer.model", ranks)
    encoders = {"small qwen": qwen(ranks), "small llama3": llama3(ranks)}
    if DATA.is_dir():
        encoders["qwen_v1"] = qwen(read_ranks(DATA / "qwen_v1" / "qwen.tiktoken"))
        encoders["llama3"] = llama3(read_ranks(DATA / "llama3" / "tokenizer.model"))
        encoders["qwen2.5"] = hugging_face(DATA / "qwen2.5-0.5b-instruct")
    strings = hard_strings()
    write_json("strings.json", strings)
    write_json("ids.json", {name: [encode(text) for text in strings] for name, encode in encoders.items()})
    lists = {"ranges": RANGES, "spaces": SPACES, "others": [EMOJI, CONTRACTIONS, LOOKALIKES, CODE, CONTROLS]}
    write_json("fuzz.json", {"lists": lists, "hashes": {name: fuzz(encode) for name, encode in encoders.items()}})


if __name__ == "__main__":
    main()
