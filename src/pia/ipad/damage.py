"""Estimates the damage of a shape from the scores: how much importance it loses, along each axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pia.ipad.counts import Amount, GridShape
from pia.ipad.limits import AXES
from pia.ipad.scores import Scores
from pia.ipad.shape import Shape

WEIGHTS = {"layers": 7.5, "kv_heads": 3.5, "ffn": 2.5, "hidden": 40.0, "experts": 2.5}
"""KL from the original, in nats a token before any training, for each unit of loss along an axis: as measured on the
embedded model. Only their ratios matter; see `pia.ipad.sensitivity` to measure them on another."""
POWERS = {"layers": 1, "kv_heads": 2, "ffn": 2, "hidden": 2, "experts": 2}
"""Inside layers a score is a first-order effect, and KL grows with its square; a layer's score is a KL itself."""
_LEAST_KEPT = 1e-9


class Damage:
    """The estimate for any shape: over axes, the weighted sum of powers of -log(share of the importance that stays).

    The logarithm and the power make the last units of an axis ever dearer, so that no axis is emptied before the others
    are touched.

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
        return sum(self.weights[axis] * self.loss(axis, getattr(shape, name)) for axis, name in AXES.items())

    def loss(self, axis: str, size: Amount) -> Amount:
        """Of one axis, before its weight."""
        kept = np.maximum(self.share_kept(axis, size), _LEAST_KEPT)
        return np.abs(np.log(kept)) ** POWERS[axis]


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
