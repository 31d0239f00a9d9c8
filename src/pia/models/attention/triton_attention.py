"""Launches the Triton kernels: which tiles, how many pieces, and where the results go.

Nothing here depends on what a tensor holds, so a captured CUDA graph serves every length up to the capacity. Triton
compiles at the first call with new shapes: run a forward once before it is captured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from pia.models.attention.triton_kernels import combine_kernel, partials_kernel

_WARPS_PER_SM = 8
"""That run at once, as far as their registers go."""
_MAX_SPLITS = 128
_CHUNK = 16
"""Pieces combined at once."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Tiles:
    """Sizes of a launch; blocks of dimensions are powers of two, at least 16, as a tile's product asks.

    Attributes:
        m: queries (heads of a group times nodes) to a tile.
        n: slots to a block, at most 64, so that no block crosses a word of bits.
        dim: of keys.
        value_dim: of values.
        num_splits: pieces of the committed slots.
        num_warps: of a program.
        num_stages: blocks in flight.
    """

    m: int
    n: int
    dim: int
    value_dim: int
    num_splits: int
    num_warps: int
    num_stages: int


def tiles_of(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, num_sms: int) -> Tiles:
    """Sizes for these shapes on a device with so many multiprocessors."""
    rows, heads, q, dim = query.shape
    kv_heads, capacity = keys.shape[1:3]
    block_dim, block_value_dim = (max(16, triton.next_power_of_2(d)) for d in (dim, values.shape[-1]))
    queries = heads // kv_heads * q
    largest_m, n = _largest_tile(max(block_dim, block_value_dim), query.element_size())
    m = min(max(16, triton.next_power_of_2(queries)), largest_m)
    num_warps = 8 if m == 128 else 4
    num_tiles = rows * kv_heads * triton.cdiv(queries, m)
    # With the tree's programs no more than run at once: a second wave would wait for the first.
    num_splits = max(1, _WARPS_PER_SM // num_warps * num_sms // num_tiles - 1)
    num_splits = min(num_splits, _MAX_SPLITS, max(1, triton.cdiv(capacity, n)))
    return Tiles(m, n, block_dim, block_value_dim, num_splits, num_warps, 3 if m == 16 else 2)


def _largest_tile(dim: int, itemsize: int) -> tuple[int, int]:
    """Most queries to a tile, and slots to a block, that fit into registers and shared memory without spilling."""
    if itemsize > 2:  # no tensor cores: float32 is not rounded, and large tiles take minutes to compile
        return 16, 32 if dim <= 64 else 16
    if dim <= 128:
        return 128, 64
    return (32, 32) if dim <= 256 else (16, 16)


def triton_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    bits: torch.Tensor,
    *,
    scale: float,
    depths: torch.Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """`TreeAttention` on CUDA (or in Triton's interpreter): scores, softmax and sums in float32.

    `tiles` are sizes to use instead of those chosen for the device.

    Raises:
        TypeError: the dtype is not float32, float16 or bfloat16.
    """
    if query.dtype not in _DTYPES or not query.dtype == keys.dtype == values.dtype:
        raise TypeError(f"the kernel takes {_DTYPES} and one dtype for all, got {query.dtype}, {keys.dtype}")
    query, keys, values = (
        states if states.stride(-1) == 1 else states.contiguous() for states in (query, keys, values)
    )
    assert window is None or depths is not None, "a window is counted in positions, so the nodes' depths are needed"
    assert max(keys.stride(2), values.stride(2)) * keys.shape[2] < 1 << 31, "a head's slots do not fit into 32 bits"
    starts, bits = starts.contiguous(), bits.contiguous()
    depths = starts if depths is None else depths.contiguous()  # any pointer will do where it is not read
    tiles = tiles or tiles_of(query, keys, values, _num_sms(query.device))
    # Triton launches on the current device, which need not be the layer's.
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        partial, lse = _partials(query, keys, values, starts, bits, depths, scale, window, softcap, tiles)
        return _combined(partial, lse, sinks, query, values, tiles)


def _partials(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    bits: torch.Tensor,
    depths: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    tiles: Tiles,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means `[rows * kv_heads, pieces, group * q, value_dim]` and logarithms of their weights' sums."""
    rows, heads, q, dim = query.shape
    kv_heads, value_dim = keys.shape[1], values.shape[-1]
    group = heads // kv_heads
    shape = (rows * kv_heads, tiles.num_splits + 1, group * q)
    partial = query.new_empty((*shape, value_dim), dtype=torch.float32)
    lse = query.new_empty(shape, dtype=torch.float32)
    partials_kernel[(triton.cdiv(group * q, tiles.m), tiles.num_splits + 1, rows * kv_heads)](
        query, keys, values, starts, bits, depths, partial, lse,
        *query.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
        scale, softcap or 1.0, window or 0, q, group, kv_heads, bits.shape[-1], tiles.num_splits,
        DIM=dim, VALUE_DIM=value_dim, BLOCK_M=tiles.m, BLOCK_N=tiles.n,
        BLOCK_DIM=tiles.dim, BLOCK_VALUE_DIM=tiles.value_dim,
        HAS_WINDOW=window is not None, HAS_SOFTCAP=softcap is not None,
        IN_FLOAT32=query.dtype == torch.bfloat16 and not query.is_cuda,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return partial, lse


def _combined(
    partial: torch.Tensor,
    lse: torch.Tensor,
    sinks: torch.Tensor | None,
    query: torch.Tensor,
    values: torch.Tensor,
    tiles: Tiles,
) -> torch.Tensor:
    """The pieces' weighted mean, `[rows, heads, q, value_dim]`, laid out as Transformers goes on with it."""
    rows, heads, q, _ = query.shape
    kv_heads, value_dim = values.shape[1], values.shape[-1]
    out = values.new_empty((rows, q, heads, value_dim)).transpose(1, 2)
    num_pieces = tiles.num_splits + 1
    combine_kernel[(partial.shape[2], rows * kv_heads)](
        partial, lse, lse if sinks is None else sinks, out, *out.stride()[:3],
        q, heads // kv_heads, kv_heads, num_pieces,
        VALUE_DIM=value_dim, BLOCK_PIECES=triton.next_power_of_2(num_pieces), BLOCK_VALUE_DIM=tiles.value_dim,
        CHUNK=_CHUNK, HAS_SINKS=sinks is not None, num_warps=4,
    )  # fmt: skip
    return out


def _num_sms(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return 4  # the interpreter: enough for several pieces
