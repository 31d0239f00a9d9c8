"""What the host does while the device runs a forward: it learns from the last step and prepares drafts for the next."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from pia.drafting.budget import BudgetPolicy
from pia.drafting.tree import DraftTree

if TYPE_CHECKING:
    from pia.decoding.drafter import Drafter
    from pia.decoding.request import Request


class Overlap:
    """One step's work that nothing waits for; to be called once the forward is launched.

    Args:
        requests: the rows of the forward.
        drafters: theirs.
        trees: what is fed.
        policy: sizes of the drafts.
        ended: drafters of rows that have come to their end; what they are to leave in the cache is learned now, and the
            list is emptied.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        drafters: Sequence[Drafter],
        trees: Sequence[DraftTree],
        policy: BudgetPolicy,
        ended: list[Drafter],
    ) -> None:
        self._rows = list(zip(requests, drafters, trees, strict=True))
        self._policy = policy
        self._ended = ended
        self.started_at: float | None = None
        """When the forward had been launched, in seconds of `perf_counter`; `None` if this was not called."""
        self.seconds = 0.0
        """How long it took."""

    def __call__(self) -> None:
        self.started_at = perf_counter()
        commit(self._ended, self._policy)
        for _, drafter, _ in self._rows:
            drafter.catch_up(self._policy)
        limit = self._policy.limit
        for request, drafter, tree in self._rows:
            drafter.prepare(request, tree, limit)
        self.seconds = perf_counter() - self.started_at


def commit(ended: list[Drafter], policy: BudgetPolicy) -> None:
    """Lets requests that have come to their end teach the cache, and empties the list."""
    while ended:
        ended.pop(0).finish(policy)
