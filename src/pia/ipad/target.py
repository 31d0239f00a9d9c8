"""Turns what a user wants (smaller, faster, or a shape) into the shape that the model shall end at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pia.errors import ShrinkError
from pia.ipad.counts import GridShape, HasConfig, ParameterCounter
from pia.ipad.damage import Damage
from pia.ipad.latency_model import LatencyModel
from pia.ipad.limits import Limits, check_experts, grid_of, is_legal, sizes_of
from pia.ipad.scores import Scores
from pia.ipad.shape import Shape

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Target:
    """What is wanted. Several wishes hold together; an explicit shape stands alone."""

    parameters: float | None = None
    """Share of the NON-EMBEDDING parameters that stays."""
    latency: float | None = None
    """Share of the time for a token of plain decoding, measured on this machine, that stays."""
    shape: Shape | None = None

    def check(self) -> None:
        """Refuses what says nothing or cannot be.

        Raises:
            ShrinkError: no wish, a share outside 0 to 1, or a shape beside shares.
        """
        shares = {"target": self.parameters, "target latency": self.latency}
        given = {name: share for name, share in shares.items() if share is not None}
        if not given and self.shape is None:
            raise ShrinkError("nothing to aim at: give a target (0.5 keeps half), a target latency, or a shape")
        if given and self.shape is not None:
            raise ShrinkError("a shape says all there is to say: give either a shape or shares, not both")
        for name, share in given.items():
            if not 0 < share < 1:
                raise ShrinkError(f"{name} {share:g} is no share to keep: give a number between 0 and 1, such as 0.5")

    def __str__(self) -> str:
        parts = (
            [f"{100 * self.parameters:.4g} % of the non-embedding parameters"] if self.parameters is not None else []
        )
        parts += [f"{100 * self.latency:.4g} % of the time per token"] if self.latency is not None else []
        return " and ".join(parts) if self.shape is None else str(self.shape)


def final_shape(
    structure: HasConfig,
    scores: Scores | None,
    target: Target,
    limits: Limits | None = None,
    *,
    latency: LatencyModel | None = None,
    counter: ParameterCounter | None = None,
    weights: Mapping[str, float] | None = None,
) -> Shape:
    """The shape that meets a target with the least estimated damage.

    Of all shapes within the limits that meet every wish, the one is taken whose `Damage` is least; of equals the one
    with more parameters, then with more layers, KV heads, neurons, channels. The same input gives the same shape.

    Args:
        structure: the model's map.
        scores: importance of its units; without them units of a kind count the same.
        target: what is wanted.
        limits: what a shape must keep to.
        latency: needed for a latency target.
        counter: of the same structure, if there is one already.
        weights: of axes, see `pia.ipad.damage`.

    Raises:
        ShrinkError: no shape meets the target; the message names the one that comes closest.
    """
    target.check()
    limits = limits or Limits()
    if target.shape is not None:
        return _explicit(structure, target.shape, limits)
    counter = counter or ParameterCounter(structure)
    grid = grid_of(structure, sizes_of(structure, limits))
    kept = _kept_shares(structure, target, grid, counter, latency)
    damage = Damage(scores, structure.shape, weights).of(grid)
    order = _best_first(grid, damage, counter.non_embedding(grid))
    meets = np.all([shares <= wanted + 1e-12 for wanted, shares in kept.values()], axis=0)
    for index in order[meets[order]]:
        shape = grid.at(int(index))
        if is_legal(structure, shape) and shape != structure.shape:
            return shape
    raise ShrinkError(_unreachable(structure, target, grid, kept))


def _kept_shares(
    structure: HasConfig, target: Target, grid: GridShape, counter: ParameterCounter, latency: LatencyModel | None
) -> dict[str, tuple[float, Array]]:
    """By wish: the share wanted, and that of each shape."""
    kept: dict[str, tuple[float, Array]] = {}
    if target.parameters is not None:
        shares = counter.non_embedding(grid) / counter.non_embedding(structure.shape)
        kept["non-embedding parameters"] = (target.parameters, shares)
    if target.latency is not None:
        if latency is None:
            raise ShrinkError("a latency target needs times measured on this machine: pass a latency model")
        kept["time per token"] = (target.latency, latency.seconds(grid) / latency.seconds(structure.shape))
    return kept


def _best_first(grid: GridShape, damage: Array, parameters: Array) -> Array:
    larger_first = [-np.asarray(sizes) for sizes in (grid.hidden_size, grid.ffn_size, grid.num_kv_heads)]
    keys = (*larger_first, -np.asarray(grid.num_layers), -parameters, np.round(damage, 12))  # the last is the first
    order: Array = np.lexsort(keys)
    return order


def _unreachable(structure: HasConfig, target: Target, grid: GridShape, kept: Mapping[str, tuple[float, Array]]) -> str:
    excess = np.max([shares / wanted for wanted, shares in kept.values()], axis=0)
    for index in np.argsort(excess, kind="stable"):
        shape = grid.at(int(index))
        if is_legal(structure, shape):
            reached = ", ".join(f"{shares[index]:.1%} of the {name}" for name, (_, shares) in kept.items())
            return (
                f"no shape keeps only {target}: the closest is {shape} with {reached}; aim at that or more, "
                "or let more axes shrink (axes, multiples, tensor_parallel)"
            )
    return f"no shape within the limits can be held by this family's configuration (aimed at {target})"


def _explicit(structure: HasConfig, shape: Shape, limits: Limits) -> Shape:
    if not shape.fits_in(structure.shape) or shape == structure.shape:
        raise ShrinkError(f"{shape} does not cut {structure.shape}: no size may grow, and one must shrink")
    for size, multiple, what in (
        (shape.num_kv_heads, limits.tensor_parallel, "KV heads, for the tensor parallel size"),
        (shape.ffn_size, limits.tensor_parallel, "FFN neurons, for the tensor parallel size"),
        (shape.ffn_size, limits.ffn_multiple or 1, "FFN neurons"),
        (shape.hidden_size, limits.hidden_multiple or 1, "hidden channels"),
    ):
        if size % multiple:
            raise ShrinkError(f"{size} is not a multiple of {multiple} ({what}): change the shape or that number")
    structure.check(shape)
    check_experts(structure, shape)
    return shape
