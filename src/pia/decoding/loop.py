"""The decoding loop: draft, verify, accept, keep, learn. Everything that generates goes through it."""

from __future__ import annotations

from collections.abc import Generator
from time import perf_counter

import numpy as np
import torch

from pia.config import Shape
from pia.decoding.accept import accept
from pia.decoding.chooser import TokenChooser
from pia.decoding.request import Request
from pia.decoding.stats import Step
from pia.drafting.budget import BudgetPolicy
from pia.drafting.shape import best_chain, branches
from pia.drafting.source import DraftSession, NoDrafts
from pia.drafting.tree import DraftTree
from pia.models.runner import Runner


class Drafter:
    """A source's session under a budget: what to verify at each step of one request.

    Args:
        session: the source's session.
        policy: chooses sizes and learns from outcomes.
        max_depth: most tokens ahead.
        shape: shape of the drafts.
        max_length: position no draft may pass (the model's own limit), or `None`.
        vocab_size: ids from here on are unknown to the model and never fed; `None` for no limit.
    """

    def __init__(
        self,
        session: DraftSession,
        policy: BudgetPolicy,
        *,
        max_depth: int,
        shape: Shape = "tree",
        max_length: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.session = session
        self.policy = policy
        self._max_depth = max_depth
        self._shape = shape
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._proposed = DraftTree.empty()

    def draft(self, request: Request) -> DraftTree:
        """The tree to verify now, perhaps empty."""
        self._proposed = self._propose(request)
        chosen = self._proposed.prefix(self.policy.choose(self._proposed.probs))
        return branches(chosen, self.policy.max_nodes) if self._shape == "branches" else chosen

    def learn(self, tree: DraftTree, nodes: list[int], token_ids: list[int]) -> None:
        """Learns from a step: of `tree`, `nodes` were accepted, and these tokens were emitted."""
        try:
            self.session.observe(token_ids)
        except ValueError:
            # Models have room for more ids than their tokenizer fills. A text with such an id cannot be learned.
            self.session.end(commit=False)
            self.session = NoDrafts()
        if self._shape != "branches":  # there the nodes are copies of those proposed
            self.policy.observe(self._proposed, len(tree), nodes, token_ids[0])

    def _propose(self, request: Request) -> DraftTree:
        depth = self._depth(request)
        budget = self.policy.limit if depth > 0 else 0
        if budget == 0:
            return DraftTree.empty()
        tree = self.session.propose(budget, depth)
        if self._vocab_size is not None and len(tree) and tree.token_ids.max() >= self._vocab_size:
            tree = tree.prefix(int(np.argmax(tree.token_ids >= self._vocab_size)))
        return best_chain(tree) if self._shape == "chain" else tree

    def _depth(self, request: Request) -> int:
        """How far a draft may run ahead: a step emits one token more than its depth, and none beyond the end."""
        depth = self._max_depth
        if request.num_left is not None:
            depth = min(depth, request.num_left - 1)
        if self._max_length is not None:
            depth = min(depth, self._max_length - len(request.token_ids))
        return depth


def decode_steps(
    runner: Runner, request: Request, chooser: TokenChooser, drafter: Drafter
) -> Generator[Step, None, None]:
    """Decodes a request, one forward a step, the prefill first.

    The session ends with the generator: learned from if the request came to its end, without a trace if it was broken
    off by an exception or by a consumer that stopped listening.
    """
    try:
        step = _prefill(runner, request, chooser, drafter)
        while request.finish_reason is None:
            yield step
            step = _step(runner, request, chooser, drafter)
        drafter.session.end(commit=True)
        yield step
    finally:
        drafter.session.end(commit=False)


@torch.no_grad()
def _prefill(runner: Runner, request: Request, chooser: TokenChooser, drafter: Drafter) -> Step:
    """Feeds the prompt and emits the first token."""
    start = perf_counter()
    chooser.load(runner.prefill(request.prompt_ids))
    forwarded = perf_counter()
    first = accept(DraftTree.empty(), chooser, request)
    drafter.learn(DraftTree.empty(), first.nodes, first.token_ids)
    return Step(
        token_ids=first.token_ids,
        sources=first.sources,
        forward_s=forwarded - start,
        accept_s=perf_counter() - forwarded,
        is_prefill=True,
        finish_reason=request.finish_reason,
    )


@torch.no_grad()
def _step(runner: Runner, request: Request, chooser: TokenChooser, drafter: Drafter) -> Step:
    """Draft, verify, accept, keep, learn."""
    start = perf_counter()
    tree = drafter.draft(request)
    drafted = perf_counter()
    logits = runner.forward(request.token_ids[-1], tree)
    forwarded = perf_counter()
    chooser.load(logits)
    accepted = accept(tree, chooser, request)
    walked = perf_counter()
    runner.keep(accepted.rows)
    drafter.learn(tree, accepted.nodes, accepted.token_ids)
    return Step(
        token_ids=accepted.token_ids,
        sources=accepted.sources,
        num_nodes=len(tree),
        draft_s=drafted - start,
        forward_s=forwarded - drafted,
        accept_s=walked - forwarded,
        keep_s=perf_counter() - walked,
        finish_reason=request.finish_reason,
    )
