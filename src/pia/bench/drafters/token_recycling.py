"""Token Recycling as published (Luo et al. 2024, arXiv 2408.08696), to compare with and nothing else.

A matrix holds, for each token of the vocabulary, the k = 8 likeliest next tokens of the latest forward that was fed
it, whether as text or as a draft that came to nothing; all requests share it. A draft is looked up in it along one tree
that never changes: under each node a fixed number of ranks, more where the way there has good ranks. The paper's own
tree has about 80 nodes; this one is made from what a rank is worth, the product along the path, so that any prefix of
it is the best tree of that size. What is not in the matrix yet is left out, where the original feeds what stands there.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import SOURCE_NAMES, DraftTree

NUM_NODES = 80
"""Nodes of the tree at its own size."""
_K = 8
_MAX_DEPTH = 6
_RANK_WORTH = (0.46, 0.12, 0.052, 0.042, 0.027, 0.025, 0.021, 0.014)
"""How often the next token was what the matrix had at each rank: of the demo model's answers to 20 questions."""
_UNKNOWN = -1
_SOURCE = SOURCE_NAMES.index("recycled")


class Template(NamedTuple):
    """A tree without tokens, best first."""

    parents: npt.NDArray[np.int32]
    """`[n]`; -1 is the last token."""
    ranks: npt.NDArray[np.int32]
    """Which of its parent's likeliest next tokens a node is, `[n]`."""
    depths: npt.NDArray[np.int32]
    """`[n]`, from 1."""
    probs: npt.NDArray[np.float32]
    """What the ranks on the way down are worth, multiplied, `[n]`."""


@lru_cache
def template(num_nodes: int) -> Template:
    """The tree of so many nodes in which the next tokens are expected most often."""
    nodes: list[tuple[int, int, int, float]] = []
    queue = [(-worth, -1, rank, 1) for rank, worth in enumerate(_RANK_WORTH)]
    while queue and len(nodes) < num_nodes:
        negative, parent, rank, depth = heapq.heappop(queue)
        nodes.append((parent, rank, depth, -negative))
        if depth < _MAX_DEPTH:
            for child, worth in enumerate(_RANK_WORTH):
                heapq.heappush(queue, (negative * worth, len(nodes) - 1, child, depth + 1))
    columns = list(zip(*nodes, strict=True)) or [()] * 4
    parents, ranks, depths = (np.array(column, np.int32) for column in columns[:3])
    return Template(parents, ranks, depths, np.array(columns[3], np.float32))


class TokenRecycling:
    """A source of drafts, for `Lookahead(cache=...)` and for a replay. For one thread at a time."""

    vocab_size = None
    tokenizer_fingerprint = None

    def __init__(self) -> None:
        self._matrix = np.full((0, _K), _UNKNOWN, np.int32)

    def bind(self, vocab_size: int | None = None, fingerprint: str | None = None) -> None:
        """Any tokenizer will do, as long as it stays the same."""

    def begin(
        self,
        prompt_ids: npt.NDArray[np.int32],
        *,
        stop_ids: Set[int] = frozenset(),
        namespace: str = "",
        corpora: Sequence[str] = (),
        sources: Collection[str] = (),
    ) -> _Session:
        """Opens a request. The prompt teaches nothing but its last token, whose logits the first forward tells."""
        return _Session(self, int(prompt_ids[-1]) if len(prompt_ids) else _UNKNOWN)

    def draft(self, last_id: int, budget: int, max_depth: int) -> DraftTree:
        """Fills the template from the matrix, level by level."""
        shape = template(budget)
        tokens = np.full(len(shape.parents) + 1, _UNKNOWN, np.int32)
        tokens[-1] = last_id  # the entry of parent -1
        for depth in range(1, min(max_depth, _MAX_DEPTH) + 1):
            nodes = np.flatnonzero(shape.depths == depth)
            tokens[nodes] = self._likeliest(tokens[shape.parents[nodes]], shape.ranks[nodes])
        known = np.flatnonzero(tokens[:-1] != _UNKNOWN)  # whose parents are known as well
        places = np.full(len(tokens), -1, np.int32)
        places[known] = np.arange(len(known))
        sources = np.full(len(known), _SOURCE, np.uint8)
        return DraftTree(tokens[known], places[shape.parents[known]], shape.probs[known], sources)

    def learn(self, token_ids: npt.NDArray[np.int32], likeliest: npt.NDArray[np.int32]) -> None:
        """Takes the likeliest next tokens of these tokens, `[n, k]`; of one that is there twice, the last ones."""
        size = max(int(token_ids.max(initial=0)), int(likeliest.max(initial=0))) + 1
        if size > len(self._matrix):
            grown = np.full((2 * size, _K), _UNKNOWN, np.int32)
            grown[: len(self._matrix)] = self._matrix
            self._matrix = grown
        self._matrix[token_ids, : likeliest.shape[1]] = likeliest[:, :_K]

    def _likeliest(self, token_ids: npt.NDArray[np.int32], ranks: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        is_known = (token_ids >= 0) & (token_ids < len(self._matrix))
        found = np.full(len(token_ids), _UNKNOWN, np.int32)
        found[is_known] = self._matrix[token_ids[is_known], ranks[is_known]]
        return found


class _Session:
    """One request; all it knows of itself is its last token."""

    num_top = _K

    def __init__(self, source: TokenRecycling, last_id: int) -> None:
        self._source = source
        self._last_id = last_id

    def propose(self, budget: int, max_depth: int) -> DraftTree:
        return self._source.draft(self._last_id, min(budget, NUM_NODES), max_depth)

    def recycle(self, fed: DraftTree, top: TopTokens) -> None:
        if self._last_id >= 0:
            fed_ids = np.concatenate([np.array([self._last_id], np.int32), fed.token_ids])
            self._source.learn(fed_ids, top.ids[: len(fed_ids)])

    def observe(self, token_ids: Sequence[int]) -> None:
        self._last_id = int(token_ids[-1])

    def end(self, *, commit: bool) -> None:
        """What was learned stays: the matrix is one for all requests."""
