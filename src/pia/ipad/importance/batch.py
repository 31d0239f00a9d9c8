"""What is asked of a batch: token ids and, where rows are padded, a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Batch = Mapping[str, Any]
"""Of tensors `[rows, tokens]`: `input_ids`, and `attention_mask` unless no row is padded."""


def model_inputs(batch: Batch, device: torch.device | str) -> dict[str, torch.Tensor]:
    """The arguments of a forward over a batch."""
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask") if batch.get(name) is not None}


def token_weights(batch: Batch, device: torch.device | str) -> torch.Tensor:
    """`[rows, tokens]`, float64: 1 for tokens, 0 for padding."""
    mask = batch.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(batch["input_ids"])
    weights: torch.Tensor = mask.to(device, torch.float64)
    return weights


def predicted_positions(batch: Batch, device: torch.device | str) -> torch.Tensor:
    """`[rows, tokens - 1]`, bool: positions with a token, and one to predict."""
    weights = token_weights(batch, device)
    return (weights[:, :-1] * weights[:, 1:]) > 0
