"""A twin of a model that treats several tokens as the model treats one after the other.

Mamba-2 layers have two forms of one sum: a step for one token, and a scan over chunks for more. The scan clamps time
steps where the configuration says so (Nemotron-H and Zamba2 always do), the step does not; so a chain's logits would
not be those of one token at a time. And without its own kernels the scan fills up its last chunk, which makes a draft
of four tokens cost as much as one of 256 (measured on a CPU, 18M parameters, chunks of 256: ten times a step, and 1.9
times with chunks of 16). The size of the chunks changes nothing but the rounding.

The twin shares all weights, and all modules but those on the way to such layers. Nothing of the model itself is
changed, so others may use it at the same time.
"""

from __future__ import annotations

import copy
import math
from typing import Any

_CHUNK_SIZE = 16
_NO_LIMIT = (0.0, math.inf)


def verifying_twin(model: Any) -> Any:
    """The twin that verifies chains; the model itself where there is no difference, or no twin can be made."""
    changes = _changes(model)
    return _twin(model, changes) if changes and can_have_twin(model) else model


def needs_twin(model: Any) -> bool:
    """Whether chains on the model itself would not be exact."""
    return any(tuple(module.time_step_limit) != _NO_LIMIT for module in model.modules() if _has_scan(module))


def can_have_twin(model: Any) -> bool:
    """Whether calling a copy of the model's modules calls that copy: a forward put on an instance would not."""
    return not any("forward" in vars(module) for module in model.modules())


def _has_scan(module: Any) -> bool:
    limit = getattr(module, "time_step_limit", None)
    return limit is not None and isinstance(getattr(module, "chunk_size", None), int)


def _changes(model: Any) -> dict[Any, dict[str, Any]]:
    """What is to be different in the twin, by module."""
    changes = {}
    for module in model.modules():
        if not _has_scan(module):
            continue
        wanted: dict[str, Any] = {"time_step_limit": _NO_LIMIT}
        if model.device.type == "cpu":  # elsewhere there may be kernels, which want chunks of their own size
            wanted["chunk_size"] = min(module.chunk_size, _CHUNK_SIZE)
        if any(getattr(module, name) != value for name, value in wanted.items()):
            changes[module] = wanted
    return changes


def _twin(module: Any, changes: dict[Any, dict[str, Any]]) -> Any:
    """A copy of a module whose descendants are changed; one without such is shared."""
    children = {name: _twin(child, changes) if child is not None else None for name, child in module._modules.items()}
    is_same = all(child is module._modules[name] for name, child in children.items())
    if module not in changes and is_same:
        return module
    twin = copy.copy(module)
    if not is_same:
        twin._modules = children
    vars(twin).update(changes.get(module, {}))
    return twin
