#!/bin/sh
# Builds the C++ stress programs with ThreadSanitizer and with AddressSanitizer + UBSan, and runs both.
#
#   tools/sanitize.sh [threads] [requests per thread]
#
# Needs a C++20 compiler with sanitizer runtimes, and CMake; no Python. Ends non-zero at the first report.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() {
    name=$1
    shift
    echo "== $name"
    cmake -S "$root" -B "$work/$name" -DPIA_PYTHON=OFF -DPIA_CPP_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
        -DCMAKE_CXX_FLAGS="-O1 -fno-omit-frame-pointer -fsanitize=$name -fno-sanitize-recover=all" >"$work/log" 2>&1 &&
        cmake --build "$work/$name" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    "$work/$name/stress" "$@"
    "$work/$name/corpus_stress"
}

run thread "$@"
run address,undefined "$@"
