"""Rows of weighted tokens, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pia.errors import ShrinkError


@dataclass(frozen=True, eq=False)
class Row:
    """A training sequence."""

    ids: np.ndarray
    """`[length]`, int32."""
    weights: np.ndarray
    """`[length]`, float32: `weights[i]` is how much `ids[i]` counts as a target; 1 for what shall be learnt. The first
    token has no prediction, so its weight is 0."""

    @property
    def digest(self) -> bytes:
        """Names the content: equal for equal rows alone."""
        size = len(self.ids).to_bytes(8, "little")
        return hashlib.sha256(size + self.ids.astype("<i4").tobytes() + self.weights.astype("<f4").tobytes()).digest()

    @property
    def content(self) -> bytes:
        """Names the tokens, whatever their weights."""
        return hashlib.sha256(self.ids.astype("<i4").tobytes()).digest()

    def __len__(self) -> int:
        return len(self.ids)


class Rows(Sequence[Row]):  # type: ignore[type-arg, unused-ignore]
    """Rows of one source, in its order.

    Args:
        rows: of at least two tokens each.
        num_cut: how many of them were longer and lost their end.
    """

    def __init__(self, rows: Sequence[Row], num_cut: int = 0) -> None:
        self._rows = tuple(rows)
        self.num_cut = num_cut
        """Rows that were too long and lost their end."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @property
    def num_tokens(self) -> int:
        """Of all rows."""
        return sum(map(len, self._rows))

    @property
    def num_targets(self) -> int:
        """Tokens of weight 1."""
        return sum(int((row.weights == 1).sum()) for row in self._rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self._rows), default=0)

    def check_places(self, config: Any) -> None:
        """Refuses rows that are longer than a model of this configuration has places for.

        Raises:
            ShrinkError: there are some.
        """
        most = getattr(config, "max_position_embeddings", None)
        if most and self.longest > most:
            raise ShrinkError(f"rows have up to {self.longest} tokens and the model {most} places: lower max_length")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids and weights of all rows in their order, in hexadecimal digits."""
        whole = hashlib.sha256()
        for row in self._rows:
            whole.update(row.digest)
        return whole.hexdigest()
