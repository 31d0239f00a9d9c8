"""A model's forward over a tree as a function of tensors alone, so that it can be exported, compiled or captured.

The keys and values stay where PIA's slab has them: the function gets the slab's tensors, writes the tree's states into
the slots it is told, and attends over the first slots, as many as the mask has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from pia.models.kv import SlabCache

Places = Sequence[Sequence[tuple[int, int]]]
"""For each layer, where its keys and its values lie: the number of the block, and the layer in it."""


class _StepLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's slots during one forward."""

    def __init__(self, views: Sequence[torch.Tensor], slots: torch.Tensor, num_slots: Any) -> None:
        super().__init__()
        self._views, self._slots, self._num_slots = views, slots, num_slots
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes states `[1, heads, q, dim]` into the step's slots; returns the first `num_slots` of all."""
        keys, values = self._views
        keys.index_copy_(2, self._slots, key_states)
        values.index_copy_(2, self._slots, value_states)
        return keys[:, :, : self._num_slots], values[:, :, : self._num_slots]

    def get_seq_length(self) -> int:
        """Nothing that holds for every step: positions are given, and a model that asks is found out by the check."""
        return 0

    def get_mask_sizes(self, query_length: Any) -> tuple[Any, int]:
        return self._num_slots, 0


class StepModule(torch.nn.Module):
    """One forward of an unmodified model over the last accepted token and its tree, for one request.

    Args:
        model: a causal language model of Transformers that takes positions and a 4-D mask.
        places: where its layers' states lie in the slab, from `places_of`.
    """

    def __init__(self, model: Any, places: Places) -> None:
        super().__init__()
        self.model = model
        self._places = places

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor | None],
        slots: torch.Tensor,
        blocks: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Feeds the tokens.

        Args:
            ids: int64 `[1, q]`.
            positions: int64 `[1, q]`.
            mask: additive, `[1, 1, q, num_slots]`, or several by layer type.
            slots: int64 `[q]`, where the tokens' states go.
            blocks: the slab's tensors, `[layers, 1, heads, capacity, dim]`, written in place.

        Returns:
            logits, `[1, q, vocab]`.
        """
        num_slots = _any_mask(mask).shape[-1]
        layers = [_StepLayer([blocks[b][n] for b, n in place], slots, num_slots) for place in self._places]
        # Hooks on the whole model belong to the call, not to the program: the runner calls them.
        output = self.model.forward(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=Cache(layers=layers),
            use_cache=True,
        )
        logits: torch.Tensor = output.logits
        return logits


def hooked(model: Any, logits: torch.Tensor, positions: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Calls the hooks a user has put on the whole model, as the model itself would have after its forward.

    Args:
        model: whose forward was run without its hooks.
        logits: `[1, q, vocab]`; hooks may change them in place.
        positions: makes the positions `[1, q]` that hooks are told.

    Returns:
        the logits, perhaps others.
    """
    if not model._forward_hooks:
        return logits
    output: Any = CausalLMOutputWithPast(logits=logits)
    arguments = {"position_ids": positions()}
    for number, hook in model._forward_hooks.items():
        with_kwargs = number in model._forward_hooks_with_kwargs
        changed = hook(model, (), arguments, output) if with_kwargs else hook(model, (), output)
        output = output if changed is None else changed
    changed_logits: torch.Tensor = output.logits
    return changed_logits


def places_of(cache: SlabCache) -> Places:
    """Where the layers of a filled cache lie in its blocks.

    Raises:
        ValueError: a layer keeps more than keys and values.
    """
    blocks = cache.blocks
    if any(len(places) != 2 for places in cache.places):
        raise ValueError("its layers keep more than keys and values")
    return [[(blocks.index(block), layer) for block, layer in places] for places in cache.places]


def _any_mask(mask: torch.Tensor | dict[str, torch.Tensor | None]) -> torch.Tensor:
    if isinstance(mask, dict):
        return next(one for one in mask.values() if one is not None)
    return mask
