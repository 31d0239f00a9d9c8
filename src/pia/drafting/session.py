"""One request's drafts from the draft cache."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np

from pia import _core
from pia.drafting.token_ids import TokenSequence, as_token_ids
from pia.drafting.top_tokens import NUM_TOP, TopTokens
from pia.drafting.tree import SOURCE_NAMES, DraftTree

_MAX_OUTCOMES = 4
"""Drafts made in advance at a step. A draft holds the likeliest tokens, so that no single outcome is likely, which is a
path of it and a token that it does not hold: the first four together come true at 2 to 13 % of the steps."""


class KnownContext(NamedTuple):
    """A context that was seen before: which of the latest tokens make it, and what followed."""

    source: str
    """Whose text: an entry of `SOURCE_NAMES`."""
    num_skipped: int
    """So many of the latest tokens are left out ..."""
    num_tokens: int
    """... and so many before them make the context."""
    total: int
    """How often it was seen."""
    counts: dict[int, int]
    """How often each token followed, the most frequent 64 of them."""


class DraftSession:
    """Drafts for one request; made by `DraftCache.begin`. For one thread at a time."""

    __slots__ = ("_core", "num_top")

    def __init__(self, core: _core.Session, *, recycles: bool = False) -> None:
        self._core = core
        self.num_top = NUM_TOP if recycles else 0
        """How many likeliest tokens of each place it wants to know by `recycle`."""

    def propose(self, budget: int, max_depth: int = 32) -> DraftTree:
        """The tree of at most `budget` nodes most likely to be accepted after everything observed so far.

        Raises:
            ValueError: If `budget` is negative, `max_depth` below 1, or the session has ended.
        """
        return DraftTree.unpack(self._core.propose(budget, max_depth))

    def observe(self, token_ids: TokenSequence) -> None:
        """Takes note of tokens that the model has emitted; the very next draft can use them.

        Raises:
            ValueError: If a token id lies outside the vocabulary, or the session has ended.
        """
        if isinstance(token_ids, list) and len(token_ids) < 64:
            with contextlib.suppress(TypeError):  # not whole numbers: the general way says so
                self._core.observe(token_ids)  # what a step emits: cheaper than by way of an array
                return
        self._core.observe_array(as_token_ids(token_ids))

    def recycle(self, fed: DraftTree, top: TopTokens) -> None:
        """Takes note of what a forward found likely; to be called before `observe` or `advance` tell what was emitted.

        Args:
            fed: the nodes that were fed behind the last token.
            top: likeliest tokens behind the last token and behind each node, `[1 + nodes, k]`.

        Raises:
            ValueError: If there are fewer rows than nodes, or the session has ended.
        """
        self._core.recycle(fed.token_ids, fed.parents, top.ids, top.probs.view(np.uint16))

    def advance(self, token_ids: list[int]) -> None:
        """The same as `observe`, but what the tokens teach is put off until `learn`; drafts go on behind them at once.

        Raises:
            ValueError: If a token id lies outside the vocabulary, or the session has ended.
        """
        self._core.advance(token_ids)

    def learn(self) -> None:
        """Learns what was put off.

        Raises:
            ValueError: If the session has ended.
        """
        self._core.learn()

    def prepare(self, fed: DraftTree, budget: int, max_depth: int = 32) -> int:
        """Makes the drafts for the likeliest outcomes of a forward over `fed`, a part of the last proposal.

        If `advance` is then told of one of these, and `propose` is asked for the same budget and depth, the draft is
        there: the very one that would be made then. Changes nothing else.

        Returns:
            how many drafts were made.

        Raises:
            ValueError: as of `propose`.
        """
        return self._core.prepare(fed.token_ids, fed.parents, budget, max_depth, _MAX_OUTCOMES)

    @property
    def was_prepared(self) -> bool:
        """Whether the last proposal had been made beforehand."""
        return self._core.was_prepared

    def wait(self) -> None:
        """Returns once the whole prompt is known, for those who need drafts that do not depend on time.

        Raises:
            ValueError: If the session has ended.
        """
        self._core.wait()

    def known_contexts(self) -> list[KnownContext]:
        """What is known of the contexts that end where the text ends now: why the next draft is what it is."""
        return [
            KnownContext(SOURCE_NAMES[source], skip, length, total, counts)
            for source, skip, length, total, counts in self._core.known_contexts()
        ]

    def end(self, *, commit: bool) -> None:
        """Ends the request and frees its memory. Idempotent.

        Args:
            commit: Whether the cache shall learn what was emitted. If not, nothing of its text is left.
        """
        self._core.end(commit)

    def __repr__(self) -> str:
        state = "ended" if self._core.has_ended else f"{self._core.num_bytes / 1024:,.0f} KiB"
        return f"DraftSession({state})"
