"""How token trees lie in a batch's forward: ids, depths, and which node sees which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pia.drafting.tree import DraftTree


def layout(tree: DraftTree) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where root and nodes of one tree stand and what they see: their own path.

    Returns:
        depths, int64 `[1 + nodes]`, and visibility, bool `[1 + nodes, 1 + nodes]`.
    """
    size = len(tree) + 1
    paths = [1]  # as bits, bit j for node j - 1: a few nodes at a time cost arrays more than integers
    depths = [0]
    for row, parent in enumerate(tree.parents.tolist(), start=1):
        paths.append(paths[parent + 1] | 1 << row)
        depths.append(depths[parent + 1] + 1)
    num_bytes = (size + 7) // 8
    packed = np.frombuffer(b"".join([path.to_bytes(num_bytes, "little") for path in paths]), np.uint8)
    bits = np.unpackbits(packed.reshape(size, num_bytes), axis=1, count=size, bitorder="little")
    return np.array(depths, dtype=np.int64), bits.view(bool)


def batch_layout(
    token_ids: Sequence[int], trees: Sequence[DraftTree]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Ids, depths and visibility of a step; rows with smaller trees are filled up with tokens that see themselves only.

    Args:
        token_ids: each row's last accepted token, `[rows]`.
        trees: each row's tree.

    Returns:
        ids and depths, int64 `[rows, q]`, and visibility, bool `[rows, q, q]`.
    """
    if len(trees) == 1:
        depths, visible = layout(trees[0])
        ids = np.empty((1, len(depths)), dtype=np.int64)
        ids[0, 0], ids[0, 1:] = token_ids[0], trees[0].token_ids
        return ids, depths[None], visible[None]
    num_rows, q = len(trees), 1 + max(map(len, trees))
    ids = np.zeros((num_rows, q), dtype=np.int64)
    depths = np.zeros((num_rows, q), dtype=np.int64)
    visible = np.zeros((num_rows, q, q), dtype=bool)
    visible[:] = np.eye(q, dtype=bool)
    ids[:, 0] = token_ids
    for row, tree in enumerate(trees):
        if size := len(tree):
            ids[row, 1 : size + 1] = tree.token_ids
            depths[row, : size + 1], visible[row, : size + 1, : size + 1] = layout(tree)
    return ids, depths, visible
