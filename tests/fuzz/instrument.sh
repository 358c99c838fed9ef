#!/usr/bin/env bash
# A compiler for the workspace's own crates that adds coverage counters; build scripts, which link no fuzzer, get none.
set -euo pipefail
counters=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1)
case " $* " in
    *" --crate-name build_script_build "* | *" -vV "* | *" --print="*) exec "$@" ;;
    *) exec "$@" "${counters[@]}" ;;
esac
