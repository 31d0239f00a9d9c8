"""What is held out to measure quality on: chosen by content, so that it is the same in every run."""

from __future__ import annotations

import math
from typing import NamedTuple

from pia.errors import ShrinkError
from pia.ipad.data.rows import Rows

MIN_HELD_OUT = 8
MIN_TRAINING = 24
MIN_TARGETS = 1024


class Split(NamedTuple):
    """Rows to train on, and rows that no training sees."""

    training: Rows
    held_out: Rows


def split(
    rows: Rows,
    held_out: Rows | None = None,
    *,
    share: float = 0.05,
    min_held_out: int = MIN_HELD_OUT,
    min_training: int = MIN_TRAINING,
    min_targets: int = MIN_TARGETS,
) -> Split:
    """Holds rows out; rows of the same tokens are never in both parts.

    Args:
        rows: of the training data.
        held_out: rows of a file of their own. Those of them that are among `rows` too are left out of training.
        share: of the different rows that is held out, where there is no such file: those whose hashes are the lowest.
        min_held_out: rows to hold out at least.
        min_training: rows to train on at least.
        min_targets: tokens of weight 1 to train on at least.

    Raises:
        ShrinkError: there are too few rows or tokens.
    """
    contents = [row.content for row in rows]
    if held_out is None:
        different = sorted(set(contents))
        needed = min_held_out + min_training
        if len(different) < needed:
            raise ShrinkError(
                f"the data has {len(different)} different rows, and {needed} are needed: {min_held_out} to measure "
                f"quality on and {min_training} to train on; give more data, or shorter rows"
            )
        chosen = set(different[: max(min_held_out, math.ceil(share * len(different)))])
        held_out = Rows([row for row, content in zip(rows, contents, strict=True) if content in chosen])
    else:
        chosen = {row.content for row in held_out}
    training = Rows([row for row, content in zip(rows, contents, strict=True) if content not in chosen], rows.num_cut)
    _check(training, held_out, min_training, min_targets)
    return Split(training, held_out)


def _check(training: Rows, held_out: Rows, min_training: int, min_targets: int) -> None:
    if len(training) < min_training:
        raise ShrinkError(f"{len(training)} rows are left to train on, and {min_training} are needed; give more data")
    if training.num_targets < min_targets:
        raise ShrinkError(
            f"the data has {training.num_targets} tokens to learn, and {min_targets} are needed; give more data"
        )
    if not held_out.num_targets:
        raise ShrinkError("the rows held out have no tokens of weight 1 to measure quality on; give other data")
