"""The Triton kernels, as far as they can be tested without a GPU: in the interpreter, and through the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux")
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
HERE = Path(__file__).parent


def num_version(package: str) -> tuple[int, ...]:
    return tuple(map(int, version(package).split(".")[:2]))


def test_kernels_in_the_interpreter():
    if num_version("triton") < (3, 9) and num_version("numpy") >= (2, 4):
        pytest.skip("the interpreter of this Triton does not know this numpy")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    process = subprocess.run(
        [*command, str(HERE / "triton_in_interpreter.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    assert " passed" in process.stdout


def compiled(kernel, types: dict, constants: dict, capability: int, **options):
    """A kernel compiled for a GPU that is not here; numbers of 1 are constants, as when it is launched."""
    from triton import compile as compile_source
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    places = {(place,): constants[name] for place, name in enumerate(names) if name in constants}
    even = [place for place, name in enumerate(names) if "_ptr" in name or "stride" in name]
    aligned = {(place,): [["tt.divisibility", 16]] for place in even}
    source = ASTSource(kernel, signature, places, aligned)
    return compile_source(source, target=GPUTarget("cuda", capability, 32), options=options)


def compiled_partials(heads: int, kv_heads: int, dim: int, q: int, dtype: str, capability: int):
    """The kernel of partial results for a model's shapes."""
    import torch

    from pia.models.attention.triton_attention import tiles_of
    from pia.models.attention.triton_kernels import partials_kernel

    states = torch.empty(1, 1, 1, 1, dtype=getattr(torch, dtype), device="meta")
    tiles = tiles_of(states.expand(1, heads, q, dim), *[states.expand(1, kv_heads, 8192, dim)] * 2, num_sms=132)
    constants = dict(
        DIM=dim, VALUE_DIM=dim, BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_DIM=tiles.dim, BLOCK_VALUE_DIM=tiles.value_dim,
        HAS_WINDOW=heads == 16, HAS_SOFTCAP=heads == 16, IN_FLOAT32=False,
    )  # fmt: skip
    numbers = dict(q=q, group=heads // kv_heads, kv_heads=kv_heads, num_words=-(-q // 64), num_splits=tiles.num_splits)
    constants |= {name: 1 for name, number in numbers.items() if number == 1}
    states_type = {"bfloat16": "*bf16", "float32": "*fp32"}[dtype]
    types = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), states_type) | dict(starts_ptr="*i32", bits_ptr="*i64")
    types |= dict(depths_ptr="*i64", partial_ptr="*fp32", lse_ptr="*fp32", scale="fp32", softcap="fp32")
    options = dict(num_warps=tiles.num_warps, num_stages=tiles.num_stages)
    return compiled(partials_kernel, types, constants, capability, **options)


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("num_pieces", [2, 129])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_combination_compiles(num_pieces, has_sinks):
    from pia.models.attention.triton_kernels import combine_kernel

    block_pieces = {2: 2, 129: 256}[num_pieces]
    constants = dict(
        q=1, group=1, VALUE_DIM=128, BLOCK_PIECES=block_pieces, BLOCK_VALUE_DIM=128, CHUNK=16, HAS_SINKS=has_sinks
    )
    types = dict(partial_ptr="*fp32", lse_ptr="*fp32", sinks_ptr="*bf16", out_ptr="*bf16")
    assert compiled(combine_kernel, types, constants, 90, num_warps=4).metadata.shared <= 48 << 10


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "q"),
    [(32, 32, 128, 1), (32, 8, 128, 16), (32, 32, 128, 128), (14, 2, 64, 64), (16, 8, 256, 16), (8, 1, 80, 1)],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernel_compiles_and_fits(heads, kv_heads, dim, q, dtype, capability):
    kernel = compiled_partials(heads, kv_heads, dim, q, dtype, capability)
    assert kernel.metadata.shared <= 99 << 10  # what the smallest of these generations' GPUs have for a program
    assert ("mma" in kernel.asm["ptx"]) == (dtype == "bfloat16")  # float32 must not be rounded to tf32
