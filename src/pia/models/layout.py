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
    depths = np.zeros(size, dtype=np.int64)
    visible = np.eye(size, dtype=bool)
    for row, parent in enumerate(tree.parents.tolist(), start=1):
        visible[row] |= visible[parent + 1]
        depths[row] = depths[parent + 1] + 1
    return depths, visible


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
