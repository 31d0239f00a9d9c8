"""Finds out before any work is done that a shrink cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pia.errors import ShrinkError
from pia.ipad.data import Split
from pia.ipad.limits import sizes_of
from pia.ipad.settings import ShrinkConfig
from pia.ipad.structure import Structure
from pia.ipad.target import Target, final_shape


def check_before(structure: Structure, target: Target, data: Split, config: ShrinkConfig) -> None:
    """Refuses what would fail after the first long measurements.

    Raises:
        ShrinkError: the rows do not fit the model, the limits leave no sizes, or no shape meets the target (a latency
            target is left to the measurement).
    """
    for rows in data:
        _check_rows(rows, structure.config.get_text_config())
    sizes_of(structure, config.limits)
    if target.parameters is not None or target.shape is not None:
        final_shape(structure, None, replace(target, latency=None), config.limits)


def _check_rows(rows: Any, config: Any) -> None:
    largest = max(int(row.ids.max()) for row in rows)
    if largest >= config.vocab_size:
        raise ShrinkError(
            f"the tokenizer makes tokens up to {largest}, and the model knows {config.vocab_size}: give the model's own"
        )
    rows.check_places(config)
