"""KV cache for exact decoding: attention always sees as many slots as the position of the newest token asks for.

What a kernel rounds may depend on the shape and the strides of what it reads. So the number of slots that a forward
sees, and the storage behind them, follow from the position alone, never from how the text came to be there.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

BUCKET = 256
"""Positions that share one number of visible slots."""
LARGEST = 64
"""The most tokens a forward may carry; so many slots stand behind the bucket's end, for those that are fed in vain."""


def bucket_of(position: int) -> int:
    """The bucket that a position lies in."""
    return position // BUCKET


def slots_of(bucket: int) -> int:
    """How many slots attention sees for the positions of a bucket."""
    return (bucket + 1) * BUCKET + LARGEST


class ExactLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, `[1, heads, slots, head_dim]`, a slot's index being its position.

    A prompt sees the slots in use, as with any cache; a step sees all `slots`. Those not in use are hidden by the
    causal mask, but a kernel may still multiply them by zero, so they are finite at all times.
    """

    is_compileable = True  # so that Transformers always makes a mask: here the slots in use are not all that are seen

    def __init__(self, store: _Store) -> None:
        self.length = 0
        self._store = store
        super().__init__()

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Takes the storage."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = _zeros(key_states, self._store.num_slots)
        self.values = _zeros(value_states, self._store.num_slots)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new states `[1, heads, q, head_dim]` behind the cached ones; returns those that attention may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, size = self.length, key_states.shape[-2]
        self.keys.narrow(2, start, size).copy_(key_states)
        self.values.narrow(2, start, size).copy_(value_states)
        self.length = start + size
        if self._store.sees_all:
            return self.keys, self.values
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def resize(self) -> None:
        """Moves to storage of the wanted size; what is in use comes along."""
        if self.is_initialized:
            kept = min(self.length, self._store.num_slots)
            old_keys, old_values = self.keys, self.values
            self.keys, self.values = (_zeros(old, self._store.num_slots) for old in (old_keys, old_values))
            self.keys[:, :, :kept], self.values[:, :, :kept] = old_keys[:, :, :kept], old_values[:, :, :kept]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self._store.num_slots if self._store.sees_all else self.length + int(query_length), 0


class _Store:
    """What all layers of a cache share."""

    num_slots = 0
    sees_all = False


class ExactCache(Cache):  # type: ignore[misc]
    """The KV cache of one request that is decoded exactly."""

    def __init__(self) -> None:
        store = _Store()
        super().__init__(layer_class_to_replicate=lambda: ExactLayer(store))
        self._store = store

    @property
    def length(self) -> int:
        """Slots in use."""
        return self._exact_layers[0].length if self.layers else 0

    def set_length(self, length: int) -> None:
        """Forgets every slot from `length` on, in all layers."""
        for layer in self._exact_layers:
            layer.length = length

    def open(self, num_slots: int, *, sees_all: bool) -> None:
        """Prepares a forward.

        Args:
            num_slots: size of the storage.
            sees_all: attention sees all of it (a step), or only the slots in use (a prompt).
        """
        self._store.sees_all = sees_all
        if self._store.num_slots != num_slots:
            self._store.num_slots = num_slots
            for layer in self._exact_layers:
                layer.resize()

    def as_dynamic(self) -> DynamicCache:
        """The slots in use as Transformers' own cache, for callers who go on with them. Nothing is copied."""
        cache = DynamicCache()
        for layer in self._exact_layers:
            plain = DynamicLayer()
            plain.keys, plain.values = layer.keys[:, :, : layer.length], layer.values[:, :, : layer.length]
            plain.dtype, plain.device, plain.is_initialized = layer.dtype, layer.device, True
            cache.layers.append(plain)
        return cache

    @property
    def _exact_layers(self) -> list[ExactLayer]:
        return cast("list[ExactLayer]", self.layers)


def _zeros(like: torch.Tensor, num_slots: int) -> torch.Tensor:
    batch, heads, _, dim = like.shape
    return like.new_zeros((batch, heads, num_slots, dim))
