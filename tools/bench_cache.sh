#!/bin/sh
# Builds and runs the draft cache's C++ benchmark: learning, drafting, memory, threads; the last line is JSON.
#
#   tools/bench_cache.sh [million tokens in the cache, 10 by default]
#
# Needs a C++20 compiler and CMake; no Python. Times of one thread are its processor time; the last three figures are wall
# time and want a machine with two idle cores.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake -S "$root" -B "$work" -DPIA_PYTHON=OFF -DPIA_CPP_TESTS=ON -DCMAKE_BUILD_TYPE=Release >"$work/log" 2>&1 &&
    cmake --build "$work" --target bench >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/bench" "$@"
