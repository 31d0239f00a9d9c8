"""The teacher that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pia.ipad.arithmetic import autocast_dtype
from pia.ipad.data import Rows
from pia.ipad.distil_config import DistillConfig
from pia.ipad.processes import Processes
from pia.ipad.teacher import OnlineTeacher, Teacher
from pia.ipad.teacher_cache import TeacherCache


def teacher_for(
    config: DistillConfig, model: Any, rows: Rows, folder: Path, on_shard: Callable[[int, int], None] | None = None
) -> Teacher:
    """The model itself, or its answers about the rows on disk.

    Args:
        config: whether they are cached, how many tokens, at which temperature.
        model: the original.
        rows: to train on.
        folder: of the cache; what is there already is not asked again.
        on_shard: see `TeacherCache.build`.

    Raises:
        ShrinkError: the folder holds another cache, or the model is of no supported family.
        OSError: the cache cannot be written.
    """
    live = OnlineTeacher(model)
    if config.teacher == "online" or not config.needs_teacher:
        return live
    return TeacherCache.build(
        live, rows, folder, top_k=config.top_k, temperature=config.temperature, on_shard=on_shard,
        batch_tokens=config.micro_batch_tokens or config.batch_tokens,
        autocast_dtype=autocast_dtype(config.precision, Processes(model.device).device),
    )  # fmt: skip
