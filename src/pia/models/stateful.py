"""Which models keep a recurrent state, and which of those continue it rightly with several tokens at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pia.models.twin import can_have_twin, needs_twin

_IGNORE_THEIR_STATE = {"mamba", "falcon_mamba", "jamba", "zamba", "recurrent_gemma"}
"""Model types whose layers start from an empty state whenever they are given more than one token. No error is raised;
the logits are off by 5e-5 to 3e-1, so the self-check alone might not notice."""

_TAKE_NO_CACHE = {"openai-gpt"}

ONE_CHAIN = "its recurrent state cannot branch, so each step verifies one chain and what was accepted is fed again"


def keeps_state(model: Any, cache_layers: Iterable[Any]) -> bool:
    """Whether a forward leaves anything behind that cannot be cut back to fewer tokens."""
    return bool(getattr(model, "_is_stateful", False)) or any(hasattr(layer, "conv_states") for layer in cache_layers)


def keeps_nothing(config: Any) -> bool:
    """Whether a model has no cache at all."""
    return getattr(config, "model_type", None) in _TAKE_NO_CACHE


def why_no_chains(model: Any, config: Any) -> str | None:
    """Why a model that keeps a state must be fed one token at a time, as far as it says itself; or `None`."""
    if getattr(config, "model_type", None) in _IGNORE_THEIR_STATE:
        return "its layers forget their recurrent state when they are given several tokens at once"
    if not type(model).__module__.startswith("transformers.models."):
        return "it keeps a recurrent state and is no model of Transformers' own, so nothing is known of it"
    if needs_twin(model) and not can_have_twin(model):
        return (
            "its recurrent layers clamp their time steps for several tokens and not for one, and its forward is wrapped"
        )
    return None
