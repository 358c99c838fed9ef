"""Peak memory of `pipeline audit` against the number of records: a JSON list, JSON lines and Parquet.

    python tests/benches/scan_memory.py [--rows 10000,100000,1000000] [--binary target/debug/pipeline] [--scratch DIR]

The script writes text-only LLaVA records (a JSON list and JSON lines) and SA1B rows (Parquet, zstd), each some 330 bytes, and audits
each file. SA1B rows name photos that are not there, so each becomes a reject: only its count is kept. One JSON line per file: rows,
file bytes, records that the audit saw, seconds, peak resident bytes.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = "a the red small round old wooden table chair dog cat street lamp with near under and two three people".split()


def sentence(index: int, words: int) -> str:
    return " ".join(WORDS[(index * 7 + at * (index % 11 + 1)) % len(WORDS)] for at in range(words))


def record(index: int) -> str:
    turns = [{"from": "human", "value": sentence(index, 12)}, {"from": "gpt", "value": sentence(index + 1, 30)}]
    return json.dumps({"id": f"r{index:09d}", "conversations": turns})


def write_json(path: Path, rows: int, is_list: bool) -> None:
    with path.open("w") as out:
        out.write("[\n" if is_list else "")
        for index in range(rows):
            last = index + 1 == rows
            out.write(record(index) + ("" if last or not is_list else ",") + "\n")
        out.write("]\n" if is_list else "")


def write_parquet(path: Path, rows: int) -> None:
    schema = pa.schema([("url", pa.string()), ("cap_seg", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for first in range(0, rows, 50_000):
            numbers = range(first, min(first + 50_000, rows))
            urls = [f"https://host/sa_{index:09d}.jpg" for index in numbers]
            cells = [repr({"global_caption": sentence(index, 40), "local_caption": [sentence(index, 8)]}) for index in numbers]
            out.write_table(pa.table([urls, cells], schema=schema))


def audit(binary: str, source: str, path: Path) -> dict:
    command = [binary, "audit", "--source", source, "--input", str(path), "--max-reject", "1", "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        # Not `ru_maxrss`: that of a child starts with what its parent held.
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak] + [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")])
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    seconds = round(time.perf_counter() - started, 2)
    output = process.stdout.read()
    assert process.returncode == 0, (command, output)
    return {"records": json.loads(output.splitlines()[-1])["records"], "seconds": seconds, "peak_bytes": peak * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--binary", default="target/debug/pipeline")
    parser.add_argument("--scratch", default=None)
    args = parser.parse_args()
    for rows in map(int, args.rows.split(",")):
        for kind in ["list.json", "lines.jsonl", "rows.parquet"]:
            with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
                path = Path(folder) / kind
                if kind.endswith("parquet"):
                    write_parquet(path, rows)
                else:
                    write_json(path, rows, is_list=kind.startswith("list"))
                source = "sa1b" if kind.endswith("parquet") else "llava"
                found = audit(args.binary, source, path)
                assert found["records"] == rows, found
                print(json.dumps({"file": kind, "rows": rows, "bytes": path.stat().st_size, **found}), flush=True)


if __name__ == "__main__":
    main()
