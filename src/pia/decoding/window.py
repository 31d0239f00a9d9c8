"""Lookahead windows in a step: further nodes behind the tree that is verified, fed but never accepted."""

from __future__ import annotations

from collections.abc import Sequence

from pia.decoding.accept import Accepted
from pia.decoding.drafter import Drafter
from pia.decoding.request import Request
from pia.drafting.tree import DraftTree
from pia.drafting.window_policy import WindowPolicy


def with_windows(
    requests: Sequence[Request], drafters: Sequence[Drafter], trees: Sequence[DraftTree], policy: WindowPolicy
) -> list[DraftTree]:
    """What is fed for each row: its tree, and as much of its window as the hardware carries."""
    size = policy.choose(max(map(len, trees)), len(trees))
    return [
        tree.with_window(drafter.window(request, size))
        for request, drafter, tree in zip(requests, drafters, trees, strict=True)
    ]


def observe_windows(
    policy: WindowPolicy, trees: Sequence[DraftTree], fed: Sequence[DraftTree], walks: Sequence[Accepted]
) -> None:
    """Learns from a step what windows are worth."""
    num_fed = sum(map(len, fed)) - sum(map(len, trees))
    num_won = sum(source == "jacobi" for walk in walks for source in walk.sources)
    num_tokens = sum(len(walk.token_ids) for walk in walks)
    policy.observe(num_fed, num_won / len(walks), num_tokens / len(walks))
