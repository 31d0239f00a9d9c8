"""N-grams that begin with the last token, as one tree: prefixes shared, probabilities by what came true."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from pia.drafting.tree import SOURCE_NAMES, DraftTree

_JACOBI = SOURCE_NAMES.index("jacobi")
_NUM_DEPTHS, _NUM_RANKS = 8, 16
_PRIOR = 4.0
"""Trials that the first estimate counts for."""
_DECAY = 0.998
_Trie = dict[int, Any]


class GuessAcceptance:
    """How often a guess comes true where the one before it has, by its depth and its rank among its siblings.

    Nothing else is known of a guess: the pool keeps no counts, only the order of last use, and rank 0 is the newest.
    Learned from every guess whose fate is known, verified or not. Threads may share one: a lost count does no harm.
    """

    def __init__(self) -> None:
        depth, rank = np.mgrid[:_NUM_DEPTHS, :_NUM_RANKS]
        first = np.where(depth == 0, 0.4, 0.6) / (1 + rank) ** 2  # as on the demo model; over all ranks less than 1
        self._hits: list[list[float]] = (_PRIOR * first).tolist()
        self._trials: list[list[float]] = np.full(first.shape, _PRIOR).tolist()

    def __call__(self, depth: int, rank: int) -> float:
        """The chance of a guess at this depth (0 for the first token ahead), given that its parent came true."""
        depth, rank = min(depth, _NUM_DEPTHS - 1), min(rank, _NUM_RANKS - 1)
        return self._hits[depth][rank] / self._trials[depth][rank]

    def observe(self, depth: int, rank: int, *, is_hit: bool) -> None:
        """Counts one guess whose parent came true."""
        depth, rank = min(depth, _NUM_DEPTHS - 1), min(rank, _NUM_RANKS - 1)
        self._hits[depth][rank] = _DECAY * self._hits[depth][rank] + is_hit
        self._trials[depth][rank] = _DECAY * self._trials[depth][rank] + 1.0


class Guesses:
    """N-grams behind one token, prefixes shared.

    Args:
        rests: what follows the token in each n-gram, the most recently used first.
    """

    def __init__(self, rests: Sequence[Sequence[int]]) -> None:
        self._root: _Trie = {}  # each token's own continuations, newest first
        for rest in rests:
            children = self._root
            for token in rest:
                children = children.setdefault(token, {})

    def tree(self, acceptance: GuessAcceptance, budget: int, max_depth: int) -> DraftTree:
        """The `budget` likeliest of the guesses, at most `max_depth` deep, best first."""
        nodes: list[tuple[int, int, float]] = []
        count = 0
        queue: list[tuple[float, int, int, int, int, _Trie]] = []

        def push(children: _Trie, parent: int, prob: float, depth: int) -> None:
            nonlocal count
            for rank, (token, below) in enumerate(children.items() if depth < max_depth else ()):
                heapq.heappush(queue, (-prob * acceptance(depth, rank), count, parent, token, depth, below))
                count += 1

        push(self._root, -1, 1.0, 0)
        while queue and len(nodes) < budget:
            negative, _, parent, token, depth, below = heapq.heappop(queue)
            nodes.append((token, parent, -negative))
            push(below, len(nodes) - 1, -negative, depth + 1)
        if not nodes:
            return DraftTree.empty()
        token_ids, parents, probs = zip(*nodes, strict=True)
        sources = np.full(len(nodes), _JACOBI, np.uint8)
        return DraftTree(
            np.array(token_ids, np.int32), np.array(parents, np.int32), np.array(probs, np.float32), sources
        )

    def teach(self, acceptance: GuessAcceptance, token_ids: Sequence[int]) -> None:
        """Counts which guesses came true, given what was emitted."""
        children = self._root
        for depth, emitted in enumerate(token_ids):
            for rank, token in enumerate(children):
                acceptance.observe(depth, rank, is_hit=token == emitted)
            if emitted not in children:
                return
            children = children[emitted]
