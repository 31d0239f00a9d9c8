"""Which attention is fastest over a tree, for a model, a length of text and a size of tree: measured where it runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pia.models.attention.layer_check import layer_doubt
from pia.models.attention.plug_in import own_implementation
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
    own = str(own_implementation(model.config.get_text_config(decoder=True)) or "eager")
    none_reason = ""
    if backends is None:
        backends, none_reason = backends_on(input_device(model))
    trials = {name: _tried(model, attend, own, context, q, timer) for name, attend in backends.items()}
    reason = "; ".join(trial.words(own, name) for name, trial in trials.items()) or none_reason
    best = min(trials, key=lambda name: trials[name].ratio, default=own)
    if not trials or trials[best].ratio > _WORTH:
        best = own
    return Choice(best, reason if not trials else f"at {context} slots and {q} tokens: {reason}")


@dataclass(frozen=True)
class _Trial:
    """What came of one backend: seconds a layer, of the model's own attention and of this; or why there are none."""

    own: float = math.nan
    seconds: float = math.inf
    refusal: str | None = None

    @property
    def ratio(self) -> float:
        return math.inf if self.refusal else self.seconds / self.own

    def words(self, own: str, name: str) -> str:
        if self.refusal:
            return f"{name}: {self.refusal}"
        return f"a layer's attention takes {1e6 * self.seconds:.0f} us with {name}, {1e6 * self.own:.0f} us with {own}"


def _tried(model: Any, attend: TreeAttention, own: str, context: int, q: int, timer: Timer) -> _Trial:
    """Proves a backend on the model and on layers of its shape, then times it."""
    finding = probed(model, attend)
    if finding.reason is not None:
        return _Trial(refusal=finding.reason)
    shape, _ = Counter(finding.layers).most_common(1)[0]
    device = input_device(model)
    try:
        for each in set(finding.layers):
            if (doubt := layer_doubt(each, q, attend, device)) is not None:
                return _Trial(refusal=doubt)
        with torch.cuda.device(device if device.type == "cuda" else -1):  # -1 changes nothing
            seconds = timer(shape, context, q, {own: None, "": attend})
    except Exception as error:  # no memory to measure in, or a compiler that fails in whatever way
        return _Trial(refusal=f"{type(error).__name__}: {str(error)[:120]}")
    return _Trial(seconds[own], seconds[""])
