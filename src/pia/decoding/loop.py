"""The decoding loop: draft, verify, accept, keep, learn. Everything that generates goes through it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import torch

from pia.decoding.accept import Accepted, accept
from pia.decoding.by_products import TopTokensOfStep
from pia.decoding.chooser import TokenChooser, load_rows
from pia.decoding.drafter import Drafter
from pia.decoding.overlap import Overlap, commit
from pia.decoding.request import Request
from pia.decoding.stats import Step
from pia.decoding.window import observe_windows, with_windows
from pia.drafting.budget import BudgetPolicy
from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import DraftTree
from pia.drafting.window_policy import WindowPolicy
from pia.models.runner import Runner


@dataclass(frozen=True, eq=False)
class Row:
    """One request of a batch, with what chooses its tokens and what drafts for it."""

    index: int
    """Its place in the call; rows leave the batch as they end, so their places in the forward change."""
    request: Request
    chooser: TokenChooser
    drafter: Drafter
    num_told: int = 0
    """So many of the likeliest tokens are told with each token that is emitted."""


class _Times(NamedTuple):
    """Seconds of a step, all rows together; see `Step`."""

    draft: float
    forward: float
    accept: float
    keep: float
    launch: float = 0.0
    hidden: float = 0.0


def decode_steps(
    runner: Runner, rows: Sequence[Row], policy: BudgetPolicy, windows: WindowPolicy | None = None
) -> Generator[Step, None, None]:
    """Decodes requests together, one forward a step, the prefill first. Each step is yielded row by row.

    A row's session ends with the row: learned from if the request came to its end, without a trace if it was broken
    off by an exception or by a consumer that stopped listening.
    """
    active = list(rows)
    ended: list[Drafter] = []  # their texts are still to be learned
    try:
        steps = _prefill(runner, active, policy)
        while True:
            ended += _retire_finished(runner, active)
            if not (active and runner.is_asynchronous):
                commit(ended, policy)
            yield from steps
            if not active:
                return
            steps = _step(runner, active, policy, ended, windows)
    finally:
        commit(ended, policy)
        for row in rows:
            row.drafter.session.end(commit=False)


def _retire_finished(runner: Runner, active: list[Row]) -> list[Drafter]:
    """Takes the rows that have ended out of the batch, the last row each time moving to the place that is left."""
    ended = []
    for place in reversed(range(len(active))):
        row = active[place]
        if row.request.finish_reason is None:
            continue
        ended.append(row.drafter)
        if len(active) > 1:
            runner.retire(place)
        active[place] = active[-1]
        active.pop()
    return ended


@torch.no_grad()
def _prefill(runner: Runner, rows: Sequence[Row], policy: BudgetPolicy) -> list[Step]:
    """Feeds the prompts and emits each row's first token."""
    start = perf_counter()
    logits = runner.prefill([row.request.prompt_ids[0] for row in rows])
    forwarded = perf_counter()
    trees = [DraftTree.empty()] * len(rows)
    top = _top_tokens(rows, logits[:, None])
    walks = _accept(rows, trees, logits[:, None])
    walked = perf_counter()
    told = _recycle(rows, trees, walks, top)
    _learn(rows, policy, trees, walks, is_put_off=runner.is_asynchronous)
    times = _Times(0.0, forwarded - start, walked - forwarded, perf_counter() - walked)
    return _steps(rows, trees, trees, walks, times, told, is_prefill=True)


@torch.no_grad()
def _step(
    runner: Runner,
    rows: Sequence[Row],
    policy: BudgetPolicy,
    ended: list[Drafter],
    windows: WindowPolicy | None,
) -> list[Step]:
    """Draft, verify, accept, keep, learn; a device of its own leaves time to learn while it verifies the next draft."""
    start = perf_counter()
    trees = _draft(rows, policy)
    requests, drafters = [row.request for row in rows], [row.drafter for row in rows]
    fed = with_windows(requests, drafters, trees, windows) if windows is not None else trees
    drafted = perf_counter()
    overlap = Overlap(requests, drafters, trees, policy, ended)
    last_ids = [row.request.token_ids[-1] for row in rows]
    logits = runner.forward(last_ids, fed, overlap) if runner.is_asynchronous else runner.forward(last_ids, fed)
    forwarded = perf_counter()
    top = _top_tokens(rows, logits)
    walks = _accept(rows, trees, logits)
    walked = perf_counter()
    runner.keep([walk.rows for walk in walks])
    told = _recycle(rows, fed, walks, top)
    _learn(rows, policy, trees, walks, is_put_off=runner.is_asynchronous)
    if windows is not None:
        observe_windows(windows, trees, fed, walks)
    launch_s = overlap.started_at - drafted if overlap.started_at is not None else 0.0
    times = _Times(
        drafted - start, forwarded - drafted, walked - forwarded, perf_counter() - walked, launch_s, overlap.seconds
    )
    return _steps(rows, trees, fed, walks, times, told)


