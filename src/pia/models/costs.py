"""Measures what a forward over q tokens costs on the model and machine at hand."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch

from pia.drafting.budget import CostCurve
from pia.drafting.tree import DraftTree
from pia.models.exact import ExactRunner
from pia.models.runner import SlabRunner

_CONTEXT = 128
_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_FEW_SIZES = (1, 4, 16)
"""For models so slow that every forward is felt."""
_SECONDS = 1.0
"""No further round is begun after so long."""
_MAX_ROUNDS = 10


def measure_costs(model: Any, *, can_branch: bool = True) -> CostCurve:
    """Times forwards over 1 .. 64 new tokens behind a short text.

    Sizes take turns and the best round of each counts: other work on the machine only ever adds time.

    Args:
        model: a model that can verify at least chains.
        can_branch: whether steps carry an explicit mask.

    Returns:
        the curve, in seconds.
    """
    runner = SlabRunner(model, can_branch=can_branch)
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 20
    largest = max(1, min(_SIZES[-1], limit // 2))
    context = max(1, min(_CONTEXT, limit - largest - 1))
    runner.prefill(torch.zeros((1, context), dtype=torch.long))
    first = _time_forward(runner, 1, context)
    wanted = _SIZES if first * len(_SIZES) < _SECONDS else _FEW_SIZES
    sizes = [*(q for q in wanted if q < largest), largest]
    best = dict.fromkeys(sizes, float("inf"))
    started = perf_counter()
    for _ in range(_MAX_ROUNDS):
        for q in sizes:
            best[q] = min(best[q], _time_forward(runner, q, context))
        if perf_counter() - started > _SECONDS:
            break
    return CostCurve(sizes, list(best.values()))


def measure_exact_costs(model: Any, sizes: Sequence[int]) -> CostCurve:
    """Times the forwards of exact decoding: any number of tokens costs what the next of these sizes costs."""
    runners = {size: ExactRunner(model, lambda _, size=size: (size,)) for size in sizes}  # type: ignore[misc]
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 20
    context = max(1, min(_CONTEXT, limit - sizes[-1]))
    for runner in runners.values():
        runner.prefill(torch.zeros((1, context), dtype=torch.long))
    best = dict.fromkeys(sizes, float("inf"))
    started = perf_counter()
    for _ in range(_MAX_ROUNDS):
        for size, runner in runners.items():
            best[size] = min(best[size], _time_forward(runner, size, context))
        if perf_counter() - started > _SECONDS:
            break
    steps = {q: best[size] for low, size in zip((0, *sizes), sizes, strict=False) for q in (low + 1, size)}
    return CostCurve(list(steps), list(steps.values()))


def _time_forward(runner: SlabRunner | ExactRunner, q: int, context: int) -> float:
    tree = _chain(q - 1)
    started = perf_counter()
    logits = runner.forward(0, tree)
    logits.argmax(dim=-1).tolist()  # waits for the device
    seconds = perf_counter() - started
    runner.cache.set_length(context)
    return seconds


def _chain(length: int) -> DraftTree:
    zeros = np.zeros(length, dtype=np.int32)
    parents = np.arange(-1, length - 1, dtype=np.int32)
    return DraftTree(zeros, parents, np.ones(length, dtype=np.float32), zeros.astype(np.uint8))
