#!/usr/bin/env bash
# Runs one fuzz target guided by coverage: tests/fuzz/run.sh TARGET SECONDS. Needs a C++ compiler for libFuzzer. Vela's own crates are
# built once more with coverage counters; those of others are built as for the tests and guide nothing. What it finds is left in
# target/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$1 seconds=$2
RUSTC_WORKSPACE_WRAPPER="$PWD/tests/fuzz/instrument.sh" \
    cargo build -p vela-tests --bin fuzz-guided --features libfuzzer --locked
corpus=target/fuzz/corpus/$target findings=target/fuzz/findings seeds=target/fuzz/seeds/$target
mkdir -p "$corpus" "$findings" "$seeds"
# The first run writes the seeds; libFuzzer reads its folders only afterwards.
export VELA_FUZZ_TARGET=$target VELA_FUZZ_SEEDS=$seeds
binary=${CARGO_TARGET_DIR:-target}/debug/fuzz-guided
"$binary" -runs=0 > "target/fuzz/seeds-$target.log" 2>&1
exec "$binary" "$corpus" "$seeds" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=65536 \
  -artifact_prefix="$findings/$target-" -print_final_stats=1
