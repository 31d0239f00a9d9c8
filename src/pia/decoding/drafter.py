"""A source's session for one request: what it proposes within the request's limits, and what it learns from it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from pia.config import Shape
from pia.decoding.request import Request
from pia.drafting.budget import BudgetPolicy
from pia.drafting.shape import best_chain, branches
from pia.drafting.source import DraftSession, NoDrafts, PatientSession, RecyclingSession, WindowedSession
from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import DraftTree

_NO_DRAFT = DraftTree.empty()
_MOST_NODES = 1024
"""No step verifies more, whatever the budget: masks grow with the square, and so late a node is hardly ever right."""


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
        self._use(session)
        self.proposed = _NO_DRAFT
        """What the source proposed at this step, before its size was chosen."""
        self.num_prepared = 0
        """Drafts that were made for what might come of this step."""
        self._is_resting = False  # nothing is drafted for a while, since it did not pay
        self._lessons: list[tuple[DraftTree, int, list[int], int]] = []
        self._max_depth = max_depth
        self._shape = shape
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._depth_at = depth_at

    def propose(self, request: Request, budget: int) -> None:
        """Asks the source for a tree of at most `budget` nodes, into `proposed`."""
        depth = self._depth(request)
        self.proposed = _NO_DRAFT
        self.num_prepared = 0
        self._is_resting = budget == 0
        if budget == 0 or depth <= 0:
            return
        tree = self.session.propose(min(budget, _MOST_NODES), depth)
        if self._vocab_size is not None and len(tree) and tree.token_ids.max() >= self._vocab_size:
            tree = tree.prefix(int(np.argmax(tree.token_ids >= self._vocab_size)))
        self.proposed = best_chain(tree) if self._shape == "chain" else tree

    def take(self, size: int, most: int) -> DraftTree:
        """The proposal's best `size` nodes in the shape to be fed, which never has more than `most`."""
        tree = self.proposed.prefix(size)
        return branches(tree, most) if self._shape == "branches" else tree

    def window(self, request: Request, max_nodes: int) -> DraftTree:
        """What the source wants fed behind the draft, though it is none; nothing where no draft can come of it."""
        room = self._room(request)
        if self._windowed is None or max_nodes == 0 or room < 1 or request.num_left == 1:
            return _NO_DRAFT
        return self._windowed.window(max_nodes, room)

    @property
    def num_top(self) -> int:
        """How many likeliest tokens of each place of this step it wants to know; 0 for none, as where it rests."""
        if self._recycling is None or (self._is_resting and self._windowed is None):
            return 0
        return self._recycling.num_top

    def recycle(self, tree: DraftTree, top: TopTokens) -> None:
        """Hands on what the forward over `tree` found likely, before anything else is learned from it."""
        num_top = self.num_top  # a recording may have asked for more
        if self._recycling is not None and num_top:
            self._recycling.recycle(tree, top if top.num_each <= num_top else top.at(slice(None), num_top))

    @property
    def was_prepared(self) -> bool:
        """Whether the draft of this step had been made while the last forward ran."""
        return self._patient is not None and len(self.proposed) > 0 and self._patient.was_prepared

    def learn(self, policy: BudgetPolicy, tree: DraftTree, nodes: list[int], token_ids: list[int]) -> None:
        """Learns from a step: of `tree`, `nodes` were accepted, and these tokens were emitted."""
        self._take_note(tree, nodes, token_ids, self.session.observe)
        self.catch_up(policy)

    def advance(self, tree: DraftTree, nodes: list[int], token_ids: list[int]) -> None:
        """The same, but only what the next draft cannot do without; the rest waits for `catch_up`."""
        self._take_note(tree, nodes, token_ids, self._patient.advance if self._patient else self.session.observe)

    def catch_up(self, policy: BudgetPolicy) -> None:
        """Learns what was put off."""
        if self._patient is not None:
            self._patient.learn()
        for lesson in self._lessons:
            policy.observe_row(*lesson)
        self._lessons.clear()

    def prepare(self, request: Request, tree: DraftTree, budget: int) -> None:
        """Makes drafts for what may come of this step's forward, over `tree`; none near the end, which cuts them."""
        if self._patient is not None and budget > 0 and self._depth(request) == self._max_depth:
            self.num_prepared = self._patient.prepare(tree, budget, self._max_depth)

    def finish(self, policy: BudgetPolicy) -> None:
        """Ends a request that has come to its end: the source learns what it produced."""
        self.catch_up(policy)
        self.session.end(commit=True)

    def _use(self, session: DraftSession) -> None:
        self.session = session
        self._patient = session if isinstance(session, PatientSession) else None
        self._recycling = session if isinstance(session, RecyclingSession) else None
        self._windowed = session if isinstance(session, WindowedSession) else None

    def _take_note(
        self, tree: DraftTree, nodes: list[int], token_ids: list[int], observe: Callable[[list[int]], None]
    ) -> None:
        try:
            observe(token_ids)
        except ValueError:
            # Models have room for more ids than their tokenizer fills. A text with such an id cannot be learned.
            self.session.end(commit=False)
            self._use(NoDrafts())
        if self._shape != "branches":  # there the nodes are copies of those proposed
            self._lessons.append((self.proposed, len(tree), nodes, token_ids[0]))

    def _depth(self, request: Request) -> int:
        """How far a draft may run ahead: a step emits one token more than its depth, and none beyond the end."""
        depth = min(self._max_depth, self._room(request))
        return depth if request.num_left is None else min(depth, request.num_left - 1)

    def _room(self, request: Request) -> int:
        """How far the model can be fed ahead."""
        room = sys.maxsize
        if self._max_length is not None:
            room = self._max_length - len(request.token_ids)
        limit = self._depth_at(len(request.token_ids) - 1) if self._depth_at else None
        return room if limit is None else min(room, limit)
