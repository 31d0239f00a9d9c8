"""Importance over the calibration set: some rows of the training data, the same ones in every round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pia.ipad.data import Rows, make_batch
from pia.ipad.importance import measure_importance
from pia.ipad.scores import Scores
from pia.ipad.settings import ShrinkConfig
from pia.ipad.structure import structure_of

_BATCH = 8
"""Rows."""


def importance_of(model: Any, rows: Rows, config: ShrinkConfig, *, teacher: Any) -> Scores:
    """Scores of a model's units.

    Args:
        model: to be cut.
        rows: to train on.
        config: how many of them are taken, by which seed, and how units are scored.
        teacher: whose distributions a Taylor score's loss is about.

    Raises:
        ShrinkError: a score is no number.
    """
    return measure_importance(
        model, structure_of(model), calibration_batches(rows, config, model.device), method=config.importance,
        layer_method=config.layer_importance, teacher=teacher, seed=config.seed,
    )  # fmt: skip


def calibration_batches(rows: Rows, config: ShrinkConfig, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """`input_ids` and `attention_mask`, `[rows, length]` each, of the rows that the seed chooses."""
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed)).tolist()
    chosen = sorted(chosen[: config.calibration_rows], key=lambda number: len(rows[number]))
    return [_mapping(rows, chosen[start : start + _BATCH], device) for start in range(0, len(chosen), _BATCH)]


def _mapping(rows: Rows, numbers: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
    ids = make_batch(rows, numbers).ids
    lengths = torch.tensor([len(rows[number]) for number in numbers])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
