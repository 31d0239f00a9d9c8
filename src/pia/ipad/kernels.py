"""Which code runs a model's attention and experts: a copy of it shall run the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def kernels_of(model: Any) -> dict[str, str]:
    """Options for `from_config` or `from_pretrained`, so that what they make runs as a model does."""
    kernels = {"attn_implementation": model.config._attn_implementation}
    if experts := getattr(model.config, "_experts_implementation", None):
        kernels["experts_implementation"] = experts
    return kernels


@contextmanager
def eager_experts(model: Any) -> Iterator[None]:
    """Under it, experts run the plain code of their class, which takes any dtype; dense models are left alone."""
    before = getattr(model.config, "_experts_implementation", None)
    if before in (None, "eager"):
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
