"""Estimates the damage of a shape from the scores: how much importance it loses, along each axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pia.ipad.counts import Amount, GridShape
from pia.ipad.limits import AXES
from pia.ipad.scores import Scores
from pia.ipad.shape import Shape

WEIGHTS = {"layers": 1.0, "kv_heads": 0.5, "ffn": 0.5, "hidden": 1.0, "experts": 0.5}
"""What losing a share of an axis' importance counts. A layer is an attention and an FFN; a channel serves all."""
_LEAST_KEPT = 1e-9


class Damage:
    """The estimate for any shape: the weighted sum over axes of -log(share of the importance that stays).

    Shares of axes multiply, as what is left of one passes through what is left of the others; and the logarithm makes
    the last units of an axis ever dearer, so that no axis is emptied before the others are touched.

    Args:
        scores: of the model; without them all units of a kind count the same.
        shape: of the model.
        weights: by axis, in place of some of `WEIGHTS`.
    """

    def __init__(self, scores: Scores | None, shape: Shape, weights: Mapping[str, float] | None = None) -> None:
        self.weights = {**WEIGHTS, **(weights or {})}
        self._kept = {axis: _kept(_rows(scores, axis, shape)) for axis in AXES if getattr(shape, AXES[axis])}

    def share_kept(self, axis: str, size: Amount) -> Amount:
        """The share of an axis' importance that its best units hold; a mean over layers where each has its own."""
        return self._kept[axis][size] if axis in self._kept else np.ones_like(size, dtype=np.float64)

    def of(self, shape: Shape | GridShape) -> Amount:
        """0 for the whole model."""
        parts = (
            -self.weights[axis] * np.log(np.maximum(self.share_kept(axis, getattr(shape, name)), _LEAST_KEPT))
            for axis, name in AXES.items()
        )
        return sum(parts)


def _rows(scores: Scores | None, axis: str, shape: Shape) -> np.ndarray[Any, Any]:
    """`[rows, units]`."""
    field = {"layers": "layers", "kv_heads": "kv_groups", "ffn": "ffn", "hidden": "hidden", "experts": "experts"}[axis]
    values = None if scores is None else getattr(scores, field)
    if values is None:
        return np.ones((1, getattr(shape, AXES[axis])))
    return np.atleast_2d(np.maximum(values, 0.0))  # a layer whose absence helps is worth nothing, not less


def _kept(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`[units + 1]`: share of a row's sum in its best n units, a mean over rows. All-zero rows count their units."""
    rows = np.where(rows.sum(axis=1, keepdims=True) > 0, rows, 1.0)
    best = -np.sort(-rows, axis=1)
    shares = np.cumsum(best, axis=1) / best.sum(axis=1, keepdims=True)
    kept = np.concatenate([[0.0], shares.mean(axis=0)])
    kept[-1] = 1.0  # where sums round
    bounded: np.ndarray[Any, Any] = np.minimum(kept, 1.0)
    return bounded
