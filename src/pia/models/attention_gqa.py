"""Grouped-query attention on the CPU that reads keys and values once for all heads that share them.

Transformers' `sdpa` copies keys and values to every query head as soon as there is a mask, and PyTorch's CPU kernel
reads them anew for every query head. Behind a long text that is most of a step. Here the queries of the heads that
share keys stand in one matrix, `[rows, kv_heads, groups * q, head_dim]`, so that nothing is copied and each key is read
once: 8 tokens behind 4096, 32 heads of 128 over 8, float32 and one thread, take a layer 13 ms in place of 111.

The plug-in point is Transformers' registry of attention functions. Attention modules read its key from their
configuration, so while one of our forwards runs, they have a copy of it that names ours; in other threads ours is the
stock function.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from pia.models.attention.plug_in import own_implementation

_NAME = "pia_grouped_sdpa"
_STOCK = "sdpa"
_MAX_PACKED = 256
"""Rows of a packed query, `groups * q`. With more, reading keys is no longer what costs, and masks would be large."""
_PLAIN_ARGUMENTS = frozenset(
    {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "kwargs"}
)
_OTHER_ARGUMENTS = frozenset({"softcap", "output_attentions", "position_bias", "cache", "s_aux"})
"""What the stock function gives a meaning to, or refuses: then it shall have the call."""

_packed_masks: ContextVar[dict[int, tuple[torch.Tensor, torch.Tensor]] | None] = ContextVar(
    "pia_packed_masks", default=None
)
"""Of the forward under way in this thread: packed masks by the identity of the model's own, which is held as well."""
_lock = threading.Lock()
_users: dict[int, tuple[int, Any]] = {}
"""By attention module: forwards under way that have switched it, and its own configuration."""


class GroupedAttention:
    """Makes a model's forwards use grouped attention where that is worth while.

    Args:
        model: a causal language model of Transformers.
    """

    def __init__(self, model: Any) -> None:
        self._places: list[tuple[Any, Any]] = []
        copies: dict[int, Any] = {}
        for module, config in _grouped_modules(model):
            if id(config) not in copies:
                copies[id(config)] = _renamed(config)
            self._places.append((module, copies[id(config)]))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Enter this around a forward."""
        if not self._places:
            yield
            return
        token = _packed_masks.set({})
        self._switch_on()
        try:
            yield
        finally:
            self._switch_off()
            _packed_masks.reset(token)

    def _switch_on(self) -> None:
        with _lock:
            for module, own in self._places:
                count, stock = _users.get(id(module), (0, module.config))
                _users[id(module)] = count + 1, stock
                vars(module)["config"] = own

    def _switch_off(self) -> None:
        with _lock:
            for module, _ in self._places:
                count, stock = _users.pop(id(module))
                if count > 1:
                    _users[id(module)] = count - 1, stock
                else:
                    vars(module)["config"] = stock


def _grouped_modules(model: Any) -> Iterator[tuple[Any, Any]]:
    """Attention modules on the CPU whose heads share keys and that ask the registry what to attend with.

    With each comes its configuration. A compiled model keeps the attention that it was compiled with.
    """
    if getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod"):
        return
    for module in model.modules():
        groups = getattr(module, "num_key_value_groups", 1)
        if not isinstance(groups, int) or groups < 2 or "config" not in vars(module):
            continue
        with _lock:
            config = _users.get(id(module), (0, module.config))[1]
        asks = "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(type(module).forward).__globals__
        weight = next(module.parameters(), None)
        is_stock = own_implementation(config) == _STOCK
        if is_stock and asks and weight is not None and weight.device.type == "cpu":
            yield module, config


def _renamed(config: Any) -> Any:
    """A copy of a configuration that names our function."""
    own = copy.copy(config)
    vars(own)["_attn_implementation_internal"] = _NAME
    return own


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as Transformers calls it.

    Args:
        module: the attention module.
        query: `[rows, heads, q, head_dim]`.
        key: `[rows, kv_heads, slots, head_dim]`.
        value: `[rows, kv_heads, slots, value_dim]`.
        attention_mask: `[rows or 1, 1 or heads, q, slots]`, additive or boolean.
        dropout: as of `scaled_dot_product_attention`.
        scaling: likewise.
        is_causal: for calls without a mask.
        **options: as of the stock function.

    Returns:
        `[rows, q, heads, value_dim]`, and no weights.
    """
    masks = _packed_masks.get()
    groups, q = query.shape[1] // key.shape[1], query.shape[2]
    stock = ALL_ATTENTION_FUNCTIONS[_STOCK]
    is_explicit = q == 1 or (attention_mask is not None and attention_mask.shape[1] == 1)
    if masks is None or groups == 1 or not is_explicit or dropout or _has_other(options, stock):
        return stock(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **options
        )
    if groups * q <= _MAX_PACKED:
        output = _packed(query, key, value, _packed_mask(masks, attention_mask, groups), scaling)
    else:
        mask = _additive(masks, attention_mask, query.dtype)
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
    return output.transpose(1, 2).contiguous(), None


def _packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention `[rows, heads, q, value_dim]` with the queries of heads that share keys in one matrix."""
    rows, heads, q, dim = query.shape
    packed = query.reshape(rows, key.shape[1], -1, dim)
    output = torch.nn.functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(rows, heads, q, value.shape[-1])


def _packed_mask(
    masks: dict[int, tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor | None, groups: int
) -> torch.Tensor | None:
    """A mask `[rows, 1, q, slots]` for packed queries, `[rows, 1, groups * q, slots]`; made once for all layers."""
    if mask is None:
        return None
    if mask.shape[1] != 1:  # one token, and a mask for each head
        return mask.reshape(mask.shape[0], -1, groups, mask.shape[-1])
    if id(mask) not in masks:
        rows, _, q, slots = mask.shape
        masks[id(mask)] = mask, mask.expand(rows, groups, q, slots).reshape(rows, 1, groups * q, slots)
    return masks[id(mask)][1]


def _additive(
    masks: dict[int, tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor | None:
    """A boolean mask as the kernel needs it; made once for all layers, where PyTorch would at each."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    if id(mask) not in masks:
        masks[id(mask)] = mask, torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
    return masks[id(mask)][1]


def _has_other(options: dict[str, Any], stock: Any) -> bool:
    """Whether something is asked for that only the stock function knows, or refuses."""
    given = (options.get(name) for name in _other_arguments(stock))
    return any(value is not None and value is not False for value in given)


@cache
def _other_arguments(stock: Any) -> frozenset[str]:
    return (frozenset(inspect.signature(stock).parameters) - _PLAIN_ARGUMENTS) | _OTHER_ARGUMENTS


AttentionInterface.register(_NAME, grouped_attention)
