"""What is asked of a batch: token ids, which of them are padding, and which positions predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Batch = Any
"""A batch of `pia.ipad.data` (`ids` and `weights`, padded on the right), or a mapping of tensors `[rows, tokens]`:
`input_ids`, and `attention_mask` unless no row is padded."""


def model_inputs(batch: Batch, device: torch.device | str) -> dict[str, torch.Tensor]:
    """The arguments of a forward over a batch."""
    if not isinstance(batch, Mapping):
        return {"input_ids": batch.ids.to(device)}  # padding on the right is hidden by causality
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask") if batch.get(name) is not None}


def token_ids(batch: Batch) -> torch.Tensor:
    """`[rows, tokens]`."""
    ids: torch.Tensor = batch["input_ids"] if isinstance(batch, Mapping) else batch.ids
    return ids


def token_weights(batch: Batch, device: torch.device | str) -> torch.Tensor:
    """`[rows, tokens]`, float64: 1 for tokens, 0 for padding (and what comes after the last token to be predicted)."""
    if isinstance(batch, Mapping):
        mask = batch.get("attention_mask")
        mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    else:
        mask = (batch.weights > 0).int().flip(1).cummax(dim=1).values.flip(1)
    weights: torch.Tensor = mask.to(device, torch.float64)
    return weights


def predicted_positions(batch: Batch, device: torch.device | str) -> torch.Tensor:
    """`[rows, tokens - 1]`, bool: positions with a token, and one to predict."""
    if not isinstance(batch, Mapping):
        wanted: torch.Tensor = batch.weights[:, 1:].to(device) > 0
        return wanted
    weights = token_weights(batch, device)
    return (weights[:, :-1] * weights[:, 1:]) > 0
