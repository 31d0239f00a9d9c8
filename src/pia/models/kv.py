"""Preallocated KV cache for one request: grows in chunks, keeps an accepted path in place.

Transformers' dynamic cache concatenates every layer at every step. Here all layers of a model that share a shape
live in one tensor, so that a step writes its rows where they belong and an accepted path is kept with one gather for
all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_GROW_BY = 1024
"""Slots added when the slab is full: a copy of everything is made at each growth, so it must be rare."""


class _Block:
    """One tensor `[layers, batch, heads, capacity, head_dim]` shared by layers whose keys (or values) look alike."""

    def __init__(self, role: str, like: torch.Tensor, num_layers: int, capacity: int) -> None:
        batch, heads, _, dim = like.shape
        self.role = role
        self.data = torch.empty((num_layers, batch, heads, capacity, dim), dtype=like.dtype, device=like.device)
        self.used = 0

    def accepts(self, role: str, like: torch.Tensor) -> bool:
        d = self.data
        same_kind = self.role == role and d.dtype == like.dtype and d.device == like.device
        same_shape = d.shape[1:3] == like.shape[:2] and d.shape[-1] == like.shape[-1]
        return same_kind and same_shape and self.used < d.shape[0]

    def take_row(self) -> int:
        self.used += 1
        return self.used - 1

    def grow(self, capacity: int) -> None:
        layers, batch, heads, length, dim = self.data.shape
        grown = self.data.new_empty((layers, batch, heads, capacity, dim))
        grown[..., :length, :] = self.data
        self.data = grown

    def move(self, sources: torch.Tensor, start: int) -> None:
        """Copies the slots `sources` (`[m]`) to `start ..`; the right-hand side is gathered before it is written."""
        rows = self.data[: self.used]
        rows[..., start : start + sources.numel(), :] = rows.index_select(3, sources.to(rows.device))


class _Slab:
    """The storage behind all layers of one cache. It knows nothing of the layers, so that no cycle keeps it alive."""

    def __init__(self, num_layers: int, max_length: int | None) -> None:
        self.num_layers = max(1, num_layers)
        self.max_length = max_length
        self.capacity = 0
        self.blocks: list[_Block] = []

    def place(self, role: str, like: torch.Tensor) -> tuple[_Block, int]:
        """Finds a row for a layer's keys or values; a layer of another shape opens a block of its own."""
        for block in self.blocks:
            if block.accepts(role, like):
                return block, block.take_row()
        is_first = all(block.role != role for block in self.blocks)
        block = _Block(role, like, self.num_layers if is_first else 1, self.capacity)
        self.blocks.append(block)
        return block, block.take_row()

    def reserve(self, length: int) -> None:
        """Makes room for `length` slots in every layer."""
        if length <= self.capacity:
            return
        capacity = length + max(_GROW_BY, length // 4)
        if self.max_length is not None:
            capacity = max(length, min(capacity, self.max_length))
        for block in self.blocks:
            block.grow(capacity)
        self.capacity = capacity


class SlabLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's window on the slab. `keys` and `values` are views `[batch, heads, length, head_dim]`."""

    def __init__(self, slab: _Slab) -> None:
        self.length = 0
        self._slab = slab
        self._rows: list[tuple[_Block, int]] = []
        self._known_views: list[torch.Tensor] = []
        self._known_capacity = -1
        super().__init__()

    @property
    def keys(self) -> torch.Tensor | None:
        return self._views()[0].narrow(2, 0, self.length) if self._rows else None

    @keys.setter
    def keys(self, _: object) -> None:
        """The slab holds the keys; the base class's own attempts to set them mean nothing here."""

    @property
    def values(self) -> torch.Tensor | None:
        return self._views()[1].narrow(2, 0, self.length) if self._rows else None

    @values.setter
    def values(self, _: object) -> None:
        """Likewise."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Takes rows in the slab for this layer's keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._rows = [self._slab.place("keys", key_states), self._slab.place("values", value_states)]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new states `[batch, heads, q, head_dim]` behind the cached ones and returns all of them."""
        start, size = self.length, key_states.shape[-2]
        self._slab.reserve(start + size)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._views()
        keys.narrow(2, start, size).copy_(key_states)
        values.narrow(2, start, size).copy_(value_states)
        self.length = start + size
        return keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)

    def _views(self) -> list[torch.Tensor]:
        """This layer's keys and values with all slots, looked up anew when the slab has grown."""
        if self._known_capacity != self._slab.capacity:
            self._known_views = [block.data[row] for block, row in self._rows]
            self._known_capacity = self._slab.capacity
        return self._known_views

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        return self.length + int(query_length), 0

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` slots (Transformers' convention: the argument is not positive)."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, got {tokens_to_remove}")
        self.length = max(0, self.length + tokens_to_remove)


class SlabCache(Cache):  # type: ignore[misc]
    """The KV cache PIA decodes with: every layer is full attention, and a slot's index is its position.

    Args:
        num_layers: layers of the model; a hint for the size of the shared tensors.
        max_length: the most slots a request can need, its trees included; `None` when unknown.
    """

    def __init__(self, num_layers: int, max_length: int | None = None) -> None:
        slab = _Slab(num_layers, max_length)
        super().__init__(layer_class_to_replicate=lambda: SlabLayer(slab))
        self._slab = slab

    @property
    def length(self) -> int:
        """Slots in use."""
        return self._slab_layers[0].length if self.layers else 0

    @property
    def _slab_layers(self) -> list[SlabLayer]:
        return cast("list[SlabLayer]", self.layers)

    @property
    def memory_usage(self) -> int:
        """Bytes allocated."""
        return sum(block.data.numel() * block.data.element_size() for block in self._slab.blocks)

    def keep(self, start: int, nodes: Sequence[int]) -> None:
        """Keeps the slots `start + nodes` (ascending) as `start ..` and forgets all others from `start` on.

        Slots that already stand where they belong are not touched.
        """
        settled = 0
        while settled < len(nodes) and nodes[settled] == settled:
            settled += 1
        if settled < len(nodes):
            sources = torch.tensor(nodes[settled:], dtype=torch.long) + start
            for block in self._slab.blocks:
                block.move(sources, start + settled)
        self.set_length(start + len(nodes))

    def as_dynamic(self) -> DynamicCache:
        """The same keys and values as Transformers' own cache, for callers who go on with them. Nothing is copied."""
        cache = DynamicCache()
        for layer in self._slab_layers:
            plain = DynamicLayer()
            plain.keys, plain.values = layer.keys, layer.values
            plain.dtype, plain.device, plain.is_initialized = layer.dtype, layer.device, layer.is_initialized
            cache.layers.append(plain)
        return cache

    def set_length(self, length: int) -> None:
        """Forgets every slot from `length` on, in all layers."""
        for layer in self._slab_layers:
            layer.length = length
