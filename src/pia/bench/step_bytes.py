"""Counts the bytes that one plain decode step must read: weights that are used, and the KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pia.models.placement import input_device

_SHORT, _LONG = 2, 4
"""Tokens of the two texts from whose caches the bytes of a token are told."""
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class WeightBytes:
    """Weights of the decoder and its output layer."""

    stored: int
    """In memory, shared ones once."""
    read: int
    """By a step of one token: an embedding that is only looked up gives one row, of experts only the chosen ones
    count."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerBytes:
    """What a layer's cache holds."""

    per_token: float
    fixed: float
    """A state that does not grow with the text."""
    window: int | None
    """Tokens it keeps at most."""


@dataclass(frozen=True)
class KvBytes:
    """The KV cache, layer by layer."""

    layers: tuple[LayerBytes, ...]

    def at(self, context: float) -> int:
        """Bytes behind a text of so many tokens."""
        return round(sum(layer.fixed + layer.per_token * self._held(layer, context) for layer in self.layers))

    @property
    def per_token(self) -> float:
        """Bytes that a token adds while no window is full."""
        return sum(layer.per_token for layer in self.layers)

    @staticmethod
    def _held(layer: LayerBytes, context: float) -> float:
        return context if layer.window is None else min(context, layer.window)


def weight_bytes(model: Any) -> WeightBytes:
    """Counts the weights of a model's decoder; towers for images and the like have no part in a decode step.

    Args:
        model: a causal language model of Transformers.
    """
    stored, read = 0, 0.0
    active = _active_share(model.config)
    has_experts = False
    for parameter, is_looked_up, is_expert in _weights(model):
        size = tensor_bytes(parameter)
        stored += size
        has_experts |= is_expert
        read += size / len(parameter) if is_looked_up else size * (active or 1) if is_expert else size
    return WeightBytes(stored, round(read), _notes(has_experts, active))


def kv_bytes(model: Any) -> KvBytes | None:
    """Measures what a model's own cache holds a token, by two short texts; `None` where it cannot be seen.

    Args:
        model: a causal language model of Transformers.
    """
    try:
        short, long = (_cache_layers(model, length) for length in (_SHORT, _LONG))
    except (TypeError, ValueError, RuntimeError):  # it wants more than token ids
        return None
    if not short or len(short) != len(long):
        return None
    layers = []
    for few, many in zip(short, long, strict=True):
        per_token = (_held_bytes(many) - _held_bytes(few)) / (_LONG - _SHORT)
        window = getattr(many, "sliding_window", None)
        layers.append(LayerBytes(per_token, _held_bytes(few) - _SHORT * per_token, window))
    return KvBytes(tuple(layers))


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, or of the parts that a quantised one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def _weights(model: Any) -> Iterator[tuple[torch.Tensor, bool, bool]]:
    """Each weight once: whether it is only looked up, and whether it belongs to experts."""
    found: dict[int, tuple[torch.Tensor, bool, bool]] = {}
    parts = [model.get_decoder() if hasattr(model, "get_decoder") else model, model.get_output_embeddings()]
    for part in parts:
        for path, module in part.named_modules() if part is not None else ():
            is_expert = "experts" in path.split(".")
            for parameter in module.parameters(recurse=False):
                looked_up = isinstance(module, nn.Embedding) and found.get(id(parameter), (0, True))[1]
                found[id(parameter)] = (parameter, looked_up, is_expert)
    yield from found.values()


def _active_share(config: Any) -> float | None:
    """The share of the experts that a token uses; `None` where the configuration does not say."""
    text = config.get_text_config(decoder=True)
    active, total = (next((getattr(text, name, None) for name in names if getattr(text, name, None)), None)
                     for names in (_ACTIVE, _EXPERTS))  # fmt: skip
    return None if active is None or total is None else min(1.0, active / total)


def _notes(has_experts: bool, active: float | None) -> tuple[str, ...]:
    if not has_experts:
        return ()
    if active is None:
        return ("the configuration does not say how many experts a token uses: all are counted",)
    return (f"a token uses {active:.1%} of the experts; a step over several tokens reads more of them",)


@torch.inference_mode()
def _cache_layers(model: Any, length: int) -> list[Any]:
    """The layers of the model's cache behind a text of so many tokens."""
    ids = torch.zeros(1, length, dtype=torch.long, device=input_device(model))
    cache = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    return list(getattr(cache, "layers", ()))


def _held_bytes(layer: Any) -> int:
    """Bytes of all keys, values and states of a layer of the cache; its counters are no part of a step's reading."""
    return sum(map(_nested_bytes, vars(layer).values()))


def _nested_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return tensor_bytes(value) if value.dim() > 1 else 0
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_nested_bytes, parts))
