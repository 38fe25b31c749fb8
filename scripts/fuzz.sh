#!/bin/sh
# Runs every fuzz target in turn, each for FUZZ_SECONDS (60). Stops at the first input that breaks one,
# which is kept under fuzz/artifacts.

set -eu

repo=$(cd "$(dirname "$0")/.." && pwd)
cargo=${CARGO:-cargo}
cd "$repo"

# libFuzzer's instrumentation is an unstable flag of the compiler. This lets the pinned one take it, so that
# no second toolchain is needed.
export RUSTC_BOOTSTRAP=1

targets=$("$cargo" fuzz list)
[ -n "$targets" ] || { echo 'fuzz: no targets' >&2; exit 1; }
for target in $targets; do
    echo "fuzz: $target"
    # What is found goes to the first directory; the second is what is known to be worth starting from.
    mkdir -p "fuzz/corpus/$target"
    set -- "fuzz/corpus/$target"
    [ ! -d "fuzz/seeds/$target" ] || set -- "$@" "fuzz/seeds/$target"
    "$cargo" fuzz run "$target" "$@" -- -max_total_time="${FUZZ_SECONDS:-60}"
done
