#!/bin/sh
# Fuzzes the draft cache, the corpus reader and the file loaders, with AddressSanitizer and UBSan.
#
#   tools/fuzz.sh [seconds per target] [fuzz_cache | fuzz_corpus | fuzz_files ...]
#
# With clang the native targets run under libFuzzer, else under a driver of our own that does not look at coverage
# (choose by CXX=...). fuzz_files needs a Python that can import pia (PYTHON=..., else .venv's); with atheris installed
# there it is guided by coverage too. Inputs that failed once lie in csrc/tests/fuzz_inputs and are tried first. One that
# fails now is kept in $PIA_FUZZ_DIR (build/fuzz), as is what was found worth keeping; `build/fuzz/fuzz_... FILE` shows a
# failure again. Ends non-zero at the first one.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
seconds=${1:-600}
[ $# -eq 0 ] || shift
targets=${*:-fuzz_cache fuzz_corpus fuzz_files}
work=${PIA_FUZZ_DIR:-$root/build/fuzz}
python=${PYTHON:-$root/.venv/bin/python}
sanitizers=address,undefined,float-cast-overflow,float-divide-by-zero
export UBSAN_OPTIONS="print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"

# Sets `compiler`, `engine` (a linker option) and `sanitizers`; there are clangs without libFuzzer.
choose_compiler() {
    compiler=${CXX:-}
    [ -n "$compiler" ] || compiler=$(command -v clang++ || command -v c++ || command -v g++)
    engine=
    probe='#include <cstddef>
        extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, std::size_t) { return 0; }'
    if echo "$probe" | "$compiler" -x c++ -fsanitize=fuzzer,address - -o "$work/probe" 2>"$work/log"; then
        engine=-fsanitize=fuzzer
        sanitizers=$sanitizers,fuzzer-no-link
    fi
}

build() {
    choose_compiler
    echo "== building with $("$compiler" --version | head -n 1), ${engine:-no libFuzzer}"
    cmake -S "$root" -B "$work/cmake" -DPIA_PYTHON=OFF -DPIA_FUZZERS=ON -DPIA_FUZZ_ENGINE="$engine" \
        -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER="$compiler" \
        -DCMAKE_CXX_FLAGS="-fno-omit-frame-pointer -fsanitize=$sanitizers -fno-sanitize-recover=all" \
        >"$work/log" 2>&1 && cmake --build "$work/cmake" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    cp "$work/cmake/fuzz_cache" "$work/cmake/fuzz_corpus" "$work"
}

fail() {
    echo "$1 FAILED; inputs that did are kept in $work" >&2
    ls "$work" | grep "^$1-" >&2 || true
    exit 1
}

# Shows what matters: libFuzzer tells of every new input otherwise.
run() {
    name=$1
    shift
    echo "== $name, $seconds seconds"
    "$@" -max_total_time="$seconds" -artifact_prefix="$work/$name-" >"$work/$name.log" 2>&1 ||
        { grep -v -e 'NEW' -e 'REDUCE' -e 'pulse' "$work/$name.log" | head -n 60 >&2; fail "$name"; }
    grep '^Done' "$work/$name.log"
}

run_native() {
    for input in "$root/csrc/tests/fuzz_inputs/$1"/*; do
        [ ! -f "$input" ] || "$work/$1" "$input" >"$work/$1.log" 2>&1 || { cat "$work/$1.log" >&2; fail "$1"; }
    done
    [ -n "$engine" ] || { run "$1" "$work/$1" -max_len=800; return; }
    mkdir -p "$work/$1.inputs"
    run "$1" "$work/$1" -max_len=800 -len_control=0 -timeout=60 -rss_limit_mb=4096 "$work/$1.inputs"
}

mkdir -p "$work"
case $targets in *fuzz_cache* | *fuzz_corpus*) build ;; esac
for target in $targets; do
    case $target in
        fuzz_cache | fuzz_corpus) run_native "$target" ;;
        fuzz_files) run "$target" "$python" "$root/tools/fuzz_files.py" ;;
        *) echo "there is no target $target" >&2; exit 2 ;;
    esac
done
echo "== all clean"
