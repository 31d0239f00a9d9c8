"""Tree masks: who sees whom when rows of a batch verify trees behind prefixes of different lengths.

Masks are additive floats throughout. Eager attention adds what it is given, so a boolean mask would be taken for zeros
and ones and the answer would be nonsense without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pia.models.placement import compute_dtype, input_device

Sight = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What a kind of attention can see at most: (positions of queries `[rows, q, 1]`, of slots `[rows, 1, slots]`) -> bool
`[rows, q, slots]`."""

FULL, SLIDING, CHUNKED, INDEXED = "full_attention", "sliding_attention", "chunked_attention", "indexed_attention"
ATTENTION_TYPES = frozenset({FULL, SLIDING, CHUNKED, INDEXED})
"""Layer types that attend over keys and values alone, so that a mask says all of a tree."""
_UNMASKED_TYPES = frozenset({"linear_attention", "conv"})
"""Layer types that take no 4-D mask."""


class TreeMasks:
    """Makes the mask, or the masks by layer type, that a model's forward over trees needs.

    A model whose configuration lists layer types of several kinds takes a dictionary with one mask for each. A model
    without that list and with a sliding window in its configuration has the window in all its layers, so its one mask
    contains it. Windows and chunks are counted in positions: in a tree, slots are not positions.

    Args:
        model: a causal language model of Transformers.

    Raises:
        ValueError: a layer type or its parameters are unknown. `mask_reason` says so beforehand.
    """

    def __init__(self, model: Any) -> None:
        reason = mask_reason(model.config)
        if reason is not None:
            raise ValueError(f"no masks for {type(model).__name__}: {reason}")
        self._device, self._dtype = input_device(model), compute_dtype(model)
        self._hidden = torch.finfo(self._dtype).min
        config = model.config.get_text_config(decoder=True)
        self._by_type = mask_kinds(model.config)
        self._sights = {kind: _sight_of(kind, config) for kind in self._by_type or (_only_kind(config),)}
        self._sees_all = all(sight is None for sight in self._sights.values())

    def __call__(
        self, starts: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor, num_slots: int
    ) -> torch.Tensor | dict[str, torch.Tensor | None]:
        """The mask of one forward.

        Row b's committed slots are `0 .. starts[b] - 1`, where slot = position; its tree lies in the slots
        `starts[b] .. starts[b] + q - 1`, node j at position `starts[b] + depths[b, j]`. Nobody sees the slots beyond.

        Args:
            starts: int64 `[rows]`.
            depths: int64 `[rows, q]`.
            visible: bool `[rows, q, q]`, which nodes of its tree a node sees, itself among them. A batch gets that in
                any case: a padded row with nothing to see would come out as NaN and spoil its neighbours.
            num_slots: slots that the forward attends over.

        Returns:
            additive mask `[rows, 1, q, num_slots]` in the model's dtype, or a dictionary of such by layer type.
        """
        if self._sees_all and starts.shape[0] == 1:
            one = self._one_full_row(int(starts), visible, num_slots)
            return self._arranged(dict.fromkeys(self._sights, one)) if self._by_type else one
        return self.on_device(starts.to(self._device), depths.to(self._device), visible.to(self._device), num_slots)

    def on_device(
        self, starts: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor, num_slots: int
    ) -> torch.Tensor | dict[str, torch.Tensor | None]:
        """The same from tensors on the model's device, without a look at their values, so that it can be captured."""
        positions = slot_positions(starts, depths, num_slots)[:, None, :]
        queries = (starts[:, None] + depths)[:, :, None]
        seen = _seen(starts, visible, num_slots)
        masks: dict[Sight | None, torch.Tensor] = {}
        for sight in self._sights.values():
            if sight not in masks:
                masks[sight] = self._additive(seen if sight is None else seen & sight(queries, positions))
        return self._arranged({kind: masks[sight] for kind, sight in self._sights.items()})

    def _arranged(self, masks: dict[str, torch.Tensor]) -> torch.Tensor | dict[str, torch.Tensor | None]:
        """The masks as the model wants them: by layer type, or the only one."""
        if not self._by_type:
            return next(iter(masks.values()))
        return {**masks, **dict.fromkeys(_UNMASKED_TYPES)}

    def _one_full_row(self, start: int, visible: torch.Tensor, num_slots: int) -> torch.Tensor:
        """The common case, where nearly everything is seen: touches the tree's own square only."""
        q = visible.shape[1]
        mask = torch.zeros((1, 1, q, num_slots), dtype=self._dtype, device=self._device)
        mask.narrow(3, start, q).masked_fill_(visible.logical_not().to(self._device), self._hidden)
        if num_slots > start + q:
            mask[..., start + q :] = self._hidden
        return mask

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~seen, self._hidden)[:, None]


