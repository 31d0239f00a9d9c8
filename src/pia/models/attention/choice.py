"""Which attention is fastest over a tree, for a model, a length of text and a size of tree: measured where it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from pia.models.attention.probe import LayerShape, probed
from pia.models.attention.reference import TreeAttention
from pia.models.attention.timing import layer_seconds
from pia.models.placement import input_device

_WORTH = 0.95
"""Another attention than the model's own is taken where it needs at most so much of its time."""
Timer = Callable[[LayerShape, int, int, Mapping[str, TreeAttention | None]], dict[str, float]]
"""(layer, context, q, backends by name) -> seconds a layer; `None` stands for the model's own attention with a mask."""


class Choice(NamedTuple):
    """An attention: its name ("sdpa" and "eager" are the model's own, with a mask) and why it was chosen."""

    name: str
    reason: str


def backends_on(device: torch.device) -> tuple[dict[str, TreeAttention], str]:
    """Attention over trees without a mask that could pay on a device, by name; or none, and why."""
    if device.type != "cuda":
        return {}, f"on {device.type.upper()} attention runs under a mask"
    try:
        from pia.models.attention.triton_attention import triton_attention
    except ImportError as error:
        return {}, f"Triton cannot be used ({error})"
    return {"triton": triton_attention}, ""


def attention_backend_of(
    model: Any,
    context: int,
    q: int,
    *,
    backends: Mapping[str, TreeAttention] | None = None,
    timer: Timer = layer_seconds,
) -> Choice:
    """Finds the fastest attention that gives the model's own logits.

    Args:
        model: a causal language model of Transformers that verifies trees under masks, in evaluation mode.
        context: committed slots.
        q: the last accepted token and its tree.
        backends: those to choose from instead of the device's.
        timer: measures them.

    Returns:
        the name and the reason. A backend that does not compile, or gives other logits, is passed over.
    """
    own = str(getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None) or "eager")
    none_reason = ""
    if backends is None:
        backends, none_reason = backends_on(input_device(model))
    findings = {name: probed(model, attend) for name, attend in backends.items()}
    refusals = [f"{name}: {finding.reason}" for name, finding in findings.items() if finding.reason]
    usable = {name: backends[name] for name, finding in findings.items() if finding.reason is None}
    if not usable:
        return Choice(own, "; ".join(refusals) or none_reason)
    layers = Counter(layer for name in usable for layer in findings[name].layers)
    try:
        seconds = timer(layers.most_common(1)[0][0], context, q, {own: None, **usable})
    except (RuntimeError, TypeError, ValueError) as error:  # no memory to measure in, or no such shape
        return Choice(own, f"attention could not be measured ({type(error).__name__}: {str(error)[:120]})")
    return _fastest(own, seconds, f"at {context} slots and {q} tokens", refusals)


def _fastest(own: str, seconds: Mapping[str, float], where: str, refusals: list[str]) -> Choice:
    best = min(seconds, key=lambda name: seconds[name])
    if seconds[best] > _WORTH * seconds[own]:
        best = own
    times = ", ".join(f"{name} {1e6 * each:.0f} us" for name, each in seconds.items())
    return Choice(best, "; ".join([f"a layer's attention {where}: {times}", *refusals]))
