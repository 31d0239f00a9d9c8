"""The residual stream at a decoder layer's hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The stream that enters a layer, of its arguments."""
    stream: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return stream


def leaving(output: Any) -> torch.Tensor:
    """The stream that leaves a layer: some give further things with it."""
    stream: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def pass_on(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook (with keyword arguments) under which a layer passes the stream on as it came."""
    stream = entering(args, kwargs)
    return (stream, *output[1:]) if isinstance(output, tuple) else stream
