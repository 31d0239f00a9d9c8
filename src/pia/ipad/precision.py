"""Runs a model in a wider dtype, without ever holding more than one module's weights in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def widened(model: Any, dtype: torch.dtype) -> Iterator[Any]:
    """Under it, each module's own weights are of `dtype` while it runs, and what they were before in between.

    Only for inference, and for one thread.

    Yields:
        The model.
    """
    originals: dict[nn.Parameter, torch.Tensor] = {}

    def widen(module: nn.Module, args: Any) -> None:
        for weight in module.parameters(recurse=False):
            originals.setdefault(weight, weight.data)
            weight.data = weight.data.to(dtype)

    def restore(module: nn.Module, args: Any = None, output: Any = None) -> None:
        for weight in module.parameters(recurse=False):
            weight.data = originals.pop(weight, weight.data)

    owners = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    handles = [module.register_forward_pre_hook(widen) for module in owners]
    handles += [module.register_forward_hook(restore) for module in owners]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for module in owners:
            restore(module)
