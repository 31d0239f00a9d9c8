"""Masks experts and their neurons, which live inside of one module and one weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pia.ipad.structure.axes import EXPERTS, FFN, Kept
from pia.ipad.twins import twin


def expert_hooks(router: nn.Module, experts: nn.Module, kept: Kept) -> Iterator[Any]:
    """Hooks under which only experts that stay are chosen, and neurons that go give zero."""
    yield router.register_forward_hook(_among(kept.along(EXPERTS)))
    yield experts.register_forward_hook(_without(kept.dropped(FFN)))


def _among(experts: torch.Tensor) -> Any:
    """A hook of a router, whose output is (scores of all experts, weights of those chosen, which were chosen)."""

    def hook(router: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> Any:
        places = experts.to(args[0].device)
        scores, weights, chosen = twin(router, lambda name, weight: weight.index_select(0, places)).forward(*args)
        no_choice = torch.full_like(output[0], -torch.inf)
        return no_choice.index_copy(-1, places, scores), weights, places[chosen]

    return hook


def _without(dropped: torch.Tensor) -> Any:
    """A hook of stacked experts, whose last weight is `[experts, hidden, neurons]`."""

    def hook(experts: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
        gone = dropped.to(output.device)

        def change(name: str, weight: torch.Tensor) -> torch.Tensor:
            return weight.masked_fill(gone, 0) if name == "down_proj" else weight

        return twin(experts, change).forward(*args)

    return hook
