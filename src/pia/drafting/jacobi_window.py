"""The window of Jacobi lookahead decoding: guesses at the text ahead that every forward makes better."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pia.config import JacobiConfig
from pia.drafting.tree import SOURCE_NAMES, DraftTree

_JACOBI = SOURCE_NAMES.index("jacobi")


class JacobiWindow:
    """W columns of N - 1 tokens; a step puts one more below each, and what it pushed out above moves on.

    Drawn for W = 4 and N = 4, behind the last accepted token c at position p (Fu et al., arXiv 2402.02057)::

        column        0     1     2     3
        level 0       c     a1    a2    a3       positions  p    p+1  p+2  p+3
        level 1       b0    b1    b2    b3                  p+1  p+2  p+3  p+4
        level 2       d0    d1    d2    d3                  p+2  p+3  p+4  p+5
        next          e0    e1    e2    e3       what the model answers behind level 2

    Level 0 is one guess at the text that follows c, token by token. A column goes on below its own head: b2 was what
    followed a2 once, d2 what followed b2. So the window is a token tree with c as its root, and positions and masks are
    those of any tree::

        parent of     a1: c    a2: a1   a3: a2   b0: c    bi: ai   di: bi
        row of        c sees c;   a2 sees c a1 a2;   b2 sees c a1 a2 b2;   d2 sees c a1 a2 b2 d2;   d0 sees c b0 d0

    A step collects the n-grams (c, b0, d0, e0) and (ai, bi, di, ei), and then each column slides on by one token: it
    becomes (bi, di, ei), the first one (new c, d0, e0), whatever was accepted meanwhile. That is the published shift:
    level 0 becomes level 1 without its head, level k becomes level k + 1, the last level is what was answered.

    To begin with, level 0 has W + N - 3 tokens drawn from the prompt and there are no others. N - 2 steps each put an
    answer below every column and drop the first column; then the window is full.

    A step may feed the first columns only: these grow or slide on, the others stay as they are. Nothing refers to a
    place in the text, so a window that was left out for a while goes on as it is.

    Args:
        config: sizes, and the seed of what is drawn.
        text: what the first tokens are drawn from, at least one token.
    """

    def __init__(self, config: JacobiConfig, text: npt.NDArray[np.int32]) -> None:
        self._window_size, self._full_depth = config.window_size, config.ngram_size - 1
        size = self._window_size + self._full_depth - 1
        # A generator of its own: what is sampled must be the same with a window and without.
        drawn = np.random.default_rng((config.seed, zlib.crc32(text.tobytes()))).choice(text, size - 1)
        self._columns = [[-1], *([token] for token in drawn.tolist())]  # the head of the first is whatever c is
        self._fed: tuple[int, ...] = ()
        self._forms: dict[tuple[int, ...], _Form] = {}

    @property
    def levels(self) -> list[list[int]]:
        """The levels as published, level 0 without the current token."""
        levels = [[column[k] for column in self._columns if len(column) > k] for k in range(len(self._columns[0]))]
        return [levels[0][1:], *levels[1:]]

    @property
    def num_columns(self) -> int:
        """Columns there are: W, and more before the window is full."""
        return len(self._columns)

    @property
    def num_nodes(self) -> int:
        """Nodes that the whole window takes."""
        return sum(map(len, self._columns)) - 1

    @property
    def is_full(self) -> bool:
        return len(self._columns[-1]) == self._full_depth  # no column is deeper than those before it

    @property
    def is_fed(self) -> bool:
        """Nodes were given, and what came of them was not told yet."""
        return bool(self._fed)

    def nodes(self, max_nodes: int, max_depth: int) -> DraftTree:
        """As many columns as these limits hold, as a tree behind the current token, level by level."""
        depths = [len(column) for column in self._columns]
        num_nodes, num_fed = -1, 0
        while num_fed < len(depths) and (max_nodes > 0 or not self.num_nodes):
            num_nodes += depths[num_fed]
            if num_nodes > max_nodes or num_fed + depths[num_fed] - 1 > max_depth:
                break
            num_fed += 1
        self._fed = tuple(depths[:num_fed])
        if not self._fed:
            return DraftTree.empty()
        form = self._form(self._fed)
        token_ids = [self._columns[column][level] for column, level in form.places]
        size = len(token_ids)
        sources = np.full(size, _JACOBI, np.uint8)
        return DraftTree(np.array(token_ids, np.int32), form.parents, np.zeros(size, np.float32), sources)

    def update(self, current_token: int, next_of_root: int, next_ids: Sequence[int]) -> list[list[int]]:
        """Takes in a forward over the nodes that were given last, once.

        Args:
            current_token: the root that they were fed behind.
            next_of_root: the likeliest token behind the root.
            next_ids: the likeliest token behind each node; other nodes may stand before them.

        Returns:
            the n-grams that this makes, N tokens each; none of columns that are not full.
        """
        assert self.is_fed
        ngrams = []
        form = self._form(self._fed)
        next_ids = next_ids[len(next_ids) - len(form.places) :]
        self._columns[0][0] = current_token
        for number, row in enumerate(form.deepest):
            column = self._columns[number]
            column.append(next_of_root if row < 0 else next_ids[row])
            if len(column) > self._full_depth:
                ngrams.append(column)
                self._columns[number] = column[1:]
        if len(self._columns) > self._window_size:
            del self._columns[0]
        self._fed = ()
        return ngrams

    def _form(self, depths: tuple[int, ...]) -> _Form:
        if depths not in self._forms:
            self._forms[depths] = _Form.of(depths)
        return self._forms[depths]


class _Form(NamedTuple):
    """How columns of given depths lie in a tree."""

    places: list[tuple[int, int]]
    """Column and level of each node."""
    parents: npt.NDArray[np.int32]
    """Parent of each node; -1 is the current token, which is the head of column 0."""
    deepest: list[int]
    """The last node of each column; -1 likewise."""

    @classmethod
    def of(cls, depths: Sequence[int]) -> _Form:
        places = [(i, k) for k in range(max(depths)) for i, depth in enumerate(depths) if depth > k][1:]
        node_at = {place: node for node, place in enumerate(places)} | {(0, 0): -1}
        parents = [node_at[(i, k - 1) if k else (i - 1, 0)] for i, k in places]
        return cls(places, np.array(parents, np.int32), [node_at[i, depth - 1] for i, depth in enumerate(depths)])
