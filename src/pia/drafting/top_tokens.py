"""What a forward found likely: the by-product that recycled drafts, Jacobi windows and recordings are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NUM_TOP = 8
"""Likeliest tokens of each place that are recycled (k of Token Recycling, arXiv 2408.08696)."""


class TopTokens(NamedTuple):
    """The likeliest next tokens of some places, likeliest first."""

    ids: npt.NDArray[np.int32]
    """`[places, k]`."""
    probs: npt.NDArray[np.float16]
    """Their probabilities at temperature 1, before any processor, `[places, k]`."""

    def at(self, places: Sequence[int] | slice, count: int | None = None) -> TopTokens:
        """Those of some places, the likeliest `count` of each; all by default."""
        ids, probs = self.ids[places, :count], self.probs[places, :count]
        return TopTokens(np.ascontiguousarray(ids), np.ascontiguousarray(probs))

    @property
    def num_each(self) -> int:
        """How many tokens of each place: k."""
        return int(self.ids.shape[1])
