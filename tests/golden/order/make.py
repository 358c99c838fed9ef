#!/usr/bin/env python3
"""Writes order.json: epoch orders by an implementation that shares nothing with Vela's.

It follows docs/determinism.md, section "Order", in plain Python integers.
Requirements: none beyond Python 3.9.

    python tests/golden/order/make.py            # rewrites order.json beside this file
"""
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


def round_keys(fingerprint, seed, epoch):
    state = int.from_bytes(b"VELAORD1", "big")
    words = [int.from_bytes(fingerprint[at : at + 8], "little") for at in range(0, 32, 8)]
    for word in words + [seed, epoch]:
        state = splitmix(state ^ word)
    return [splitmix((state + number * GAMMA) & MASK) for number in range(8)]


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


def main():
    cases = []
    for num_samples, step, seed, epoch, first, count in CASES:
        fingerprint = bytes((number * step + step) % 256 for number in range(32))
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
    target = pathlib.Path(__file__).with_name("order.json")
    lines = ",\n".join(json.dumps(case) for case in cases)
    target.write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    main()
