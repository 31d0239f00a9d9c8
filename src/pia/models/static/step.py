"""A model's forward over a tree as a function of tensors alone, so that it can be exported, compiled or captured.

The keys and values stay where PIA's slab has them: the function gets each layer's part of it, writes the tree's states
into the slots it is told, and attends over the first slots, as many as the mask has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from pia.models.kv import SlabCache


class _StepLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's slots during one forward."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, num_slots: Any) -> None:
        super().__init__()
        self._all_keys, self._all_values, self._slots, self._num_slots = keys, values, slots, num_slots
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes states `[1, heads, q, dim]` into the step's slots; returns the first `num_slots` of all."""
        self._all_keys.index_copy_(2, self._slots, key_states)
        self._all_values.index_copy_(2, self._slots, value_states)
        return self._all_keys[:, :, : self._num_slots], self._all_values[:, :, : self._num_slots]

    def get_seq_length(self) -> int:
        """Nothing that holds for every step: positions are given, and a model that asks is found out by the check."""
        return 0

    def get_mask_sizes(self, query_length: Any) -> tuple[Any, int]:
        return self._num_slots, 0


class StepModule(torch.nn.Module):
    """One forward of an unmodified model over the last accepted token and its tree, for one request.

    Args:
        model: a causal language model of Transformers that takes positions and a 4-D mask.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
        slots: torch.Tensor,
        states: Sequence[torch.Tensor],
        num_slots: int | None = None,
    ) -> torch.Tensor:
        """Feeds the tokens.

        Args:
            ids: int64 `[1, q]`.
            positions: int64 `[1, q]`.
            mask: additive, `[1, 1, q, num_slots]`, or several by layer type; `None` where attention needs none.
            slots: int64 `[q]`, where the tokens' states go.
            states: keys and values of each layer in turn, `[1, heads, capacity, dim]`, written in place.
            num_slots: how many slots are attended over, where there is no mask to say it.

        Returns:
            logits, `[1, q, vocab]`.
        """
        reach = num_slots if mask is None else _any_mask(mask).shape[-1]
        layers = [_StepLayer(*pair, slots, reach) for pair in zip(states[::2], states[1::2], strict=True)]
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


def states_of(cache: SlabCache) -> list[torch.Tensor]:
    """Keys and values of each layer of a filled cache in turn, `[1, heads, capacity, dim]`, as a step takes them.

    Raises:
        ValueError: a layer keeps more than keys and values.
    """
    by_layer = cache.views
    if any(len(views) != 2 for views in by_layer):
        raise ValueError("its layers keep more than keys and values")
    return [view for views in by_layer for view in views]


def _any_mask(mask: torch.Tensor | dict[str, torch.Tensor | None]) -> torch.Tensor:
    if isinstance(mask, dict):
        return next(one for one in mask.values() if one is not None)
    return mask
