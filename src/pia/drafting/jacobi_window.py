"""The window of Jacobi lookahead decoding: guesses at the text ahead that every forward makes better."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

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

    A step may feed the first columns only: these slide on, the others stay as they are. Nothing refers to a place in
    the text, so a window that was left out for a while goes on as it is.

    Args:
        config: sizes, and the seed of what is drawn.
        text: what the first tokens are drawn from, at least one token.
    """

    def __init__(self, config: JacobiConfig, text: npt.NDArray[np.int32]) -> None:
        self._full_depth = config.ngram_size - 1
        size = config.window_size + self._full_depth - 1
        # A generator of its own: what is sampled must be the same with a window and without.
        drawn = np.random.default_rng((config.seed, zlib.crc32(text.tobytes()))).choice(text, size - 1)
        self._columns = [[-1], *([token] for token in drawn.tolist())]  # the head of the first is whatever c is
        self._parents: dict[tuple[int, int], npt.NDArray[np.int32]] = {}

    @property
    def num_columns(self) -> int:
        """Columns there are: W, and more before the window is full."""
        return len(self._columns)

    @property
    def depth(self) -> int:
        """Tokens of a column, its head included."""
        return len(self._columns[0])

    @property
    def is_full(self) -> bool:
        return self.depth == self._full_depth

    @property
    def levels(self) -> list[list[int]]:
        """The levels as published, level 0 without the current token."""
        levels = [list(level) for level in zip(*self._columns, strict=True)]
        return [levels[0][1:], *levels[1:]]

    @property
    def num_nodes(self) -> int:
        """Nodes that the whole window takes."""
        return len(self._columns) * self.depth - 1

    def nodes(self, max_nodes: int, max_depth: int) -> DraftTree:
        """As many columns as these limits hold, as a tree behind the current token, level by level.

        Before the window is full it is fed whole or not at all, since its columns must keep step.
        """
        num_columns = min((max_nodes + 1) // self.depth, max_depth + 2 - self.depth, self.num_columns)
        if num_columns < 1 or not (self.is_full or num_columns == self.num_columns):
            return DraftTree.empty()
        columns = self._columns[:num_columns]
        token_ids = [token for level in zip(*columns, strict=True) for token in level][1:]
        size = len(token_ids)
        sources = np.full(size, _JACOBI, np.uint8)
        parents = self._parents_of(num_columns)
        return DraftTree(np.array(token_ids, np.int32), parents, np.zeros(size, np.float32), sources)

    def update(self, current_token: int, next_of_root: int, next_ids: Sequence[int]) -> list[list[int]]:
        """Takes in a forward over the nodes of some columns.

        Args:
            current_token: the root that they were fed behind.
            next_of_root: the likeliest token behind the root.
            next_ids: the likeliest token behind each node, in the order of `nodes`.

        Returns:
            the n-grams that this makes, N tokens each; none before the window is full.
        """
        num_columns = (len(next_ids) + 1) // self.depth
        answers = list(next_ids[-num_columns:]) if self.depth > 1 else [next_of_root, *next_ids]
        if not self.is_full:
            assert num_columns == self.num_columns, "columns that are not full keep step"
            for column, answer in zip(self._columns, answers, strict=True):
                column.append(answer)
            del self._columns[0]
            return []
        self._columns[0][0] = current_token
        ngrams = [[*column, answer] for column, answer in zip(self._columns, answers, strict=False)]
        self._columns[:num_columns] = [ngram[1:] for ngram in ngrams]
        return ngrams

    def _parents_of(self, num_columns: int) -> npt.NDArray[np.int32]:
        """Parents of the nodes, which depend on the window's form alone."""
        form = (num_columns, self.depth)
        if form not in self._parents:
            in_level_0 = range(-1, num_columns - 2)  # a chain
            # Level 1 hangs below level 0, where the root counts as its first; a level has one node a column.
            below = range(-1, num_columns * (self.depth - 1) - 1)
            self._parents[form] = np.array([*in_level_0, *below], np.int32)
        return self._parents[form]
