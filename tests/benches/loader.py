"""Samples per second of Vela's loader beside its peers, on the same machine and the same bytes.

    python tests/benches/loader.py --peer mosaicml=PYTHON --peer wds=PYTHON --peer lit=PYTHON --peer huggingface=PYTHON \\
        --peer flight=PYTHON --peer tfdata=PYTHON [--seconds 5] [--repeats 7] [--profile release]

A peer is a script of `peers/`, run by the Python of its own virtual environment (`peers/requirements.txt` names what each needs). All hold the
same number of samples of 3x336x336 u8 pixels, 512 token ids and 512 labels in a temporary folder, read them shuffled and hand out batches of 32. Vela's side is
`services/loader/examples/loader_throughput.rs`, built here: in process, over loopback from a `loader` process, encrypted, and what bare TCP
carries. Readers that have workers are run with none, one and two. Competitors run in turn, `repeats` times. It prints one JSON line: medians, minima and maxima in samples per second, medians of CPU
seconds per gigabyte (all processes of a competitor), and Vela's ratios to the best peer in process, with workers and over a network.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# Whether a peer runs with workers; the others have a server process.
WITH_WORKERS = {"mosaicml": True, "wds": True, "lit": True, "huggingface": True, "flight": False, "tfdata": False}


def last_line(command: list) -> dict:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def competitors(peers: dict[str, str]) -> list[tuple[str, str, int]]:
    """Name, Python and workers of each run."""
    runs = []
    for name, python in peers.items():
        for workers in (0, 1, 2) if WITH_WORKERS[name] else (0,):
            runs.append((name, python, workers))
    return runs


def summary(values: list[float]) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def run_all(options, folder: Path, examples: Path) -> tuple[dict, dict]:
    rates, costs = {}, {}

    def note(name: str, report: dict) -> None:
        rates.setdefault(name, []).append(report["samples_per_second"])
        costs.setdefault(name, []).append(report["cpu_seconds_per_gigabyte"])

    for repeat in range(options.repeats):
        report = last_line([examples / "loader_throughput", "--seconds", options.seconds, "--samples", options.samples])
        for name in ("in_process", "grpc", "tls"):
            there = report[name]["server_cpu_seconds_per_gigabyte"]
            note(f"vela_{name}", {**report[name], "cpu_seconds_per_gigabyte": report[name]["cpu_seconds_per_gigabyte"] + there})
            costs.setdefault(f"vela_{name}_client", []).append(report[name]["cpu_seconds_per_gigabyte"])
        for name in ("grpc", "raw_tcp"):
            rates.setdefault(f"{name}_gigabytes", []).append(report[name]["gigabytes_per_second"])
        for name, python, workers in competitors(options.peers):
            script = HERE / "peers" / f"{name}.py"
            if repeat == 0 and workers == 0:
                command = [python, script, "--folder", folder, "--samples", options.samples, "--write"]
                subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            command = [python, script, "--folder", folder, "--seconds", options.seconds, "--workers", workers]
            note(f"{name}_{workers}", last_line(command))
            print(name, workers, rates[f"{name}_{workers}"][-1], file=sys.stderr)
    return rates, costs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--samples", type=int, default=3072)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", default="release")
    options = parser.parse_args()
    options.peers = dict(peer.split("=", 1) for peer in options.peer)
    build = ["cargo", "build", "--profile", options.profile, "-p", "vela-loader", "--bins", "--examples"]
    subprocess.run(build, check=True)
    examples = Path("target") / {"dev": "debug"}.get(options.profile, options.profile) / "examples"
    with tempfile.TemporaryDirectory() as folder:
        rates, costs = run_all(options, Path(folder), examples)
    result = {name: summary(values) for name, values in rates.items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {"grpc_to_raw_tcp": median["grpc_gigabytes"] / median["raw_tcp_gigabytes"]}
    of_peers = {name: rate for name, rate in median.items() if name.rsplit("_", 1)[0] in options.peers}
    if of_peers:
        ratios["in_process_to_best_peer"] = median["vela_in_process"] / max(of_peers.values())
        kinds = {True: "with_workers", False: "over_a_network"}
        for has_workers, kind in kinds.items():
            rates_of_kind = [rate for name, rate in of_peers.items() if WITH_WORKERS[name[:-2]] == has_workers and (not has_workers or name[-1] != "0")]
            if rates_of_kind:
                ratios[f"grpc_to_best_peer_{kind}"] = median["vela_grpc"] / max(rates_of_kind)
    costs = {name: statistics.median(values) for name, values in costs.items()}
    print(json.dumps({"rates": result, "cpu_seconds_per_gigabyte": costs, "ratios": ratios}))


if __name__ == "__main__":
    main()
