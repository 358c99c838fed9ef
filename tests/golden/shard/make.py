#!/usr/bin/env python3
"""Reads a version 2 shard set with pyarrow alone and writes what it found to pyarrow.json.

Shows that a shard is plain Parquet: the columns, an image found by (image_rows, image_indices), and each of its
checksums recomputed by zlib. The committed result was made from pipeline/shard/tests/data/v2; the test
`pipeline/shard/tests/pyarrow.rs` compares it with what Vela reads.
Requirements: pyarrow>=20.

    python tests/golden/shard/make.py           # rewrites pyarrow.json beside this file
"""
import json
import pathlib
import zlib

import pyarrow.parquet as parquet

HERE = pathlib.Path(__file__).resolve().parent
SET = HERE.parents[2] / "pipeline" / "shard" / "tests" / "data" / "v2"


def image(pixels, row, index, image_bytes):
    return pixels[row][index * image_bytes : (index + 1) * image_bytes]


def read_shard(path):
    file = parquet.ParquetFile(path)
    channels, height, width = map(int, file.metadata.metadata[b"vela.image_shape"].split(b"x"))
    image_bytes = channels * height * width
    rows = file.read().to_pylist()
    pixels = [row["pixels"] for row in rows]
    for row in rows:
        stored = [image(pixels, at, index, image_bytes) for at, index in zip(row["image_rows"], row["image_indices"])]
        assert [zlib.crc32(data) for data in stored] == row["image_checksums"], (path.name, row["id"])
        yield {
            "id": row["id"],
            "source": row["source"],
            "language": row["language"],
            "input_ids": row["input_ids"],
            "labels": row["labels"],
            "image_hashes": [digest.hex() for digest in row["image_hashes"]],
            "image_sums": [sum(data) for data in stored],
        }


def describe(path):
    file = parquet.ParquetFile(path)
    chunks = [file.metadata.row_group(0).column(at) for at in range(file.metadata.num_columns)]
    return {
        "created_by": file.metadata.created_by,
        "schema": [f"{field.name}: {field.type}" for field in file.schema_arrow],
        "compression": {chunk.path_in_schema.split(".")[0]: chunk.compression for chunk in chunks},
        "has_offset_index": all(chunk.has_offset_index for chunk in chunks),
        "has_dictionary": any(chunk.has_dictionary_page for chunk in chunks),
        "has_statistics": any(chunk.is_stats_set for chunk in chunks),
    }


def main():
    manifest = json.loads((SET / "manifest.json").read_text())
    paths = [SET / shard["file"] for shard in manifest["shards"]]
    result = {"file": describe(paths[0]), "records": [row for path in paths for row in read_shard(path)]}
    (HERE / "pyarrow.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
