"""IPAD: iterative pruning and distillation of a model into a smaller stock checkpoint."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pia.ipad.distil_config import DistillConfig
    from pia.ipad.progress import Progress
    from pia.ipad.settings import ShrinkConfig
    from pia.ipad.shrinking import Shrunk, plan_shrink, shrink

_HOMES = {
    "DistillConfig": "pia.ipad.distil_config",
    "Progress": "pia.ipad.progress",
    "ShrinkConfig": "pia.ipad.settings",
    "Shrunk": "pia.ipad.shrinking",
    "plan_shrink": "pia.ipad.shrinking",
    "shrink": "pia.ipad.shrinking",
}

__all__ = ["DistillConfig", "Progress", "ShrinkConfig", "Shrunk", "plan_shrink", "shrink"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: all of them bring torch and Transformers along."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
