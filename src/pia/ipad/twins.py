"""The same module with other weights, for one call: its own code, without its hooks and without touching it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def twin(module: nn.Module, change: Callable[[str, torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of a module without parts of its own.

    Call its `forward`, past the hooks that it shares with the original.

    Args:
        module: a norm, a router, the experts of a layer; its weights stay as they are.
        change: `(name, weight) -> weight` of the copy.
    """
    other = copy.copy(module)
    weights: dict[str, Any] = {name: change(name, weight) for name, weight in module.named_parameters(recurse=False)}
    vars(other)["_parameters"] = weights
    return other


def narrow_norm(norm: nn.Module, channels: torch.Tensor) -> nn.Module:
    """A norm over some of its channels."""
    other = twin(norm, lambda name, weight: weight.index_select(0, channels))
    if isinstance(other, nn.LayerNorm):
        other.normalized_shape = (len(channels),)
    return other
