"""How far a backend is from the reference, at the very sizes it is to be used at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pia.models.attention.bits import pack
from pia.models.attention.probe import LayerShape
from pia.models.attention.reference import TreeAttention, reference_attention

_ERRORS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 5e-2}
"""Largest difference that counts as rounding, where values are about 1: a few times what the reference itself has. One
node too many in sight was measured at 1 and more, a window of 300 that is one too small at 0.03 to 0.4."""
_STARTS = (1000, 200, 33, 0)
"""Committed slots of the rows: several pieces of many blocks, a few blocks, less than a block, and none. In short texts
one slot too many or too few shows; in long ones it drowns in the mean."""


def layer_doubt(layer: LayerShape, q: int, attend: TreeAttention, device: torch.device) -> str | None:
    """Why a backend should not be used for trees of q tokens on this device; `None` where it agrees."""
    error = layer_error(layer, q, attend, device)
    if error <= _ERRORS.get(layer.dtype, 0.0):  # false for NaN
        return None
    return f"with {q} tokens it is {error:.1e} from the reference"


@torch.inference_mode()
def layer_error(layer: LayerShape, q: int, attend: TreeAttention, device: torch.device) -> float:
    """Largest difference from the reference in float64, for trees of q tokens.

    Rows with texts of several lengths are attended, one of them without any, so that all it sees is its tree.
    """
    states = _states(layer, q, device)
    limits: dict[str, Any] = {"window": layer.window, "softcap": layer.softcap}
    attended = attend(*states[:-1], scale=layer.dim**-0.5, depths=states[-1], **limits)
    exact = [tensor.double() if tensor.is_floating_point() else tensor for tensor in states]
    expected = reference_attention(*exact[:-1], scale=layer.dim**-0.5, depths=states[-1], **limits)
    return float((attended.double() - expected).abs().max())


def _states(layer: LayerShape, q: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Query, keys, values, starts, bits and depths of a few rows; behind their ends lies NaN."""
    generator = torch.Generator().manual_seed(5)
    rows, capacity = len(_STARTS), max(_STARTS) + q + 9

    def states(heads: int, length: int, dim: int) -> torch.Tensor:
        return torch.randn(rows, heads, length, dim, generator=generator).to(device, layer.dtype)

    query = states(layer.heads, q, layer.dim)
    keys, values = (states(layer.kv_heads, capacity, dim) for dim in (layer.dim, layer.value_dim))
    starts = torch.tensor(_STARTS, dtype=torch.int32)
    for row, start in enumerate(_STARTS):
        keys[row, :, start + q :] = values[row, :, start + q :] = torch.nan
    visible, depths = _random_trees(rows, q)
    bits = torch.from_numpy(pack(visible))
    return query, keys, values, *(tensor.to(device) for tensor in (starts, bits, torch.from_numpy(depths)))


def _random_trees(rows: int, q: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Visibility `[rows, q, q]` and depths `[rows, q]`; each node hangs from any one before it."""
    rng = np.random.default_rng(5)
    visible, depths = np.zeros((rows, q, q), dtype=bool), np.zeros((rows, q), dtype=np.int64)
    visible[:] = np.eye(q, dtype=bool)
    for row in range(rows):
        for node in range(1, q):
            parent = rng.integers(node)
            visible[row, node] |= visible[row, parent]
            depths[row, node] = depths[row, parent] + 1
    return visible, depths