def slot_positions(starts: torch.Tensor, depths: torch.Tensor, num_slots: int) -> torch.Tensor:
    """The position of the token in each slot, int64 `[rows, num_slots]`; slots beyond the trees count on."""
    positions = torch.arange(num_slots, device=starts.device).expand(starts.shape[0], -1)
    return positions.scatter(1, _tree_slots(starts, depths.shape[1]), starts[:, None] + depths)


def mask_kinds(config: Any) -> tuple[str, ...]:
    """Layer types that need masks of their own; none where one mask serves the whole model."""
    kinds = sorted(set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ()))
    return () if set(kinds) <= {FULL} else tuple(kind for kind in kinds if kind not in _UNMASKED_TYPES)


def mask_reason(config: Any) -> str | None:
    """Why no mask can be made for this configuration, or `None`."""
    config = config.get_text_config(decoder=True)
    for kind in mask_kinds(config) or (_only_kind(config),):
        if kind not in ATTENTION_TYPES:
            return f"it has {kind} layers"
        limit = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}.get(kind)
        if limit and not _limit(config, limit):
            return f"it has {kind} layers and no {limit} in its configuration"
    return None


def reach(config: Any) -> int | None:
    """The fewest positions that some layer's attention sees back, or `None` if all see everything."""
    config = config.get_text_config(decoder=True)
    kinds = mask_kinds(config) or (_only_kind(config),)
    limits = [_limit(config, "sliding_window") if kind == SLIDING else None for kind in kinds]
    limits += [_limit(config, "attention_chunk_size") if kind == CHUNKED else None for kind in kinds]
    return min((limit for limit in limits if limit), default=None)


def _only_kind(config: Any) -> str:
    """What all layers are, where the configuration lists no types."""
    if getattr(config, "layer_types", None):
        return FULL
    return SLIDING if _limit(config, "sliding_window") else FULL


def _limit(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if type(value) is int and value > 0 else None


def _sight_of(kind: str, config: Any) -> Sight | None:
    """What a kind of layer sees at most; `None` is everything."""
    if kind == SLIDING:
        return _Window(int(config.sliding_window))
    if kind == CHUNKED:
        return _Chunk(int(config.attention_chunk_size))
    return None


class _Window:
    """A position sees itself and the `size - 1` before it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, queries: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return slots > queries - self.size


class _Chunk:
    """A position sees those of its own chunk."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, queries: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return slots.div(self.size, rounding_mode="floor") == queries.div(self.size, rounding_mode="floor")


def _tree_slots(starts: torch.Tensor, q: int) -> torch.Tensor:
    """Slots of the trees' nodes, `[rows, q]`."""
    return starts[:, None] + torch.arange(q, device=starts.device)


def _seen(starts: torch.Tensor, visible: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Bool `[rows, q, num_slots]`: the row's prefix, and of its tree what a node sees."""
    q = visible.shape[1]
    prefix = torch.arange(num_slots, device=starts.device) < starts[:, None]
    own = visible | torch.eye(q, dtype=torch.bool, device=visible.device)
    return prefix[:, None, :].repeat(1, q, 1).scatter_(2, _tree_slots(starts, q)[:, None, :].expand_as(own), own)
