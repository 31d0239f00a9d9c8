"""The shapes between a model and what it shall become: a little less each round."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from pia.errors import ShrinkError
from pia.ipad.counts import GridShape, HasConfig, ParameterCounter
from pia.ipad.limits import AXES, Limits, grid_of, is_legal, sizes_of
from pia.ipad.shape import Shape

Array = np.ndarray[Any, Any]

STEP = 0.08
"""Share of the first model's non-embedding parameters that a round removes, about."""
_LEAST, _MOST = 0.625, 1.25
"""A round removes between so many steps: 5 to 10 % at the default."""

_SIZE_COUNTS = 4
"""A round that is off its size by a share of the parameters counts as so much unevenness between axes."""


def schedule(
    structure: HasConfig,
    start: Shape,
    final: Shape,
    *,
    limits: Limits | None = None,
    step: float = STEP,
    counter: ParameterCounter | None = None,
) -> list[Shape]:
    """The shape of each round: every one legal, none with a size above the last one's, the last being `final`.

    A round removes 5 to 10 % (0.625 to 1.25 steps) of the non-embedding parameters that the original model had.
    Layers go first: their absence takes longest to make up for, and so all later rounds work on it too. Then, of the
    shapes that remove as much, the one is taken whose axes come about equally far on their ways. Removing one unit of
    one axis is always possible: a layer may hold more than 10 %, and then goes alone. The last layers' round and the
    last one of all may remove less.

    Args:
        structure: of the original model.
        start: where it begins; the original shape, or what earlier rounds have left.
        final: where it ends.
        limits: what the shapes between must keep to, as far as start and end do.
        step: share of the original's non-embedding parameters to remove in a round.
        counter: of the same structure, if there is one already.

    Raises:
        ShrinkError: the step is no share, or the end is not inside the start.
    """
    if not 0 < step <= 1:
        raise ShrinkError(f"a round cannot remove a share of {step:g}: give a number up to 1, such as {STEP}")
    if not final.fits_in(start):
        raise ShrinkError(f"{final} is not inside {start}: a size would have to grow")
    counter = counter or ParameterCounter(structure)
    allowed = sizes_of(structure, limits or Limits())
    shapes: list[Shape] = []
    now = start
    while now != final:
        end = _end_of_leg(structure, counter, now, final, step)
        now = _next(structure, counter, _sizes_between(allowed, now, end), now, end, step)
        shapes.append(now)
    return shapes


def _end_of_leg(structure: HasConfig, counter: ParameterCounter, now: Shape, final: Shape, step: float) -> Shape:
    """What is headed for: only layers go, as long as they make up a round; what is left for one round goes together."""
    layers_gone = replace(now, num_layers=final.num_layers)
    is_last = _removed(structure, counter, now, final) <= step * _MOST + 1e-9
    return final if is_last or _removed(structure, counter, now, layers_gone) < step * _LEAST else layers_gone


def _removed(structure: HasConfig, counter: ParameterCounter, before: Shape, after: Shape | GridShape) -> Any:
    """Share of the original's non-embedding parameters between two shapes."""
    return (counter.non_embedding(before) - counter.non_embedding(after)) / counter.non_embedding(structure.shape)


def _sizes_between(allowed: dict[str, list[int]], start: Shape, final: Shape) -> dict[str, list[int]]:
    """By axis, from the start's size to the end's, both included."""
    between = {}
    for axis, name in AXES.items():
        most, least = getattr(start, name), getattr(final, name)
        inner = [size for size in allowed[axis] if least < size < most]
        between[axis] = list(dict.fromkeys([most, *sorted(inner, reverse=True), least]))
    return between


def _next(
    structure: HasConfig, counter: ParameterCounter, sizes: dict[str, list[int]], now: Shape, end: Shape, step: float
) -> Shape:
    remaining = _removed(structure, counter, now, end)
    if remaining <= step * _MOST + 1e-9:
        return end
    grid = grid_of(structure, sizes)
    removed = _removed(structure, counter, now, grid)
    wanted = remaining / math.ceil(remaining / step - 1e-9)
    uneven = _unevenness(grid, now, end, wanted / remaining) + _SIZE_COUNTS * np.abs(removed - wanted)
    in_step = (removed >= step * _LEAST - 1e-9) & (removed <= step * _MOST + 1e-9)
    alone = _is_one_unit(grid, sizes) & (removed > step * _MOST)
    small = (removed > 0) & (removed <= step * _MOST)
    for chosen, badness in ((in_step | alone, uneven), (small, uneven), (removed > 0, removed)):
        indices = np.flatnonzero(chosen)
        for index in indices[np.argsort(np.round(badness[indices], 12), kind="stable")]:
            shape = grid.at(int(index))
            if is_legal(structure, shape):
                return shape
    return end


def _unevenness(grid: GridShape, now: Shape, end: Shape, goal: float) -> Array:
    """Root mean square over the axes of how far each is from the goal, as shares of its way."""
    gaps: list[Array] = []
    for name in AXES.values():
        most, least = getattr(now, name), getattr(end, name)
        if most > least:
            gaps.append(((most - np.asarray(getattr(grid, name))) / (most - least) - goal) ** 2)
    roots: Array = np.sqrt(np.mean(gaps, axis=0))
    return roots


def _is_one_unit(grid: GridShape, left: dict[str, list[int]]) -> Array:
    """Shapes where one axis is one size smaller than now, and the others as now."""
    moved = np.zeros(len(grid.num_layers), dtype=int)
    is_near = np.ones(len(grid.num_layers), dtype=bool)
    for axis, name in AXES.items():
        sizes = np.asarray(getattr(grid, name))
        now, after = left[axis][0], left[axis][1] if len(left[axis]) > 1 else left[axis][0]
        moved += sizes != now
        is_near &= (sizes == now) | (sizes == after)
    alone: Array = (moved == 1) & is_near
    return alone
