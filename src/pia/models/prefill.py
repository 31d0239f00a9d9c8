"""How prompts are fed: which together, since padding costs time and so do many small forwards, and in what pieces.

A forward over a whole prompt needs memory in proportion to its length, for activations, and where attention is not
fused in proportion to its square. Pieces bound both; what is left to grow is the mask of a piece `[chunk, context]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pia.models.attention.plug_in import own_implementation
from pia.models.positions import position_limits

_MAX_WASTE = 0.25
"""Padding, as a share of the real tokens."""
_MAX_TOKENS = 8192
"""More tokens than that keep any machine busy, and their activations take memory."""
_WHOLE = 4096
"""A prompt up to this length is fed in one forward, which needs no explicit mask."""
_MAX_MASK = 1 << 25
"""Most entries of a piece's mask, or of its scores where attention keeps them: 128 MiB in float32."""
_MIN_CHUNK, _MAX_CHUNK = 128, 2048
"""Smaller pieces leave a machine idle; larger ones gain nothing."""


def has_prompt_form(model: Any) -> bool:
    """Whether prompts have a form that only the model itself can read, and not in pieces (GLM)."""
    return hasattr(model, "as_prompt")


def default_chunk_size(model: Any, length: int) -> int:
    """Tokens of a prefill forward over a prompt, where the caller does not say: the whole prompt, or a piece.

    A model whose positions depend on the length of the text, or whose prompts have a form, takes it whole.

    Args:
        model: a causal language model of Transformers.
        length: of the prompt, in tokens.
    """
    if length <= _WHOLE or position_limits(model).reason is not None or has_prompt_form(model):
        return length
    config = model.config.get_text_config(decoder=True)
    is_fused = own_implementation(config) != "eager"
    num_scores = length * (1 if is_fused else int(getattr(config, "num_attention_heads", 1) or 1))
    size = min(_MAX_MASK // num_scores, _MAX_CHUNK)
    return max(size - size % _MIN_CHUNK, _MIN_CHUNK)


def distinct_prompts(prompts: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[int]]:
    """The prompts without repetition (as `num_return_sequences` makes them), and for each prompt which of them it is.

    The number of a prompt is never larger than its place.
    """
    numbers: dict[bytes, int] = {}
    distinct: list[torch.Tensor] = []
    which: list[int] = []
    for prompt in prompts:
        number = numbers.setdefault(prompt.cpu().numpy().tobytes(), len(distinct))
        if number == len(distinct):
            distinct.append(prompt)
        which.append(number)
    return distinct, which


def prefill_groups(lengths: Sequence[int]) -> list[slice]:
    """Splits rows into neighbours of like length, so that padding to the longest of each group wastes little.

    Args:
        lengths: prompt lengths, best sorted, `[rows]`.

    Returns:
        slices of rows that together cover all, in order.
    """
    groups: list[slice] = []
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or not _belong_together(lengths[start : end + 1]):
            groups.append(slice(start, end))
            start = end
    return groups


def _belong_together(lengths: Sequence[int]) -> bool:
    fed = max(lengths) * len(lengths)
    return fed <= _MAX_TOKENS and fed - sum(lengths) <= _MAX_WASTE * sum(lengths)
