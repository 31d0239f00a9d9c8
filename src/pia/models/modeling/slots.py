"""What a model remembers of each slot of its KV cache, in a cache layer of its own.

A position that is not written into keys or added to embeddings has to be known again at every later step: ALiBi needs
the position of each cached token, GLM where its context ends. Kept as integers in one more layer behind the model's
own, such facts go wherever keys and values go: rows that are reordered, dropped or repeated take theirs along, slots
that are moved, cropped or padded too, and no runner has to know about it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, StaticLayer


def cached_length(cache: Any) -> int:
    """Slots in use, 0 without a cache."""
    return 0 if cache is None else int(cache.get_seq_length())


def num_slots(cache: Any, num_new: int, mask: torch.Tensor | None) -> int:
    """Slots that a forward over `num_new` tokens attends over. A 4-D mask says so itself."""
    if mask is not None and mask.dim() == 4:
        return int(mask.shape[-1])
    return num_new if cache is None else int(cache.get_mask_sizes(num_new, 0)[0])


def remember(cache: Any, layer_idx: int, facts: torch.Tensor) -> torch.Tensor:
    """Adds facts of the tokens fed and returns those of all slots.

    Args:
        cache: a KV cache of Transformers.
        layer_idx: index of the layer, the first one behind the model's own.
        facts: int64 `[rows, q, k]`.

    Returns:
        int64 `[rows, slots, k]`. What stands in slots that the mask hides is meaningless.
    """
    if cache.layer_class_to_replicate is None and len(cache.layers) == layer_idx:
        cache.layers.append(_layer_like(cache.layers[0]))
    keys, _ = cache.update(facts[:, None], facts[:, None, :, :1], layer_idx)
    slots: torch.Tensor = keys[:, 0]
    return slots


def _layer_like(layer: Any) -> Any:
    """A layer with as many slots as `layer`. It is never quantized: integers would come back as others."""
    return StaticLayer(layer.max_cache_len) if isinstance(layer, StaticLayer) else DynamicLayer()