def _draft(rows: Sequence[Row], policy: BudgetPolicy) -> list[DraftTree]:
    """Each row's tree, perhaps empty; their sizes are chosen together."""
    limit = policy.limit
    for row in rows:
        row.drafter.propose(row.request, limit)
    sizes = policy.choose_rows([row.drafter.proposed.probs for row in rows])
    return [row.drafter.take(size, policy.max_nodes) for row, size in zip(rows, sizes, strict=True)]


def _accept(rows: Sequence[Row], trees: Sequence[DraftTree], logits: torch.Tensor) -> list[Accepted]:
    load_rows([row.chooser for row in rows], logits)
    return [accept(tree, row.chooser, row.request) for row, tree in zip(rows, trees, strict=True)]


def _top_tokens(rows: Sequence[Row], logits: torch.Tensor) -> TopTokensOfStep | None:
    """Begins to look for the likeliest tokens of each place, if drafts are made from them or they are to be told."""
    count = max(max(row.num_told, row.drafter.num_top) for row in rows)
    return TopTokensOfStep(logits, count) if count else None


def _recycle(
    rows: Sequence[Row], fed: Sequence[DraftTree], walks: Sequence[Accepted], top: TopTokensOfStep | None
) -> list[TopTokens | None]:
    """Hands each row what the forward found likely, and returns what is to be told of it."""
    if top is None:
        return [None] * len(rows)
    told: list[TopTokens | None] = []
    for row, tree, walk, top_of_row in zip(rows, fed, walks, top.fetch(), strict=True):
        row.drafter.recycle(tree, top_of_row)
        told.append(top_of_row.at(walk.rows, row.num_told) if row.num_told else None)
    return told


def _learn(
    rows: Sequence[Row],
    policy: BudgetPolicy,
    trees: Sequence[DraftTree],
    walks: Sequence[Accepted],
    *,
    is_put_off: bool,
) -> None:
    """Takes note of what was emitted, and learns from it now or, put off, while the next forward runs."""
    policy.observe_payoff(max(map(len, trees)), sum(len(walk.nodes) for walk in walks))
    for row, tree, walk in zip(rows, trees, walks, strict=True):
        if is_put_off:
            row.drafter.advance(tree, walk.nodes, walk.token_ids)
        else:
            row.drafter.learn(policy, tree, walk.nodes, walk.token_ids)


def _steps(
    rows: Sequence[Row],
    trees: Sequence[DraftTree],
    fed: Sequence[DraftTree],
    walks: Sequence[Accepted],
    times: _Times,
    told: Sequence[TopTokens | None],
    is_prefill: bool = False,
) -> list[Step]:
    """What to tell of a step, row by row; each row bears an equal share of the time."""
    share = _Times(*(seconds / len(rows) for seconds in times))
    return [
        Step(
            token_ids=walk.token_ids,
            sources=walk.sources,
            num_nodes=len(tree),
            num_window=len(fed_tree) - len(tree),
            draft_s=share.draft,
            forward_s=share.forward,
            accept_s=share.accept,
            keep_s=share.keep,
            launch_s=share.launch,
            hidden_s=share.hidden,
            is_prefill=is_prefill,
            finish_reason=row.request.finish_reason,
            row=row.index,
            is_prepared=row.drafter.was_prepared,
            num_prepared=row.drafter.num_prepared,
            node_sources=tree.sources,
            top=top,
        )
        for row, tree, fed_tree, walk, top in zip(rows, trees, fed, walks, told, strict=True)
    ]
