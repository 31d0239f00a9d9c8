"""What a model can verify in one forward: a token tree, a chain, or one token. Here as declared; then it is proved."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from transformers.cache_utils import DynamicCache, DynamicLayer

from pia.models.adapters import adapter_of
from pia.models.attention.plug_in import own_implementation
from pia.models.inputs_probe import skipped_inputs
from pia.models.masks import mask_kinds, mask_reason, reach
from pia.models.positions import NO_LIMITS, PositionLimits, lost_text_reason, position_limits
from pia.models.rows_probe import dependent_rows
from pia.models.stateful import ONE_CHAIN, keeps_nothing, keeps_state, why_no_chains

_SHARED_LAYER = "DummyLayer"
"""Stands in Transformers' cache for a layer that uses the keys and values of an earlier one."""
_KNOWN_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", _SHARED_LAYER)
"""Cache layers that a slab of keys and values (and of an indexer's keys) stands in for."""
MaskKind = Literal["one", "window", "by type"]
_MASK_REASONS: dict[MaskKind, str] = {
    "one": "explicit masks",
    "window": "explicit masks with the sliding window",
    "by type": "explicit masks by layer type",
}
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
    """What a model can verify, and why no more.

    Attributes:
        mode: what one forward may verify.
        reason: why, for the user.
        can_batch: rows of different lengths may share a forward.
        positions: where drafts have to stop, and what has to be fed anew.
        is_recurrent: the model keeps a state that only `RecurrentRunner` can put back.
    """

    mode: Mode
    reason: str
    can_batch: bool = False
    positions: PositionLimits = NO_LIMITS
    is_recurrent: bool = False

    @property
    def can_verify_trees(self) -> bool:
        return self.mode == Mode.TREE

    @property
    def can_verify_chains(self) -> bool:
        return self.mode >= Mode.CHAIN


def declared_capability(model: Any) -> Capability:
    """Reads what the model's class, configuration and cache say of themselves; its forward is not run."""
    config = model.config.get_text_config(decoder=True)
    if keeps_state(model, _cache_layers(config)):
        why_plain = why_no_chains(model, config) or dependent_rows(model) or position_limits(model).reason
        return Capability(Mode.PLAIN if why_plain else Mode.CHAIN, why_plain or ONE_CHAIN, is_recurrent=True)
    for mode, find in ((Mode.PLAIN, _reason_for_plain), (Mode.CHAIN, _reason_for_chain)):
        reason = find(model, config)
        if reason:
            return Capability(mode, reason, positions=position_limits(model))
    adapter, positions = adapter_of(model), position_limits(model)
    parts = [_MASK_REASONS[mask_kind(model)], adapter.note if adapter else None, positions.reason]
    # The largest position of a forward decides for all its rows, so rows of different lengths would not mix.
    can_batch = positions.reason is None and (adapter is None or adapter.can_batch)
    return Capability(Mode.TREE, "; ".join(filter(None, parts)), can_batch, positions)


def mask_kind(model: Any) -> MaskKind:
    """What masks a model takes: one for all layers, one with a window in it, or one by type of layer."""
    if mask_kinds(model.config):
        return "by type"
    return "window" if reach(model.config) else "one"


def _reason_for_plain(model: Any, config: Any) -> str | None:
    if keeps_nothing(config):
        return "its forward takes no cache, so every token costs a forward over the whole text"
    if (doubt := skipped_inputs(model) or dependent_rows(model)) is not None:
        return doubt
    if (lost := lost_text_reason(model)) is not None:
        return lost
    if not _takes(model, "past_key_values"):
        return "its forward takes no KV cache"
    if getattr(config, "keep_window_size", None):
        return "its attention keeps the highest scores of all that is fed, so feeding more at once changes the result"
    kinds = [type(layer) for layer in _cache_layers(config)]
    odd = [kind.__name__ for kind in kinds if not issubclass(kind, DynamicLayer) and kind.__name__ != _SHARED_LAYER]
    if odd:
        return f"its cache has layers that are not plain keys and values ({odd[0]})"
    return None


def _reason_for_chain(model: Any, config: Any) -> str | None:
    reason = mask_reason(config)
    if reason:
        return reason
    adapter = adapter_of(model)
    windows = [name for name, value in vars(config).items() if _is_unknown_window(name, value)]
    if windows and adapter is None:
        return f"its attention sees a window of its own ({windows[0]} in its configuration)"
    odd = [type(layer).__name__ for layer in _cache_layers(config) if type(layer).__name__ not in _KNOWN_LAYERS]
    if odd:
        return f"its cache has layers of another kind than full or sliding attention ({odd[0]})"
    implementation = own_implementation(config)
    if implementation not in _MASKED_ATTENTION:
        return f"attention implementation {implementation!r} takes no mask of a tree (use attn_implementation='sdpa')"
    if "position_ids" not in inspect.signature(model.forward).parameters and adapter is None:
        return "its forward takes no position_ids"
    return None


def _takes(model: Any, name: str) -> bool:
    """Whether the model's forward has such an argument, perhaps among others that it passes on."""
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.name == name or parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)


def _is_unknown_window(name: str, value: Any) -> bool:
    """Whether a configuration entry limits how far attention sees, other than the one that masks know of."""
    if name == "sliding_window" or any(part in name for part in ("layers", "pattern")):
        return False
    return "window" in name and type(value) is int and value > 0


def _cache_layers(config: Any) -> list[Any]:
    """The cache layers that Transformers would make for this configuration."""
    try:
        return list(DynamicCache(config=config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []  # remote code with a configuration of its own kind: the self-check decides
