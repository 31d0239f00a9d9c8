"""How much a sequence of tokens repeats itself."""

from __future__ import annotations

from collections.abc import Sequence


def repeated_positions(ids: Sequence[int], n: int = 8) -> list[bool]:
    """For each token: does it lie in an n-gram that already occurred earlier in the same sequence?"""
    covered = [False] * len(ids)
    seen: set[tuple[int, ...]] = set()
    for start in range(len(ids) - n + 1):
        gram = tuple(ids[start : start + n])
        if gram in seen:
            covered[start : start + n] = [True] * n
        seen.add(gram)
    return covered


def repeated_share(sequences: Sequence[Sequence[int]]) -> float:
    """Share of all tokens that lie in an 8-gram which occurred earlier in the same sequence."""
    return sum(sum(repeated_positions(ids)) for ids in sequences) / max(1, sum(map(len, sequences)))
