"""How far logits are from those expected."""

from __future__ import annotations

import torch


def rms_distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square difference of the worst row, `[rows, vocab]` each.

    Not the largest single difference, which grows with the vocabulary.
    """
    return float((logits.double() - expected.double()).square().mean(dim=-1).sqrt().max())
