"""The draft cache written down plainly: dictionaries, tuples and the formulas of the design, and nothing clever."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

ORDERS = (1, 2, 4, 8, 16)
SHAPES = (*((0, order) for order in ORDERS), (1, 1), (1, 2))  # (tokens skipped, tokens taken)
DISCOUNT = 0.9
OWN_WEIGHT = 2.0
MAX_PROB = 0.98
MAX_CHILDREN = 12
MAX_EDGES = 255
MAX_READ = 64
MIN_ESCAPE = 0.01
MIN_PATH_PROB = 1e-6


class Node(NamedTuple):
    path: tuple[int, ...]
    prob: float


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


def predict(context: Sequence[int], own: SlowTable, shared: SlowTable) -> dict[int, float]:
    """Next-token probabilities by back-off from the longest context to the shortest."""
    probs: dict[int, float] = {}
    escape = 1.0
    for order in reversed(ORDERS):
        if order > len(context) or escape < MIN_ESCAPE:
            continue
        key = (0, tuple(context[len(context) - order :]))
        counts: dict[int, float] = {}
        total = 0.0
        for table, weight in ((own, OWN_WEIGHT), (shared, 1.0)):
            seen, found = table.read(key)
            total += weight * seen
            for token, count in found.items():
                counts[token] = counts.get(token, 0.0) + weight * count
        if not counts:
            continue
        discount = DISCOUNT * len(counts)
        share = discount / total if total > discount else 0.5
        for token, count in counts.items():
            probs[token] = probs.get(token, 0.0) + escape * (1 - share) * count / total
        escape *= share
    return probs


def best_tree(text: Sequence[int], own: SlowTable, shared: SlowTable, budget: int, max_depth: int) -> list[Node]:
    """The `budget` likeliest paths, best first."""
    nodes: list[Node] = []
    frontier: list[tuple[float, tuple[int, ...]]] = []

    def expand(path: tuple[int, ...], prob: float) -> None:
        probs = predict([*text, *path], own, shared)
        for token, next_prob in sorted(probs.items(), key=lambda item: (-item[1], item[0]))[:MAX_CHILDREN]:
            path_prob = prob * min(next_prob, MAX_PROB)
            if path_prob >= MIN_PATH_PROB:
                heapq.heappush(frontier, (-path_prob, (*path, token)))

    expand((), 1.0)
    while frontier and len(nodes) < budget:
        negative, path = heapq.heappop(frontier)
        nodes.append(Node(path, -negative))
        if len(path) < max_depth:
            expand(path, -negative)
    return nodes


def path_prob(path: Sequence[int], text: Sequence[int], own: SlowTable, shared: SlowTable) -> float:
    """Probability of one path, token by token."""
    prob = 1.0
    for depth, token in enumerate(path):
        prob *= min(predict([*text, *path[:depth]], own, shared).get(token, 0.0), MAX_PROB)
    return prob
