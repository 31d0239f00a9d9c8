"""Replay of recorded outputs: how many tokens a forward would have yielded with a given drafter.

The drafter sees a prompt, then after each forward the tokens it yielded: the accepted drafts and one more. The first
output token comes from prefill and counts for no forward. Warming requests are shown in one piece.

Where a trace holds the likeliest tokens, drafters that want them are told after each forward, but only of the places
that were recorded: the last token and the nodes that were accepted. A live forward also tells of the nodes that were
not accepted, so a replay of recycled drafts is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from pia.bench.drafters.protocol import Checked, Drafter, SourceDrafter, check
from pia.bench.replay_result import ReplayResult
from pia.bench.trace import TokenArray, Trace
from pia.drafting.budget import BudgetPolicy
from pia.drafting.shape import ancestors
from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import DraftTree, TreeWalk
from pia.errors import DrafterError

if TYPE_CHECKING:
    from pia.drafting.cache import DraftCache
    from pia.drafting.source import DraftSource

__all__ = [
    "NoProbabilitiesError", "ReplayResult", "Trace", "accepted_nodes", "count_accepted", "fixed_budget", "play",
    "replay", "warm", "warm_up",
]  # fmt: skip

_NO_TOKENS = np.empty(0, np.int32)
_NOTHING = Checked(DraftTree.empty(), True, True)


class NoProbabilitiesError(DrafterError):
    """A drafter that estimates no probabilities was asked for an automatic budget."""


def replay(source: DraftSource, trace: Trace, *, budget: int, max_depth: int = 32) -> ReplayResult:
    """Plays all requests of a trace, one after the other, through a source of drafts.

    Each request is committed at its end, so later ones can draft from it.

    Args:
        source: What drafts.
        trace: What the model wrote.
        budget: Most nodes a step.
        max_depth: Most drafted tokens in a row.
    """
    return play(SourceDrafter(source, max_depth=max_depth), trace, fixed_budget(budget))


def warm(cache: DraftCache, trace: Trace) -> None:
    """Lets a cache learn the outputs of all requests of a trace."""
    for output in trace.outputs:
        cache.insert(output)


def fixed_budget(budget: int) -> Callable[[], BudgetPolicy]:
    """Makes the policy of each request: that many nodes at every step."""
    return lambda: BudgetPolicy(None, max_nodes=budget, fixed=budget)


def warm_up(drafter: Drafter, trace: Trace) -> None:
    """Shows a drafter all requests of a trace, each in one piece."""
    learn = getattr(drafter, "learn", None)
    recycle = getattr(drafter, "recycle", None)
    for (prompt, output), top in zip(trace, trace.tops or repeat(None), strict=False):
        is_recycled = recycle is not None and top is not None and len(output) > 0
        if learn is not None and not is_recycled:
            learn(prompt, output)
            continue
        drafter.begin(prompt)
        if is_recycled:
            _recycle(drafter, output.tolist(), top, 0)
        if len(output):
            drafter.observe(output.tolist())
        _end(drafter)


def play(drafter: Drafter, trace: Trace, new_policy: Callable[[], BudgetPolicy]) -> ReplayResult:
    """Plays all requests of a trace, one after the other, through a drafter.

    Args:
        drafter: What drafts.
        trace: What the model wrote.
        new_policy: Makes the budget of each request.

    Raises:
        DrafterError: If the drafter breaks the protocol, or the budget needs probabilities that it does not estimate.
    """
    result = ReplayResult()
    expect = getattr(drafter, "expect", None)
    recycles = hasattr(drafter, "recycle")
    for prompt, output, predicted, top in zip(
        trace.prompts, trace.outputs, trace.predictions or repeat(_NO_TOKENS), trace.tops or repeat(None), strict=False
    ):
        policy = new_policy()
        start = perf_counter()
        if len(predicted) and expect is not None:
            policy.expect_much()
            expect(predicted)
        drafter.begin(prompt)
        result.begin_us.append((perf_counter() - start) * 1e6)
        if len(output):
            known = top if recycles else None
            _recycle(drafter, output[:1].tolist(), known, 0)
            drafter.observe(output[:1].tolist())
            _play_output(drafter, output, policy, result, known)
        _end(drafter)
    return result


def _play_output(
    drafter: Drafter, output: TokenArray, policy: BudgetPolicy, result: ReplayResult, top: TopTokens | None
) -> None:
    """Draft, verify against what the model wrote, learn; step by step."""
    truth, position = output.tolist(), 1
    while position < len(truth):
        draft, draft_s = _draft(drafter, policy)
        tree = draft.tree.prefix(policy.choose(draft.tree.probs))
        nodes = accepted_nodes(tree, islice(truth, position, None))
        emitted = truth[position : position + len(nodes) + 1]
        start = perf_counter()
        _recycle(drafter, emitted, top, position)
        drafter.observe(emitted)
        update_s = perf_counter() - start
        policy.observe(draft.tree, len(tree), nodes, emitted[0])
        result.add(draft, tree, nodes, len(emitted), draft_s * 1e6, update_s * 1e6)
        position += len(emitted)


def _recycle(drafter: Drafter, emitted: list[int], top: TopTokens | None, position: int) -> None:
    """Tells what was found likely where these tokens were emitted: behind the last token and all but the newest."""
    if top is not None:
        fed = DraftTree.chain(emitted[:-1])
        drafter.recycle(fed, top.at(slice(position, position + len(emitted))))  # type: ignore[attr-defined]


def _draft(drafter: Drafter, policy: BudgetPolicy) -> tuple[Checked, float]:
    """What the drafter proposes, and the seconds it took."""
    limit = policy.limit
    if limit == 0:
        return _NOTHING, 0.0
    start = perf_counter()
    proposal = drafter.propose(limit)
    seconds = perf_counter() - start
    draft = check(proposal, limit)
    if policy.fixed is None and not draft.has_probs:
        raise NoProbabilitiesError("it estimates no probabilities, and an automatic budget needs them")
    return draft, seconds


def accepted_nodes(tree: DraftTree, truth: Iterable[int]) -> list[int]:
    """The nodes whose tokens are the text that follows, from the root down."""
    walk = TreeWalk(tree)
    for token in truth:
        if not walk.follow(token):
            break
    return ancestors(tree.parents.tolist(), walk.node)


def count_accepted(tree: DraftTree, truth: Sequence[int]) -> int:
    """How many tokens of `truth` the tree drafted in a row, from the root."""
    return len(accepted_nodes(tree, truth))


def _end(drafter: Drafter) -> None:
    end = getattr(drafter, "end", None)
    if end is not None:
        end()
