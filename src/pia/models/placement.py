"""Where a model's inputs go, where its layers live, and in what precision it computes.

`model.device` is where the first weight lies at the moment. Of a model that Accelerate offloads, that is "meta": the
weights come to the execution device for the time of each forward only.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

_META = torch.device("meta")


def input_device(model: Any) -> torch.device:
    """Where token ids, positions and masks are fed. Accelerate's hooks take them on to other devices from there."""
    device = torch.device(model.device)
    if device != _META:
        return device
    for module in (model.get_input_embeddings(), model):
        device = _execution_device(module)
        if device != _META:
            return device
    held = [tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device != _META]
    return held[0] if held else torch.device("cpu")


def compute_dtype(model: Any) -> torch.dtype:
    """The floating dtype of states, masks and logits. Quantised weights state it, and so do weights on "meta"."""
    dtype: torch.dtype = model.dtype
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.get_default_dtype()


def layers_by_device(model: Any) -> dict[torch.device, int]:
    """How many decoder layers compute on each device, so that their keys and values lie there.

    Counted over the list of modules that is as long as the configuration says; `{}` if Accelerate has not split it.
    """
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) < 2:
        return {}
    num_layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    home = input_device(model)
    for stack in reversed(stacks):  # the text's layers come behind an image's
        if len(stack) == num_layers:
            return dict(Counter(_layer_device(layer, home) for layer in stack))
    return {}


def _layer_device(layer: torch.nn.Module, home: torch.device) -> torch.device:
    for parameter in layer.parameters():
        if parameter.device != _META:
            return parameter.device
    for module in layer.modules():
        device = _execution_device(module)
        if device != _META:
            return device
    return home


def _execution_device(module: Any) -> torch.device:
    """Where Accelerate runs a module; "meta" if it does not say."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is None:
        for hook in getattr(getattr(module, "_hf_hook", None), "hooks", ()):  # several in sequence
            device = device if device is not None else getattr(hook, "execution_device", None)
    return _META if device is None else torch.device(device)
