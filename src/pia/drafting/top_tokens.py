"""What a forward found likely: the by-product that recycled drafts, Jacobi windows and recordings are made from."""

from __future__ import annotations

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
