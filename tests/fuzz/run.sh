#!/usr/bin/env bash
# Runs one fuzz target guided by coverage: tests/fuzz/run.sh TARGET SECONDS. Needs a C++ compiler for libFuzzer, and builds everything
# once more with coverage counters, in target/fuzz. Findings are left in target/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$1 seconds=$2
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build -p vela-tests --bin fuzz-guided --features libfuzzer --target-dir target/fuzz --target "$host" --locked
corpus=target/fuzz/corpus/$target findings=target/fuzz/findings
mkdir -p "$corpus" "$findings"
# The first run writes the seeds; libFuzzer reads its folders only afterwards.
export VELA_FUZZ_TARGET=$target VELA_FUZZ_SEEDS=target/fuzz/seeds/$target
binary=target/fuzz/$host/debug/fuzz-guided
"$binary" -runs=0 > target/fuzz/seeds.log 2>&1
exec "$binary" "$corpus" "$VELA_FUZZ_SEEDS" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=65536 \
  -artifact_prefix="$findings/$target-" -print_final_stats=1
