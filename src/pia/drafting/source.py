"""What proposes drafts: anything that can follow a request and guess how it goes on.

A source hands out one session a request, so that nothing of a request outlives it and no request needs a number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from typing import Protocol, runtime_checkable

import numpy as np

from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import DraftTree


class DraftSession(Protocol):
    """A source's view of one request. Used by one thread at a time."""

    def propose(self, budget: int, max_depth: int) -> DraftTree:
        """At most `budget` nodes, at most `max_depth` deep, that continue all tokens observed so far."""
        ...

    def observe(self, token_ids: Sequence[int]) -> None:
        """Tells which tokens the model emitted."""
        ...

    def end(self, *, commit: bool) -> None:
        """Ends the request. With `commit` its output is learned for others; without, no trace of it is left."""
        ...


@runtime_checkable
class PatientSession(DraftSession, Protocol):
    """A session that can learn, and draft ahead, while the model runs."""

    @property
    def was_prepared(self) -> bool:
        """Whether the last proposal had been made beforehand."""
        ...

    def advance(self, token_ids: list[int]) -> None:
        """The same as `observe`, but what the tokens teach waits for `learn`."""
        ...

    def learn(self) -> None:
        """Learns what was put off."""
        ...

    def prepare(self, fed: DraftTree, budget: int, max_depth: int) -> int:
        """Makes drafts for the likeliest outcomes of a forward over `fed`, and nothing else; returns how many."""
        ...


@runtime_checkable
class RecyclingSession(DraftSession, Protocol):
    """A session that makes something of what each forward found likely."""

    @property
    def num_top(self) -> int:
        """How many likeliest tokens of each place it wants to know; 0 for none."""
        ...

    def recycle(self, fed: DraftTree, top: TopTokens) -> None:
        """Tells what was found likely behind the last token and behind each node fed, `[1 + nodes, k]`.

        Called before `observe` or `advance` tell what was emitted.
        """
        ...


@runtime_checkable
class WindowedSession(RecyclingSession, Protocol):
    """A session that wants nodes to be fed which are no drafts, for what the model finds likely behind them."""

    def window(self, max_nodes: int, max_depth: int) -> DraftTree:
        """At most `max_nodes` nodes, at most `max_depth` deep, to be fed behind the draft of this step.

        They are the last nodes of the tree that `recycle` is then told of.
        """
        ...


class DraftSource(Protocol):
    """Something that drafts, shared by all requests and threads."""

    def begin(
        self,
        prompt_ids: np.ndarray,
        *,
        stop_ids: Set[int] = frozenset(),
        namespace: str = "",
        corpora: Sequence[str] = (),
        sources: Collection[str] = ("cache",),
    ) -> DraftSession:
        """Opens a session for a request.

        `stop_ids` end a learned sequence; namespaces know nothing of each other; `corpora` are names of what is
        attached, and `sources` are those of `LookaheadConfig` that are wanted. A source may also take `predicted_ids`,
        what the caller expects the output to be; it is handed on only if given.
        """
        ...


class NoDrafts:
    """The source and session of plain decoding: proposes nothing, learns nothing."""

    def begin(
        self,
        prompt_ids: np.ndarray,
        *,
        stop_ids: Set[int] = frozenset(),
        namespace: str = "",
        corpora: Sequence[str] = (),
        sources: Collection[str] = ("cache",),
    ) -> NoDrafts:
        return self

    def propose(self, budget: int, max_depth: int) -> DraftTree:
        return DraftTree.empty()

    def observe(self, token_ids: Sequence[int]) -> None:
        pass

    def end(self, *, commit: bool) -> None:
        pass
