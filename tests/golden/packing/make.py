#!/usr/bin/env python3
"""Writes packing.json: rows of packed samples by an implementation that shares nothing with Vela's.

It follows docs/determinism.md, section "Packing plan", in plain Python. Requirements: none beyond Python 3.9.

    python tests/golden/packing/make.py            # rewrites packing.json beside this file, in seconds
"""
import json
import pathlib
import random

COMBINATIONS = 25
WELL_FILLED = 0.97


class Stock:
    """Samples left, by tokens; a class gives its last sample first."""

    def __init__(self, items):
        self.items, self.classes = items, {}
        for at in sorted(range(len(items)), key=lambda at: (items[at][1], -at)):
            self.classes.setdefault(items[at][0], []).append(at)

    def lengths(self):
        return [tokens for tokens, left in sorted(self.classes.items()) if left]

    def candidate(self, most, below, room_images):
        """The longest class of at most `most` tokens and fewer than `below` whose next sample fits."""
        for tokens in reversed(self.lengths()):
            if tokens <= most and tokens < below and self.items[self.classes[tokens][-1]][1] <= room_images:
                return tokens
        return None


def fill(stock, room, images, first):
    """Classes that fill the room best, in the order of the search."""
    lengths = stock.lengths()
    if not lengths:
        return []
    shortest, least, best, chosen = lengths[0], None, [], []
    following = stock.candidate(room, first + 1, images)
    for _ in range(COMBINATIONS):
        while following is not None:
            at = stock.classes[following].pop()
            chosen.append((following, at))
            room, images = room - following, images - stock.items[at][1]
            following = stock.candidate(room, following + 1, images)
        if least is None or room < least:
            least, best = room, [tokens for tokens, _ in chosen]
        while least > 0 and chosen and following is None:
            tokens, at = chosen.pop()
            stock.classes[tokens].append(at)
            room, images = room + tokens, images + stock.items[at][1]
            if room >= shortest:
                following = stock.candidate(room - shortest, tokens, images)
        if following is None:
            break
    for tokens, at in reversed(chosen):
        stock.classes[tokens].append(at)
    return best


def exact_fit(tokens, images, items):
    stock, rows = Stock(items), []
    while stock.lengths():
        first = stock.lengths()[-1]
        row = [stock.classes[first].pop()]
        for taken in fill(stock, tokens - first, images - items[row[0]][1], first):
            row.append(stock.classes[taken].pop())
        rows.append(row)
    return rows


def first_fit(tokens, images, items):
    rows = []
    for at in sorted(range(len(items)), key=lambda at: (-items[at][0], at)):
        for row in rows:
            if sum(items[other][0] for other in row) + items[at][0] <= tokens and sum(items[other][1] for other in row) + items[at][1] <= images:
                row.append(at)
                break
        else:
            rows.append([at])
    return rows


def pack(tokens, images, items):
    rows = exact_fit(tokens, images, items)
    if sum(item[0] for item in items) < WELL_FILLED * len(rows) * tokens:
        others = first_fit(tokens, images, items)
        if len(others) < len(rows):
            rows = others
    return sorted(sorted(row) for row in rows)


def cases():
    draw = random.Random(20261121)
    captions = lambda: (round(draw.lognormvariate(4.5, 0.6)) + 196, 1)
    dialogues = lambda: (min(2048, round(draw.lognormvariate(5.5, 0.8)) + draw.choice([0, 576, 576, 1152])), draw.choice([0, 1, 1, 2]))
    small = lambda: (draw.randint(0, 20), draw.randint(0, 3))
    few_lengths = lambda: (draw.choice([3, 5, 900, 1000]), 1)
    # Tokens and images of a row, samples of a window.
    yield from (((2048, 16), [captions() for _ in range(300)]), ((2048, 3), [dialogues() for _ in range(200)]))
    yield from (((2048, 8), [few_lengths() for _ in range(40)]), ((1, 1), [(1, 0), (0, 1), (0, 1), (1, 1)]), ((10, 1), []))
    for _ in range(40):
        yield (draw.randint(20, 60), draw.randint(3, 8)), [small() for _ in range(draw.randint(1, 60))]


def main():
    written = [
        {"tokens": tokens, "images": images, "items": items, "rows": pack(tokens, images, items)} for (tokens, images), items in cases()
    ]
    assert all(sorted(sum(case["rows"], [])) == list(range(len(case["items"]))) for case in written)
    pathlib.Path(__file__).with_name("packing.json").write_text(json.dumps(written, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
