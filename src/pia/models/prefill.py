"""Which prompts of a batch are fed together: padding costs time, and so do many small forwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_MAX_WASTE = 0.25
"""Padding, as a share of the real tokens."""
_MAX_TOKENS = 8192
"""More tokens than that keep any machine busy, and their activations take memory."""


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
