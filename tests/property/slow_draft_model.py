"""The draft cache written down plainly: dictionaries, tuples and the formulas, and nothing clever."""

from __future__ import annotations

import math
from collections.abc import Sequence

SHAPES = ((0, 1), (0, 2), (0, 4), (0, 12), (1, 1), (1, 2), (2, 1))  # (tokens skipped, tokens taken)
NUM_DENSE = 4
MAX_EDGES = 255
MAX_READ = 64

Context = tuple[int, tuple[int, ...]]  # tokens skipped, tokens taken


class SlowTable:
    """Counts of continuations by context."""

    def __init__(self) -> None:
        self.counts: dict[Context, dict[int, int]] = {}

    def learn(self, text: Sequence[int], first: int = 0) -> None:
        for end in range(max(first, 1), len(text)):
            for skip, length in SHAPES:
                if skip + length <= end:
                    self._count((skip, tuple(text[end - skip - length : end - skip])), text[end])

    def _count(self, context: Context, token: int) -> None:
        counts = self.counts.setdefault(context, {})
        if token not in counts and len(counts) == MAX_EDGES:
            del counts[min(counts, key=lambda known: (counts[known], -known))]
        counts[token] = counts.get(token, 0) + 1

    def unlearn(self, text: Sequence[int]) -> None:
        for end in range(1, len(text)):
            for skip, length in SHAPES:
                if skip + length <= end:
                    self._uncount((skip, tuple(text[end - skip - length : end - skip])), text[end])

    def _uncount(self, context: Context, token: int) -> None:
        counts = self.counts[context]
        counts[token] -= 1
        if not counts[token]:
            del counts[token]
        if not counts:
            del self.counts[context]

    def read(self, context: Context) -> tuple[int, dict[int, int]]:
        """The count of all continuations, and the most frequent of them."""
        counts = self.counts.get(context, {})
        order = sorted(counts, key=lambda token: (-counts[token], token))
        return sum(counts.values()), {token: counts[token] for token in order[:MAX_READ]}


def known_contexts(text: Sequence[int], table: SlowTable) -> list[tuple[int, int, int, dict[int, int]]]:
    """(skipped, taken, total, counts) of each context at the end of the text that the table knows."""
    known = []
    for skip, length in SHAPES:
        if skip + length <= len(text):
            end = len(text) - skip
            total, counts = table.read((skip, tuple(text[end - length : end])))
            if total:
                known.append((skip, length, total, counts))
    return known


# --- The mixing model before its first lesson ------------------------------------------------------------------------

MAX_EDGES_USED = 12
MAX_PROB = 0.999
COUNT_STEPS = (0, 1, 2, 3, 4, 6, 10, 17, 40, 100)
TOTAL_STEPS = (1, 2, 3, 4, 6, 10, 17, 33, 80, 200, 1000)


def first_probs(text: Sequence[int], own: SlowTable, shared: SlowTable) -> dict[int, float]:
    """Next-token probabilities as a cache gives them that has learned counts but no lessons yet."""
    contexts = [*known_contexts(text, own), *known_contexts(text, shared)]
    used = [
        (*context[:3], dict(list(context[3].items())[:MAX_EDGES_USED]), len(context[3]) == 1) for context in contexts
    ]
    probs = {
        token: 1 / (1 + math.exp(-sum(_weighted_log_odds(context, token) for context in used)))
        for token in {token for context in used for token in context[3]}
    }
    scale = max(1.0, sum(probs.values()))
    return {token: min(prob / scale, MAX_PROB) for token, prob in probs.items()}


def _weighted_log_odds(context: tuple[int, int, int, dict[int, int], bool], token: int) -> float:
    skip, length, total, counts, is_certain = context
    count, total = _step(counts.get(token, 0), COUNT_STEPS), _step(total, TOTAL_STEPS)
    prob = _certain_guess(skip, length, total) if is_certain and count else _first_guess(count, total)
    return (0.15 if skip else 0.25) * math.log(prob / (1 - prob))


def _certain_guess(skip: int, length: int, total: int) -> float:
    return 1 - (0.6 if skip else 0.45) / math.sqrt(length) / (1 + 0.5 * (total - 1))


def _step(value: int, steps: Sequence[int]) -> int:
    return max(step for step in steps if step <= value)


def _first_guess(count: int, total: int) -> float:
    count = min(count, total)
    if not count:
        return 0.02
    return min((count - (0.5 if count < 3 else 0)) / (total + 0.6), 0.97)
