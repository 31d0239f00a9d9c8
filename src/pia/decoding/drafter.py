"""A source's session for one request: what it proposes within the request's limits, and what it learns from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pia.config import Shape
from pia.decoding.request import Request
from pia.drafting.budget import BudgetPolicy
from pia.drafting.shape import best_chain, branches
from pia.drafting.source import DraftSession, NoDrafts
from pia.drafting.tree import DraftTree


class Drafter:
    """Drafts for one request.

    Args:
        session: the source's session.
        max_depth: most tokens ahead.
        shape: shape of the drafts.
        max_length: position no draft may pass (the model's own limit), or `None`.
        vocab_size: ids from here on are unknown to the model and never fed; `None` for no limit.
        depth_at: how far a draft may run ahead of a position, or `None` for any number; for models whose positions
            depend on the length of the text.
    """

    def __init__(
        self,
        session: DraftSession,
        *,
        max_depth: int,
        shape: Shape = "tree",
        max_length: int | None = None,
        vocab_size: int | None = None,
        depth_at: Callable[[int], int | None] | None = None,
    ) -> None:
        self.session = session
        self.proposed = DraftTree.empty()
        """What the source proposed at this step, before its size was chosen."""
        self._max_depth = max_depth
        self._shape = shape
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._depth_at = depth_at

    def propose(self, request: Request, budget: int) -> None:
        """Asks the source for a tree of at most `budget` nodes, into `proposed`."""
        depth = self._depth(request)
        self.proposed = DraftTree.empty()
        if budget == 0 or depth <= 0:
            return
        tree = self.session.propose(budget, depth)
        if self._vocab_size is not None and len(tree) and tree.token_ids.max() >= self._vocab_size:
            tree = tree.prefix(int(np.argmax(tree.token_ids >= self._vocab_size)))
        self.proposed = best_chain(tree) if self._shape == "chain" else tree

    def take(self, size: int, most: int) -> DraftTree:
        """The proposal's best `size` nodes in the shape to be fed, which never has more than `most`."""
        tree = self.proposed.prefix(size)
        return branches(tree, most) if self._shape == "branches" else tree

    def learn(self, policy: BudgetPolicy, tree: DraftTree, nodes: list[int], token_ids: list[int]) -> None:
        """Learns from a step: of `tree`, `nodes` were accepted, and these tokens were emitted."""
        try:
            self.session.observe(token_ids)
        except ValueError:
            # Models have room for more ids than their tokenizer fills. A text with such an id cannot be learned.
            self.session.end(commit=False)
            self.session = NoDrafts()
        if self._shape != "branches":  # there the nodes are copies of those proposed
            policy.observe_row(self.proposed, len(tree), nodes, token_ids[0])

    def _depth(self, request: Request) -> int:
        """How far a draft may run ahead: a step emits one token more than its depth, and none beyond the end."""
        depth = self._max_depth
        if request.num_left is not None:
            depth = min(depth, request.num_left - 1)
        if self._max_length is not None:
            depth = min(depth, self._max_length - len(request.token_ids))
        limit = self._depth_at(len(request.token_ids) - 1) if self._depth_at else None
        return depth if limit is None else min(depth, limit)
