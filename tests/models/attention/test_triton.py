"""The Triton kernels, as far as they can be tested without a GPU: in the interpreter, and through the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux")
HERE = Path(__file__).parent


def test_kernels_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    process = subprocess.run(
        [*command, str(HERE / "triton_in_interpreter.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    assert " passed" in process.stdout


def compiled(heads: int, kv_heads: int, dim: int, q: int, dtype, capability: int):
    """The kernel of partial results for a model's shapes, compiled for a GPU that is not here."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pia.models.attention.triton_attention import tiles_of
    from pia.models.attention.triton_kernels import partials_kernel

    states = torch.empty(1, 1, 1, 1, dtype=dtype, device="meta")
    tiles = tiles_of(states.expand(1, heads, q, dim), *[states.expand(1, kv_heads, 8192, dim)] * 2, num_sms=132)
    constants = dict(
        DIM=dim, VALUE_DIM=dim, BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_DIM=tiles.dim, BLOCK_VALUE_DIM=tiles.value_dim,
        HAS_WINDOW=False, HAS_SOFTCAP=False, IN_FLOAT32=False,
    )  # fmt: skip
    name = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    pointers = dict(query_ptr=name, key_ptr=name, value_ptr=name, starts_ptr="*i32", bits_ptr="*i64", depths_ptr="*i64")
    types = {**pointers, "partial_ptr": "*fp32", "lse_ptr": "*fp32", "scale": "fp32", "softcap": "fp32"}
    names = partials_kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    places = {(place,): constants[name] for place, name in enumerate(names) if name in constants}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if "_ptr" in name or "stride" in name
    }
    return triton.compile(
        ASTSource(partials_kernel, signature, places, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=dict(num_warps=tiles.num_warps, num_stages=tiles.num_stages),
    )


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "q"),
    [(32, 32, 128, 1), (32, 8, 128, 16), (32, 32, 128, 128), (14, 2, 64, 64), (16, 8, 256, 16), (32, 32, 80, 4)],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernel_compiles_and_fits(heads, kv_heads, dim, q, dtype, capability):
    import torch

    kernel = compiled(heads, kv_heads, dim, q, getattr(torch, dtype), capability)
    assert kernel.metadata.shared <= 99 << 10  # what the smallest of these generations' GPUs have for a program
    assert ("mma" in kernel.asm["ptx"]) == (dtype == "bfloat16")  # float32 must not be rounded to tf32
