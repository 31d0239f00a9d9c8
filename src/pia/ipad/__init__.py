"""IPAD: iterative pruning and distillation of a model into a smaller stock checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pia.ipad.shrinking import Shrunk, plan_shrink, shrink

__all__ = ["Shrunk", "plan_shrink", "shrink"]


def __getattr__(name: str) -> Any:
    """The functions, once they are asked for: they bring torch and Transformers along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pia.ipad import shrinking

    return getattr(shrinking, name)
