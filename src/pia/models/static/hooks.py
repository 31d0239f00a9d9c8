"""Hooks that a user has put on the whole model: they belong to the call, not to what was compiled or captured of it."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast


def hooked(model: Any, logits: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """Calls the model's forward hooks on a step's logits, as the model itself would have.

    Args:
        model: the model.
        logits: of the step, `[rows, q, vocab]`.
        **arguments: of the forward, as far as there are any.

    Returns:
        the logits as the hooks leave them.
    """
    if not model._forward_hooks:
        return logits
    output: Any = CausalLMOutputWithPast(logits=logits)
    for number, hook in model._forward_hooks.items():
        with_kwargs = number in model._forward_hooks_with_kwargs
        changed = hook(model, (), arguments, output) if with_kwargs else hook(model, (), output)
        output = output if changed is None else changed
    result: torch.Tensor = output.logits
    return result
