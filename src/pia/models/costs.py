"""Measures what a forward over q tokens costs on the model and machine at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch

from pia.drafting.budget import CostCurve
from pia.drafting.tree import DraftTree
from pia.models.exact import ExactRows, ExactRunner
from pia.models.positions import context_length
from pia.models.recurrent import RecurrentRunner
from pia.models.runner import SlabRunner

_CONTEXT = 128
_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_WIDE_SIZES = (96, 128)
"""On a device of its own, where a lookahead window may ride behind the largest tree."""
_FEW_SIZES = (1, 4, 16)
"""For models so slow that every forward is felt."""
_SECONDS = 1.0
"""No further round is begun after so long ..."""
_LONGEST_SECONDS = 4.0
"""... or after so long, where the first rounds took as much."""
_MIN_ROUNDS, _MAX_ROUNDS = 3, 10
"""A single round may fall into a moment in which the machine does something else, and would flatten the curve."""


def measure_costs(model: Any, new_runner: Callable[[Any], SlabRunner | RecurrentRunner]) -> CostCurve:
    """Times forwards over 1 .. 64 new tokens behind a short text, 128 on a device of its own.

    Sizes take turns and the best round of each counts: other work on the machine only ever adds time.

    Args:
        model: a model that can verify at least chains.
        new_runner: makes a runner of the model.

    Returns:
        the curve, in seconds.
    """
    runner = new_runner(model)
    known = (*_SIZES, *_WIDE_SIZES) if runner.is_asynchronous else _SIZES
    largest, context = _largest_and_context(model, known[-1])
    runner.prefill([torch.zeros(context, dtype=torch.long)])
    first = _time_forward(runner, 1, context)
    wanted = known if first * len(known) < _SECONDS else _FEW_SIZES
    sizes = [*(q for q in wanted if q < largest), largest]
    best = _best_of_rounds(sizes, lambda q: _time_forward(runner, q, context))
    return CostCurve(sizes, list(best.values()))


def measure_stepped_costs(model: Any, new_runner: Callable[[Any], SlabRunner], sizes: Sequence[int]) -> CostCurve:
    """Times forwards of a few fixed sizes: any number of tokens costs what the next of these sizes costs."""
    runner, largest, context = new_runner(model), *_largest_and_context(model, sizes[-1])
    runner.prefill([torch.zeros(context, dtype=torch.long)])
    sizes = [size for size in sizes if size <= largest]
    for size in sizes:  # captures are not what a step costs
        _time_forward(runner, size, context)
    return _stepped(sizes, _best_of_rounds(sizes, lambda q: _time_forward(runner, q, context)))


def time_runners(
    model: Any, new_runners: Sequence[Callable[[Any], SlabRunner]], sizes: Sequence[int]
) -> list[list[float]]:
    """Times several runners of one model against each other, in turns.

    Returns:
        for each runner, the seconds of a forward of each size.
    """
    runners = [new_runner(model) for new_runner in new_runners]
    largest, context = _largest_and_context(model, max(sizes))
    for runner in runners:
        runner.prefill([torch.zeros(context, dtype=torch.long)])
    cases = [(n, min(q, largest)) for q in sizes for n in range(len(runners))]
    for n, q in cases:  # the first time of each is another matter: captures, thread pools, caches
        _time_forward(runners[n], q, context)

    def time(case: int) -> float:
        n, q = cases[case]
        return _time_forward(runners[n], q, context)

    best = _best_of_rounds(range(len(cases)), time)
    return [[best[case] for case in range(n, len(cases), len(runners))] for n in range(len(runners))]


def measure_exact_costs(model: Any, sizes: Sequence[int]) -> CostCurve:
    """Times the forwards of exact decoding: any number of tokens costs what the next of these sizes costs."""
    limit = context_length(model) or 1 << 20
    context = max(1, min(_CONTEXT, limit - sizes[-1]))
    runners = {size: ExactRows(partial(ExactRunner, model, partial(_only, size))) for size in sizes}
    for runner in runners.values():
        runner.prefill([torch.zeros(context, dtype=torch.long)])
    best = _best_of_rounds(sizes, lambda size: _time_forward(runners[size], size, context))
    return _stepped(sizes, best)


def _stepped(sizes: Sequence[int], best: dict[int, float]) -> CostCurve:
    """The curve where any number of tokens costs what the next of these sizes costs."""
    steps = {q: best[size] for low, size in zip((0, *sizes), sizes, strict=False) for q in (low + 1, size)}
    return CostCurve(list(steps), list(steps.values()))


def _largest_and_context(model: Any, most: int) -> tuple[int, int]:
    """How many tokens can be fed at most behind how long a text, within the model's context."""
    limit = context_length(model) or 1 << 20
    largest = max(1, min(most, limit // 2))
    return largest, max(1, min(_CONTEXT, limit - largest - 1))


def _only(size: int, bucket: int) -> tuple[int, ...]:
    """One size of forwards for every bucket."""
    return (size,)


def _best_of_rounds(sizes: Sequence[int], time: Callable[[int], float]) -> dict[int, float]:
    """The best time of each size over some rounds in which they take turns."""
    best = dict.fromkeys(sizes, float("inf"))
    started = perf_counter()
    for number in range(_MAX_ROUNDS):
        for size in sizes:
            best[size] = min(best[size], time(size))
        if perf_counter() - started > (_SECONDS if number + 1 >= _MIN_ROUNDS else _LONGEST_SECONDS):
            break
    return best


def _time_forward(runner: SlabRunner | RecurrentRunner | ExactRows, q: int, context: int) -> float:
    tree = DraftTree.chain([0] * (q - 1))
    started = perf_counter()
    logits = runner.forward([0], [tree])
    logits.argmax(dim=-1).tolist()  # waits for the device
    seconds = perf_counter() - started
    _undo(runner, q, context)
    return seconds


def _undo(runner: SlabRunner | RecurrentRunner | ExactRows, q: int, context: int) -> None:
    """Forgets the last forward. Of a recurrent state a single token is left in, since nothing was drafted."""
    if isinstance(runner, SlabRunner):
        runner.cache.set_lengths([context])
    elif isinstance(runner, ExactRows):
        runner.keep([[]])
    elif q > 1:
        runner.undo()
    else:
        runner.keep([[0]])
