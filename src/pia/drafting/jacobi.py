"""Jacobi lookahead decoding as a source of drafts (Fu et al., arXiv 2402.02057)."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np

from pia import _core
from pia.config import JacobiConfig
from pia.drafting.guesses import GuessAcceptance, Guesses
from pia.drafting.jacobi_window import JacobiWindow
from pia.drafting.source import DraftSession, NoDrafts, RecyclingSession
from pia.drafting.token_ids import as_token_ids
from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import DraftTree

_ANY_NUMBER = 256
"""N-grams by one first token where no number is given: all of them are looked at each time."""
_CAPACITY = 1 << 16
"""N-grams that a request's pool holds at most."""


def new_pool(config: JacobiConfig) -> _core.NgramPool:
    """An empty pool of the configured size."""
    return _core.NgramPool.create(config.ngram_size, config.max_ngrams or _ANY_NUMBER, _CAPACITY)


class JacobiSession:
    """One request's window and pool.

    Alone it drafts the n-grams of the pool that begin with the last token, as published. With an inner session that
    reads the same pool, all drafts are that one's, and this one keeps the window going.

    Where it differs from the published program: the prompt is fed before the window begins, so the window is full one
    step later; guesses may be verified before it is full, which only a pool filled from the prompt has; and an EOS
    token in the window is left there, since a window token is only ever context.

    Args:
        config: sizes of window and pool.
        prompt_ids: int32 `[n]`.
        pool: what is filled.
        inner: the session that drafts; without one, or with one that never does, the pool alone.
        acceptance: how likely guesses are; a new one by default.
    """

    def __init__(
        self,
        config: JacobiConfig,
        prompt_ids: np.ndarray,
        *,
        pool: _core.NgramPool | None = None,
        inner: DraftSession | None = None,
        acceptance: GuessAcceptance | None = None,
    ) -> None:
        prompt = as_token_ids(prompt_ids)
        self.config = config
        self.pool = new_pool(config) if pool is None else pool
        self.inner = None if isinstance(inner, NoDrafts) else inner
        self._recycling = self.inner if isinstance(self.inner, RecyclingSession) else None
        self._inner_top = self._recycling.num_top if self._recycling is not None else 0
        self._acceptance = GuessAcceptance() if acceptance is None else acceptance
        self._window = JacobiWindow(config, prompt) if len(prompt) else None
        self._recent: list[int] = prompt[-config.ngram_size :].tolist()
        self._guesses: Guesses | None = None
        self._made: list[list[int]] = []  # n-grams on their way into the pool
        if config.pool_from_prompt:
            self.pool.add_text(prompt)

    def propose(self, budget: int, max_depth: int) -> DraftTree:
        if self.inner is not None:
            return self.inner.propose(budget, max_depth)
        self._guesses = Guesses(self.pool.ngrams(self._recent[-1])) if self._recent else None
        return self._guesses.tree(self._acceptance, budget, max_depth) if self._guesses else DraftTree.empty()

    def window(self, max_nodes: int, max_depth: int) -> DraftTree:
        """What to feed besides the draft: context for better guesses, never verified."""
        return self._window.nodes(max_nodes, max_depth) if self._window is not None else DraftTree.empty()

    @property
    def num_top(self) -> int:
        """How many likeliest tokens of each place it wants to know of this step: one where a window was fed."""
        return max(self._inner_top, 1 if self._window is not None and self._window.is_fed else 0)

    def recycle(self, fed: DraftTree, top: TopTokens) -> None:
        """Takes in what was found likely behind the last token and behind each node; those of the window come last.

        To be told before the step's tokens are, for they move the root on.
        """
        if self._window is not None and self._window.is_fed:
            likeliest = top.ids[: len(fed) + 1, 0].clip(min=0).tolist()  # broken logits have no likeliest token
            self._made += self._window.update(self._recent[-1], likeliest[0], likeliest[1:])
        if self._recycling is not None and self._inner_top:
            self._recycling.recycle(fed, top)

    def observe(self, token_ids: Sequence[int]) -> None:
        """Tells which tokens the model emitted. What is learned of a pool is learned before the pool knows more."""
        if self.inner is not None:
            self.inner.observe(token_ids)
        self._move_on(token_ids)

    def end(self, *, commit: bool) -> None:
        if self.inner is not None:
            self.inner.end(commit=commit)

    def _move_on(self, token_ids: Sequence[int]) -> None:
        if self._guesses is not None:
            self._guesses.teach(self._acceptance, token_ids)
            self._guesses = None
        self.pool.add(self._made)
        self._made = []
        size = self.config.ngram_size
        text = [*self._recent[-(size - 1) :], *token_ids]
        if self.config.pool_from_prompt:
            self.pool.add_text(np.array(text, np.int32))
        self._recent = text[-size:]


class JacobiSource:
    """The source of sessions with a window; nothing of a request outlives it but how likely guesses are.

    Args:
        config: sizes of window and pool.
        acceptance: how likely guesses are; a new one by default.
    """

    def __init__(self, config: JacobiConfig, acceptance: GuessAcceptance | None = None) -> None:
        self.config = config
        self._acceptance = GuessAcceptance() if acceptance is None else acceptance

    def begin(
        self,
        prompt_ids: np.ndarray,
        *,
        stop_ids: Set[int] = frozenset(),
        namespace: str = "",
        corpora: Sequence[str] = (),
        pool: _core.NgramPool | None = None,
        inner: DraftSession | None = None,
    ) -> JacobiSession:
        """Opens a session for a request; `pool` and `inner` as of `JacobiSession`. It has no use for the others."""
        return JacobiSession(self.config, prompt_ids, pool=pool, inner=inner, acceptance=self._acceptance)
