"""Which models can run in steps of fixed form: their forward must be a function of tensors that the step is given."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from pia.models.adapters import adapter_of
from pia.models.capability import Capability
from pia.models.positions import NO_LIMITS


def why_not_static(model: Any, capability: Capability) -> str | None:
    """Why this model's steps cannot be compiled or captured, or `None`."""
    if not capability.can_verify_trees:
        return "it takes no tree masks"
    if capability.is_recurrent:
        return "it keeps more than keys and values"
    if capability.positions != NO_LIMITS:
        return "its positions depend on the length of the text"
    if adapter_of(model) is not None:
        return "it reckons with slots itself"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no positions"
    return why_not_now(model)


def why_not_now(model: Any) -> str | None:
    """What of the model's present state a program would not follow."""
    if any(module.training for module in model.modules()):
        return "it is in training mode; call model.eval()"
    if model._forward_pre_hooks or any(_is_hooked(module) for module in model.modules() if module is not model):
        return "its modules carry hooks"
    if any(hasattr(module, "base_layer") for module in model.modules()):
        return "it carries adapters, which may be switched at any time; merge them"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "Accelerate moves its weights or inputs"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "its weights lie on several devices"
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        return "autocast is on"
    return None


def _is_hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
