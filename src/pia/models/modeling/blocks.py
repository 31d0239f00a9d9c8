"""Parts that our modeling files share: layers with attention over packed projections, and the masks of plain calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class PackedAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from one projection, in that order.

    Args:
        config: gives `hidden_size`, `num_attention_heads` and the attention implementation.
        layer_idx: the layer's place in the KV cache.
        bias: whether the projections have biases.
    """

    is_causal = False  # masks are always explicit; without one every slot is seen

    def __init__(self, config: Any, layer_idx: int, *, bias: bool) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, cache: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends from `[rows, q, hidden]` over all slots; `mask` is additive, `[rows, 1 or heads, q, slots]`."""
        shape = (*hidden_states.shape[:-1], 3, -1, self.head_dim)
        query, key, value = self.qkv_proj(hidden_states).view(shape).permute(2, 0, 3, 1, 4)  # [rows, heads, q, dim]
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attend(self, query, key, value, mask, scaling=self.scaling, dropout=0.0)
        return self.o_proj(output.flatten(2)), weights


class PreNormLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and feed-forward, each behind a norm; subclasses say which."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor, past_key_values: Any = None) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), mask, past_key_values)[0]
        output: torch.Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return output


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; the softmax is taken in float32 at least."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=at_least_float32(scores.dtype)).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in where 16 bits are too few."""
    return torch.promote_types(dtype, torch.float32)


def text_positions(
    position_ids: torch.Tensor | None, mask: torch.Tensor | None, hidden_states: torch.Tensor, start: int
) -> torch.Tensor:
    """Positions of the tokens fed, int64 `[rows, q]`: as given, or counted from the padding mask or the cache."""
    rows, q = hidden_states.shape[:2]
    if position_ids is not None:
        return position_ids.expand(rows, -1)
    if mask is not None and mask.dim() == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -q:]
    return torch.arange(start, start + q, device=hidden_states.device).expand(rows, -1)


def additive_mask(mask: torch.Tensor | None, hidden_states: torch.Tensor, start: int, num_slots: int) -> torch.Tensor:
    """A mask to be added to scores, `[rows or 1, 1, q, num_slots]`.

    Args:
        mask: padding mask `[rows, slots]`, `None`, or a mask of the caller's own, `[rows, 1, q, num_slots]`, which is
            kept as it is (a boolean one is true where there is something to see).
        hidden_states: `[rows, q, hidden]`, for sizes and type.
        start: slots in use before this forward.
        num_slots: slots in use with it.
    """
    hidden = torch.finfo(hidden_states.dtype).min
    if mask is None or mask.dim() == 2:
        mask = _causal(mask, hidden_states, start, num_slots)
    if mask.dtype != torch.bool:
        return mask.to(hidden_states.dtype)
    return torch.zeros(mask.shape, dtype=hidden_states.dtype, device=mask.device).masked_fill(~mask, hidden)


def _causal(padding: torch.Tensor | None, hidden_states: torch.Tensor, start: int, num_slots: int) -> torch.Tensor:
    """Bool `[rows or 1, 1, q, num_slots]`: the slots up to a token's own, without padding."""
    device = hidden_states.device
    own = torch.arange(start, start + hidden_states.shape[1], device=device)
    slots = torch.arange(num_slots, device=device)
    seen = (slots <= own[:, None])[None, None]
    if padding is None:
        return seen
    is_token = torch.ones((padding.shape[0], num_slots), dtype=torch.bool, device=device)
    width = min(num_slots, padding.shape[1])
    is_token[:, :width] = padding[:, :width].bool()
    return seen & is_token[:, None, None]


def kept_rows(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions whose logits are wanted: the last so many (0 for all), or those listed."""
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
    return hidden_states[:, logits_to_keep]
