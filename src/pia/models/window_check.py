"""Whether PIA's masks cut a window where the model itself does, seen without a text as long as the window.

A text that exceeds a window of thousands of tokens takes long to feed. But a mask does not care what is cached: the
cache is filled with made-up states, and a chain of drafts behind them is fed twice, once under PIA's masks and once
under the model's own.
"""

from __future__ import annotations

from typing import Any

import torch

from pia.drafting.tree import DraftTree
from pia.models.masks import reach
from pia.models.positions import context_length
from pia.models.runner import SlabRunner

_LARGEST = 8192
"""Windows beyond this would take too much memory for a check; then the configuration is believed."""
_BEYOND = 6
"""Slots by which the made-up text exceeds the window."""
_ROOM = 8
"""Slots for the chain."""
_BORDER = 16
"""Slots around the window's two ends whose values are large enough to show through the mean of thousands."""


@torch.inference_mode()
def window_error(model: Any) -> float | None:
    """How far a chain under PIA's masks is from one under the model's own, in standard deviations of the logits.

    Returns:
        the error, or `None` where there is no window, or one that is too long to be checked or ever exceeded.
    """
    size = reach(model.config)
    limit = context_length(model) or _LARGEST
    if size is None or size > min(_LARGEST, limit - _BEYOND - _ROOM):
        return None
    ours, own = (_logits(model, size, can_branch=can_branch) for can_branch in (True, False))
    return float((ours - own).square().mean(dim=-1).sqrt().max() / own.std())


def _logits(model: Any, size: int, *, can_branch: bool) -> torch.Tensor:
    runner = SlabRunner(model, can_branch=can_branch)
    runner.prefill([torch.arange(4)])  # so that every layer has its place
    length = size + _BEYOND
    runner.cache.reserve(length + _ROOM)
    _make_up(runner, size, length)
    runner.cache.set_lengths([length])
    return runner.forward([1], [DraftTree.chain([2, 3, 4, 5])])[0].double()


def _make_up(runner: SlabRunner, size: int, length: int) -> None:
    """Fills the cache: keys are equal, so that every slot in sight counts alike, and each slot's value is its own."""
    generator = torch.Generator().manual_seed(7)
    for role, states in runner.cache.states():
        if role != "values":
            states.zero_()
            continue
        made_up = torch.randn(length, states.shape[-1], generator=generator)
        made_up[:_BORDER] *= size / 8
        made_up[max(0, size - _BORDER) :] *= size / 8
        states[..., :length, :] = made_up.to(states)
