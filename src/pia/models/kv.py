"""Preallocated KV cache for a batch of requests: grows in chunks, keeps accepted paths in place.

Transformers' dynamic cache concatenates every layer at every step. Here all layers of a model that share a shape
live in one tensor, so that a step writes its rows where they belong and an accepted path is kept with one gather for
all layers.

Every row of the batch has a cursor of its own, and slot = position in every row: a step writes a row's tokens right
behind what the row has, so that tokens that are accepted in order need not be moved at all.

    row 0   p p p p p p p p a a t t t . .      p prompt, a accepted
    row 1   p p p a a a t t t . . . . . .      t this step's tree
    row 2   p p p p p a t t t . . . . . .      . free: masked, and zero, since 0 * NaN is NaN
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicIndexedLayer, DynamicLayer

_GROW_BY = 1024
"""Fewest slots added when the slab is full, and a quarter of it for longer texts: a copy is made at each growth."""
_BLOCK_BYTES = 1 << 28
"""A tensor holds as many layers as fit into that, at least one. While it grows it exists twice, one after the other."""


class _Block:
    """One tensor `[layers, rows, heads, capacity, head_dim]` shared by layers whose keys (or values) look alike."""

    def __init__(self, role: str, like: torch.Tensor, shape: tuple[int, int, int], is_reused: bool) -> None:
        num_layers, num_rows, capacity = shape
        _, heads, _, dim = like.shape
        self.role = role
        self.data = _new(like, (num_layers, num_rows, heads, capacity, dim), is_reused)
        self.used = 0
        self._is_reused = is_reused
        self._views: dict[int, torch.Tensor] = {}
        self._window = slice(0, num_rows)

    def accepts(self, role: str, like: torch.Tensor) -> bool:
        d = self.data
        same_kind = self.role == role and d.dtype == like.dtype and d.device == like.device
        return same_kind and self.looks_like(like) and self.used < d.shape[0]

    def looks_like(self, states: torch.Tensor) -> bool:
        """Whether states `[rows, heads, q, dim]` have the shape of those held here."""
        return self.data.shape[2] == states.shape[1] and self.data.shape[-1] == states.shape[-1]

    def take_layer(self) -> int:
        self.used += 1
        return self.used - 1

    def view(self, layer: int, window: slice) -> torch.Tensor:
        """A layer's states in a window of rows, `[rows, heads, capacity, dim]`."""
        if self._window != window:
            self._views, self._window = {}, window
        if layer not in self._views:
            self._views[layer] = self.data[layer, window]
        return self._views[layer]

    def resize(self, num_rows: int, capacity: int) -> None:
        """Takes another size; what fits into both is kept."""
        layers, rows, heads, length, dim = self.data.shape
        rows, length = min(rows, num_rows), min(length, capacity)
        resized = _new(self.data, (layers, num_rows, heads, capacity, dim), self._is_reused)
        resized[:, :rows, :, :length] = self.data[:, :rows, :, :length]
        self._views = {}  # they would keep the old tensor alive
        self.data = resized

    def move(self, row: int, sources: torch.Tensor, start: int) -> None:
        """Copies a row's slots `sources` (`[m]`) to `start ..`; all are gathered before any is written."""
        rows = self.data[: self.used, row]
        rows[..., start : start + sources.numel(), :] = rows.index_select(2, sources.to(rows.device))

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` slots of one row to another."""
        self.data[: self.used, target, :, :length] = self.data[: self.used, source, :, :length]


def _new(like: torch.Tensor, shape: tuple[int, ...], is_reused: bool) -> torch.Tensor:
    """Room for states. A row alone sees no slot that it has not written; beside others it does, masked."""
    make = torch.zeros if is_reused or shape[1] > 1 else torch.empty
    return make(shape, dtype=like.dtype, device=like.device)


class _Slab:
    """The storage behind all layers of one cache. It knows nothing of the layers, so that no cycle keeps it alive."""

    def __init__(
        self,
        num_layers: int,
        max_length: int | None,
        num_rows: int,
        layers_by_device: Mapping[torch.device, int],
        is_reused: bool,
    ) -> None:
        self.num_layers = max(1, num_layers)
        self.is_reused = is_reused
        self.layers_by_device = layers_by_device
        self.max_length = max_length
        self.num_rows = num_rows
        self.capacity = 0
        self.blocks: list[_Block] = []
        self.window = slice(0, num_rows)
        """Rows that the next forward feeds."""
        self.starts: list[int] | None = None
        """Where each of them writes; `None` while all write where the layer ends."""
        self._targets: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    def place(self, role: str, like: torch.Tensor) -> tuple[_Block, int]:
        """Finds room for a layer's keys or values; a layer of another shape opens a block of its own."""
        for block in self.blocks:
            if block.accepts(role, like):
                return block, block.take_layer()
        num_layers = self._num_layers(role, like)
        block = _Block(role, like, (num_layers, self.num_rows, self.capacity), self.is_reused)
        self.blocks.append(block)
        return block, block.take_layer()

    def _num_layers(self, role: str, like: torch.Tensor) -> int:
        """For how many layers to make room: those still expected on a device, in tensors that are not too large."""
        others = [block for block in self.blocks if (block.role, block.data.device) == (role, like.device)]
        if not all(block.looks_like(like) for block in others):
            return 1  # layers of several shapes: nobody knows how many of each
        expected = self.layers_by_device.get(like.device, self.num_layers) - sum(block.used for block in others)
        _, heads, _, dim = like.shape
        layer_bytes = self.num_rows * heads * self.capacity * dim * like.element_size()
        return max(1, min(expected, _BLOCK_BYTES // max(1, layer_bytes)))

    def reserve(self, length: int) -> None:
        """Makes room for `length` slots in every row of every layer."""
        if length <= self.capacity:
            return
        capacity = length + max(_GROW_BY, length // 4)
        if self.max_length is not None:
            capacity = max(length, min(capacity, self.max_length))
        self._resize(self.num_rows, capacity)

    def shrink(self, num_rows: int) -> None:
        """Gives up the room of rows that have left once it is half of all: so little is copied, all in all."""
        self.window = slice(0, num_rows)
        if num_rows <= self.num_rows // 2:
            self._resize(num_rows, self.capacity)

    def _resize(self, num_rows: int, capacity: int) -> None:
        """One block after the other, so that only one exists twice."""
        for block in self.blocks:
            block.resize(num_rows, capacity)
        self.num_rows, self.capacity = num_rows, capacity
        self._targets.clear()

    def set_starts(self, starts: list[int] | None) -> None:
        self.starts = starts
        self._targets.clear()

    def targets(self, heads: int, size: int, device: torch.device) -> torch.Tensor:
        """Where ragged rows write: indices into a layer's `[rows * heads * capacity]` slots, row by row, head by head.

        The same for all layers of a forward, so they are worked out once.
        """
        key = (heads, size, device)
        if key not in self._targets:
            starts = torch.tensor(self.starts, device=device)[:, None, None]
            bases = torch.arange(len(starts) * heads, device=device).view(-1, heads, 1) * self.capacity
            self._targets[key] = (bases + starts + torch.arange(size, device=device)).flatten()
        return self._targets[key]


class SlabLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's window on the slab. `keys` and `values` are views `[rows, heads, length, head_dim]`."""

    def __init__(self, slab: _Slab) -> None:
        self.length = 0
        """Slots in use, of the longest row."""
        self._slab = slab
        self._places: list[tuple[_Block, int]] = []
        super().__init__()

    @property
    def keys(self) -> torch.Tensor | None:
        return self._views()[0].narrow(2, 0, self.length) if self._places else None

    @keys.setter
    def keys(self, _: object) -> None:
        """The slab holds the keys; the base class's own attempts to set them mean nothing here."""

    @property
    def values(self) -> torch.Tensor | None:
        return self._views()[1].narrow(2, 0, self.length) if self._places else None

    @values.setter
    def values(self, _: object) -> None:
        """Likewise."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Takes room in the slab for this layer's keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._places = [self._slab.place("keys", key_states), self._slab.place("values", value_states)]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new states `[rows, heads, q, head_dim]` behind each row's cached ones and returns all of them."""
        starts, size = self._slab.starts, key_states.shape[-2]
        end = (max(starts) if starts else self.length) + size
        self._slab.reserve(end)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.length = end
        views = self._views()
        self._write(views[0], key_states)
        self._write(views[1], value_states)
        return views[0].narrow(2, 0, end), views[1].narrow(2, 0, end)

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Writes keys `[rows, q, dim]` by which sparse attention picks its slots, and returns all; follows `update`."""
        states = indexer_key_states[:, None]
        if len(self._places) == 2:
            self._places.append(self._slab.place("indexer", states))
        view = self._views()[2]
        self._write(view, states)
        return view[:, 0, : self.length]

    def _write(self, view: torch.Tensor, states: torch.Tensor) -> None:
        """Puts states `[rows, heads, q, dim]` behind each row's cached ones."""
        size = states.shape[2]
        if self._slab.starts is None:
            view.narrow(2, self.length - size, size).copy_(states)
        else:
            targets = self._slab.targets(states.shape[1], size, states.device)
            view.view(-1, states.shape[-1]).index_copy_(0, targets, states.reshape(-1, states.shape[-1]))

    def as_dynamic(self) -> DynamicLayer:
        """The same states as Transformers' own layer. Nothing is copied."""
        plain = DynamicLayer() if len(self._places) < 3 else DynamicIndexedLayer()
        plain.keys, plain.values = self.keys, self.values
        plain.dtype, plain.device, plain.is_initialized = self.dtype, self.device, self.is_initialized
        if len(self._places) == 3:
            plain.lazy_initialization_indexer(self.keys)
            plain.indexer_keys = self._views()[2][:, 0, : self.length]
        return plain

    def _views(self) -> list[torch.Tensor]:
        """This layer's keys and values with all slots."""
        return [block.view(layer, self._slab.window) for block, layer in self._places]

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
        num_rows: requests in the batch.
        layers_by_device: where the layers compute, if on several devices; each gets room for its own layers.
        is_reused: one request after another decodes with it, and forwards see slots that nobody has written, masked.
    """

    def __init__(
        self,
        num_layers: int,
        max_length: int | None = None,
        num_rows: int = 1,
        layers_by_device: Mapping[torch.device, int] = MappingProxyType({}),
        is_reused: bool = False,
    ) -> None:
        slab = _Slab(num_layers, max_length, num_rows, layers_by_device, is_reused)
        super().__init__(layer_class_to_replicate=lambda: SlabLayer(slab))
        self._slab = slab
        self.lengths = [0] * num_rows
        """Slots that each active row has kept."""

    @property
    def length(self) -> int:
        """Slots in use, of the longest row."""
        return self._slab_layers[0].length if self.layers else 0

    @property
    def _slab_layers(self) -> list[SlabLayer]:
        return cast("list[SlabLayer]", self.layers)

    @property
    def memory_usage(self) -> int:
        """Bytes allocated."""
        return sum(block.data.numel() * block.data.element_size() for block in self._slab.blocks)

    @property
    def blocks(self) -> list[_Block]:
        """The tensors behind all layers; they change when the cache grows."""
        return self._slab.blocks

    @property
    def views(self) -> list[list[torch.Tensor]]:
        """For each layer its keys, its values and whatever else it keeps, `[rows, heads, capacity, dim]` each."""
        return [layer._views() for layer in self._slab_layers]

    def states(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What the layers have stored, by role: tensors `[layers, rows, heads, capacity, dim]`."""
        for block in self._slab.blocks:
            yield block.role, block.data[: block.used]

    def reserve(self, length: int) -> None:
        """Makes room for so many slots in every row, so that growing needs no copy until then."""
        self._slab.reserve(length)

    @contextmanager
    def filling(self, rows: slice) -> Iterator[None]:
        """Feeds these empty rows alone for a while, all from slot 0 on: a prefill, in one forward or in several."""
        slab = self._slab
        whole, slab.window = slab.window, rows
        slab.set_starts(None)
        self._set_layers(0)
        try:
            yield
        finally:
            slab.window = whole

    def begin_step(self) -> None:
        """Readies all active rows for a forward: each writes behind what it has kept."""
        is_even = min(self.lengths) == max(self.lengths)
        self._slab.set_starts(None if is_even else list(self.lengths))
        self._set_layers(max(self.lengths))

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        """Keeps tokens of the last step, for each row the `n`th of those fed (ascending), and forgets the others.

        Slots that already stand where they belong are not touched.
        """
        for row, nodes in enumerate(kept):
            start, settled = self.lengths[row], 0
            while settled < len(nodes) and nodes[settled] == settled:
                settled += 1
            if settled < len(nodes):
                sources = torch.tensor(nodes[settled:], dtype=torch.long) + start
                for block in self._slab.blocks:
                    block.move(row, sources, start + settled)
            self.lengths[row] = start + len(nodes)
        self._set_layers(max(self.lengths))

    def spread(self, lengths: Sequence[int], which: Sequence[int]) -> None:
        """Gives every row what was filled for it, where several rows have the same text.

        Args:
            lengths: of what was filled into the first rows, one each.
            which: for each row, the one of these that it shall have, itself or one before it.
        """
        self.lengths[: len(lengths)] = lengths
        for row in reversed(range(len(which))):  # from the end, so that nothing is lost before it is copied
            if which[row] != row:
                self.copy_row(which[row], row)
        self._set_layers(max(self.lengths))

    def copy_row(self, source: int, target: int) -> None:
        """Gives a row the same content as another."""
        for block in self._slab.blocks:
            block.copy_row(source, target, self.lengths[source])
        self.lengths[target] = self.lengths[source]

    def retire(self, row: int) -> None:
        """Takes a row out of the batch; the last row moves to its place."""
        last = len(self.lengths) - 1
        if row != last:
            self.copy_row(last, row)
        self.lengths.pop()
        self._slab.shrink(last)
        self._set_layers(max(self.lengths))

    def as_dynamic(self) -> DynamicCache:
        """The same keys and values as Transformers' own cache, for callers who go on with them.

        Nothing is copied, unless the next request will write over it.
        """
        cache = DynamicCache()
        for layer in self._slab_layers:
            cache.layers.append(layer.as_dynamic())
            if self._slab.is_reused:
                cache.layers[-1].keys = cache.layers[-1].keys.clone()
                cache.layers[-1].values = cache.layers[-1].values.clone()
        return cache

    @torch.inference_mode()
    def clear(self) -> None:
        """Forgets everything. What was written is wiped out: masked or not, an infinity would spoil what sees it."""
        for block in self._slab.blocks:
            block.data.zero_()
        self.set_lengths([0] * len(self.lengths))

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Forgets, in every active row, the slots from here on."""
        self.lengths[:] = lengths
        self._set_layers(max(lengths))

    def _set_layers(self, length: int) -> None:
        for layer in self._slab_layers:
            layer.length = length
