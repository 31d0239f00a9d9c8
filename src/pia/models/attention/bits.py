"""Who sees whom in a tree, as bits: one word for 64 nodes, so that no mask of the context's size is needed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

WORD = 64
"""Nodes to a word."""


def num_words(q: int) -> int:
    """Words that the nodes of a tree of this size need each."""
    return -(-q // WORD)


def pack(visible: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Packs visibility into bits: bit i of a node's words is set if it sees node i.

    Args:
        visible: bool `[rows, q, q]`, as `layout.batch_layout` makes it.

    Returns:
        int64 `[rows, q, num_words(q)]`.
    """
    packed = np.packbits(visible, axis=-1, bitorder="little")
    words = np.zeros((*visible.shape[:-1], num_words(visible.shape[-1]) * 8), dtype=np.uint8)
    words[..., : packed.shape[-1]] = packed
    return words.view("<i8").astype(np.int64, copy=False)


def unpack(bits: torch.Tensor, q: int) -> torch.Tensor:
    """Visibility, bool `[rows, q, q]`, of bits `[rows, q, words]`; a node sees itself in any case."""
    nodes = torch.arange(q, device=bits.device)
    words = bits[..., nodes // WORD]
    visible = ((words >> (nodes % WORD)) & 1).bool()
    return visible | torch.eye(q, dtype=torch.bool, device=bits.device)
