"""Token ids as callers have them, and as the native side takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TokenSequence = Sequence[int] | npt.NDArray[np.integer[Any]]


def as_token_ids(token_ids: TokenSequence | Iterable[int]) -> npt.NDArray[np.int32]:
    """Any sequence of whole numbers as a contiguous int32 array, [n].

    Raises:
        ValueError: If it is not one-dimensional, not of whole numbers, or an id does not fit.
    """
    array = np.asarray(token_ids)
    if array.ndim != 1:
        raise ValueError(f"token ids must be a flat sequence, not an array of shape {array.shape}")
    if array.dtype == np.int32:
        return np.ascontiguousarray(array)
    if array.size == 0:
        return np.empty(0, np.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"token ids must be whole numbers, not {array.dtype}")
    for extreme in (int(array.min()), int(array.max())):
        if not 0 <= extreme < 1 << 31:
            raise ValueError(f"token id {extreme} is not a token id (0 to 2147483647)")
    return np.ascontiguousarray(array, np.int32)
