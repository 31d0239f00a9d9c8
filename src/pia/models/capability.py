"""What a model can verify in one forward: a token tree, a chain, or one token. Here as declared; then it is proved."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache, DynamicLayer

from pia.models.stateful import ONE_CHAIN, keeps_nothing, keeps_state, why_no_chains

_MASKED_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take any additive 4-D mask."""


class Mode(IntEnum):
    """What one forward may verify, from least to most."""

    PLAIN = 0
    CHAIN = 1
    TREE = 2

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Capability:
    """What a model can verify, and why no more."""

    mode: Mode
    reason: str
    is_recurrent: bool = False
    """Whether the model keeps a state that only `RecurrentRunner` can put back."""

    @property
    def can_verify_trees(self) -> bool:
        return self.mode == Mode.TREE

    @property
    def can_verify_chains(self) -> bool:
        return self.mode >= Mode.CHAIN


def declared_capability(model: Any) -> Capability:
    """Reads what the model's class, configuration and cache say of themselves. Nothing is run."""
    config = model.config.get_text_config(decoder=True)
    if keeps_state(model, _cache_layers(config)):
        why_plain = why_no_chains(model, config) or _reason_of_ropes(config)
        return Capability(Mode.PLAIN if why_plain else Mode.CHAIN, why_plain or ONE_CHAIN, is_recurrent=True)
    for mode, find in ((Mode.PLAIN, _reason_for_plain), (Mode.CHAIN, _reason_for_chain)):
        reason = find(model, config)
        if reason:
            return Capability(mode, reason)
    return Capability(Mode.TREE, "full attention with explicit masks")


def _reason_for_plain(model: Any, config: Any) -> str | None:
    if keeps_nothing(config):
        return "its forward takes no cache, so every token costs a forward over the whole text"
    prepare = type(model).prepare_inputs_for_generation
    if prepare is not GenerationMixin.prepare_inputs_for_generation or "prepare_inputs_for_generation" in vars(model):
        return "it prepares its inputs in a way of its own, which calling its forward directly would skip"
    odd = [type(layer).__name__ for layer in _cache_layers(config) if not isinstance(layer, DynamicLayer)]
    if odd:
        return f"its cache has layers that are not plain keys and values ({odd[0]})"
    return _reason_of_ropes(config)


def _reason_of_ropes(config: Any) -> str | None:
    ropes = _rope_types(config)
    if ropes & {"dynamic", "longrope"}:
        return f"its positions depend on the length of the text (rope type {', '.join(sorted(ropes))})"
    return None


def _reason_for_chain(model: Any, config: Any) -> str | None:
    layer_types = set(getattr(config, "layer_types", None) or ())
    if layer_types - {"full_attention"}:
        return f"it has {', '.join(sorted(layer_types - {'full_attention'}))} layers"
    windows = [name for name, value in vars(config).items() if _is_window(name, value, bool(layer_types))]
    if windows:
        return f"its attention sees a sliding window only ({windows[0]} in its configuration)"
    if any(getattr(layer, "is_sliding", False) or type(layer) is not DynamicLayer for layer in _cache_layers(config)):
        return "its cache has layers of another kind than full attention"
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in _MASKED_ATTENTION:
        return f"attention implementation {implementation!r} takes no mask of a tree (use attn_implementation='sdpa')"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward takes no position_ids"
    return None


def _is_window(name: str, value: Any, has_layer_types: bool) -> bool:
    """Whether a configuration entry limits how far attention sees. Layer types, where given, say whether it applies."""
    if name == "sliding_window" and has_layer_types:
        return False
    return "window" in name and "layers" not in name and type(value) is int and value > 0


def _cache_layers(config: Any) -> list[Any]:
    """The cache layers that Transformers would make for this configuration."""
    try:
        return list(DynamicCache(config=config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []  # remote code with a configuration of its own kind: the self-check decides


def _rope_types(config: Any) -> set[str]:
    """Rope types of the configuration, whether it holds one set of parameters or one per layer type."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return set()
    groups = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {str(group["rope_type"]) for group in groups if group.get("rope_type")}
