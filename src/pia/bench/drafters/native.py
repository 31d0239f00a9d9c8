"""PIA's own draft cache, to be replayed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pia.bench.drafters.protocol import SourceDrafter
from pia.config import SOURCES
from pia.drafting.cache import DraftCache


class PiaDrafter(SourceDrafter):
    """A draft cache of its own, empty at first. It learns outputs only, as in use.

    Args:
        max_depth: most drafted tokens in a row.
        max_bytes: bound of the cache's memory; its usual one by default.
        sources: what drafts are made from; see `LookaheadConfig`.
    """

    def __init__(self, *, max_depth: int = 32, max_bytes: int | None = None, sources: Sequence[str] = SOURCES) -> None:
        self._cache = DraftCache() if max_bytes is None else DraftCache(max_bytes=max_bytes)
        super().__init__(self._cache, max_depth=max_depth, sources=sources)

    def learn(self, prompt_ids: npt.NDArray[np.int32], output_ids: npt.NDArray[np.int32]) -> None:
        self._cache.insert(output_ids)

    def expect(self, predicted_ids: npt.NDArray[np.int32]) -> None:
        self._expected = {"predicted_ids": predicted_ids}

    def num_bytes(self) -> int:
        return self._cache.memory_usage
