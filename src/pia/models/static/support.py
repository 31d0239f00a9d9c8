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
    """What of the model's present state a program would not follow. Asked before each call, so in one pass."""
    for module in model.modules():
        held = vars(module)
        if module.training:
            return "it is in training mode; call model.eval()"
        if "_hf_hook" in held:
            return "Accelerate moves its weights or inputs"
        if module._forward_pre_hooks or (module._forward_hooks and module is not model):
            return "its modules carry hooks"
        if "base_layer" in module._modules:
            return "it carries adapters, which may be switched at any time; merge them"
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        return "its weights lie on several devices"
    return "autocast is on" if any(torch.is_autocast_enabled(device.type) for device in devices) else None
