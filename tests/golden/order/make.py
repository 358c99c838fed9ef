#!/usr/bin/env python3
"""Writes order.json: epoch orders by an implementation that shares nothing with Vela's.

It follows docs/determinism.md, sections "Order", "Windows" and "Blends", in plain Python integers.
Requirements: none beyond Python 3.9.

    python tests/golden/order/make.py            # rewrites order.json and long.json beside this file, in some minutes
"""
import fractions
import json
import pathlib

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def splitmix(state):
    """The first output of SplitMix64 started at `state`."""
    z = (state + GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def round_keys(fingerprint, *names):
    state = int.from_bytes(b"VELAORD1", "big")
    words = [int.from_bytes(fingerprint[at : at + 8], "little") for at in range(0, 32, 8)]
    for word in words + list(names):
        state = splitmix(state ^ word)
    return [splitmix((state + number * GAMMA) & MASK) for number in range(8)]


def window_order(sizes, per_window, fingerprint, seed, epoch):
    """All units, group by group of `sizes`, `per_window` groups mixed at a time."""
    firsts = [sum(sizes[:group]) for group in range(len(sizes))]
    keys = round_keys(fingerprint, seed, epoch, int.from_bytes(b"VELAGRPS", "big"))
    groups = [index_at(place, len(sizes), keys) for place in range(len(sizes))]
    groups = [group for group in groups if sizes[group]]
    units = []
    for number, start in enumerate(range(0, len(groups), per_window)):
        members = groups[start : start + per_window]
        window = [firsts[group] + at for group in members for at in range(sizes[group])]
        keys = round_keys(fingerprint, seed, epoch, number)
        units += [window[index_at(place, len(window), keys)] for place in range(len(window))]
    return units


def blend(turns):
    """(part, turn) at every place: all turns sorted by when they are due."""
    dues = [((2 * turn + 1) / fractions.Fraction(2 * count), part, turn) for part, count in enumerate(turns) for turn in range(count)]
    return [[part, turn] for _, part, turn in sorted(dues)]


def index_at(place, num_samples, keys):
    bits = max((num_samples - 1).bit_length(), 8)
    half = (bits + 1) // 2
    value = place
    while True:
        left, right = value >> half, value & ((1 << half) - 1)
        for key in keys:
            left, right = right, left ^ (splitmix(key ^ right) >> (64 - half))
        value = (left << half) | right
        if value < num_samples:
            return value


CASES = [
    # number of samples, fingerprint byte step, seed, epoch, first place, places
    (1, 0, 0, 0, 0, 1),
    (2, 0, 0, 0, 0, 2),
    (3, 1, 1, 0, 0, 3),
    (10, 1, 1, 1, 0, 10),
    (255, 3, 2, 0, 0, 255),
    (256, 3, 2, 0, 0, 256),
    (257, 3, 2, 5, 0, 257),
    (1000, 7, 42, 0, 0, 1000),
    (1009, 7, 42, 1, 0, 1009),
    (118_287, 11, 7, 3, 50_000, 500),
    (1_000_000, 13, MASK, 0, 999_500, 500),
    (10**12, 17, 123456789, 1_000_000, 5 * 10**11, 200),
]


WINDOWS = [
    # sizes of the groups, groups to a window, fingerprint byte step, seed, epoch
    ([5, 5, 5, 4], 1, 3, 1, 0),
    ([5, 5, 5, 4], 2, 3, 1, 1),
    ([40, 0, 17, 64, 1, 3, 250], 3, 5, 9, 2),
    ([7] * 30, 10, 5, 9, 3),
]

BLENDS = [[4], [3, 3], [10, 4, 1], [0, 5, 2], [100, 37, 11, 2]]

# Epochs too long to write down: FNV-1a over their indices, 64 bits at a time.
LONG = [(1_000_000, 13, 7, 0), (1_000_003, 13, 7, 1)]


def fingerprint_of(step):
    return bytes((number * step + step) % 256 for number in range(32))


def main():
    cases = []
    for num_samples, step, seed, epoch, first, count in CASES:
        fingerprint = fingerprint_of(step)
        keys = round_keys(fingerprint, seed, epoch)
        indices = [index_at(place, num_samples, keys) for place in range(first, first + count)]
        if count == num_samples:
            assert sorted(indices) == list(range(num_samples))
        cases.append(
            {
                "num_samples": num_samples,
                "fingerprint": fingerprint.hex(),
                "seed": seed,
                "epoch": epoch,
                "first_place": first,
                "indices": indices,
            }
        )
    folder = pathlib.Path(__file__).parent
    write(folder / "order.json", cases)
    windows = []
    for sizes, per_window, step, seed, epoch in WINDOWS:
        units = window_order(sizes, per_window, fingerprint_of(step), seed, epoch)
        assert sorted(units) == list(range(sum(sizes)))
        names = {"sizes": sizes, "per_window": per_window, "fingerprint": fingerprint_of(step).hex(), "seed": seed, "epoch": epoch}
        windows.append({**names, "units": units})
    write(folder / "windows.json", windows)
    write(folder / "blends.json", [{"turns": turns, "places": blend(turns)} for turns in BLENDS])
    long = []
    for num_samples, step, seed, epoch in LONG:
        keys = round_keys(fingerprint_of(step), seed, epoch)
        digest = 0xCBF29CE484222325
        for place in range(num_samples):
            digest = ((digest ^ index_at(place, num_samples, keys)) * 0x100000001B3) & MASK
        names = {"num_samples": num_samples, "fingerprint": fingerprint_of(step).hex(), "seed": seed, "epoch": epoch}
        long.append({**names, "fnv": digest})
    write(folder / "long.json", long)


def write(path, cases):
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
