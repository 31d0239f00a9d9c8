"""Which sizes a cut model may have: what its users can load, split and run fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pia.errors import ShrinkError
from pia.ipad.counts import GridShape, HasConfig
from pia.ipad.shape import Shape

AXES = {
    "layers": "num_layers",
    "kv_heads": "num_kv_heads",
    "ffn": "ffn_size",
    "hidden": "hidden_size",
    "experts": "num_experts",
}
"""What can be cut, and its name in `Shape`."""
_MAX_MULTIPLE = 128
_PARTS = 16
"""A default multiple leaves at least so many sizes to choose from."""
_EXPERT_MULTIPLE = 8
"""Of the sizes of experts: kernels that multiply all experts at once need rows of 16 bytes, 8 numbers of bfloat16."""
_MAX_VALUES = 64
"""Sizes looked at on an axis: beyond that, every second, every third, and so on."""


@dataclass(frozen=True)
class Limits:
    """What a shape must keep to."""

    axes: tuple[str, ...] | None = None
    """Which sizes may shrink, of `AXES`; by default layers, KV heads and FFN neurons (and experts, where there are
    some), without KV heads where the family's configuration ties hidden size and heads together."""
    tensor_parallel: int = 1
    """Devices that the model is to be split over: KV heads (so query heads too) and FFN are divisible by it."""
    ffn_multiple: int | None = None
    """Of FFN sizes; by default the largest power of two up to a sixteenth of the FFN, at most 128.
    Those of experts are multiples of 8 in any case, as are hidden sizes of models with experts."""
    hidden_multiple: int | None = None
    """Of hidden sizes; the default is made likewise."""


def default_multiple(size: int) -> int:
    """The largest power of two that leaves sixteen sizes to choose from, at most 128."""
    largest = max(1, size // _PARTS)
    return int(min(_MAX_MULTIPLE, 1 << (largest.bit_length() - 1)))


def axes_of(structure: HasConfig, limits: Limits) -> tuple[str, ...]:
    """The axes that may shrink.

    Raises:
        ShrinkError: an axis is unknown, or cannot shrink alone in this family.
    """
    ties = structure.ties_hidden_to_heads
    if limits.axes is None:
        axes = ("layers", "ffn") if ties else ("layers", "kv_heads", "ffn")
        return (*axes, "experts") if structure.shape.num_experts else axes
    for axis in limits.axes:
        if axis not in AXES:
            raise ShrinkError(f"there is no axis {axis!r} to cut; there are {', '.join(AXES)}")
    if "experts" in limits.axes and not structure.shape.num_experts:
        raise ShrinkError("this model has no experts to cut: leave out that axis")
    if ties and ("hidden" in limits.axes) != ("kv_heads" in limits.axes):
        raise ShrinkError(
            "in this family the hidden size is heads x head size, so they shrink together: name both kv_heads and "
            "hidden, or neither"
        )
    return limits.axes


def sizes_of(structure: HasConfig, limits: Limits) -> dict[str, list[int]]:
    """The sizes that each axis may have, from the largest.

    Raises:
        ShrinkError: an axis has no size that can be split or rounded as asked.
    """
    axes, shape = axes_of(structure, limits), structure.shape
    if limits.tensor_parallel < 1:
        raise ShrinkError(f"tensor parallel size {limits.tensor_parallel}: give 1 or more")
    sizes = {axis: [getattr(shape, name)] for axis, name in AXES.items()}
    for axis in axes:
        sizes[axis] = list(range(getattr(shape, AXES[axis]), 0, -1))
    sizes["kv_heads"] = _divisible(sizes["kv_heads"], limits.tensor_parallel, "KV heads", "tensor_parallel")
    multiple = _asked(limits.ffn_multiple, "ffn_multiple") or default_multiple(shape.ffn_size)
    of_experts = _EXPERT_MULTIPLE if shape.num_experts else 1
    multiple = math.lcm(multiple, limits.tensor_parallel, of_experts)
    keeps_whole = limits.ffn_multiple is None and shape.ffn_size % limits.tensor_parallel == 0
    sizes["ffn"] = _rounded(sizes["ffn"], multiple, keeps_whole, "FFN neurons", "ffn_multiple")
    multiple = _asked(limits.hidden_multiple, "hidden_multiple") or default_multiple(shape.hidden_size)
    if structure.ties_hidden_to_heads:
        multiple = structure.head_dim * structure.queries_per_group
    multiple = math.lcm(multiple, of_experts)
    keeps_whole = limits.hidden_multiple is None
    sizes["hidden"] = _rounded(sizes["hidden"], multiple, keeps_whole, "hidden channels", "hidden_multiple")
    return {axis: _thinned(values) for axis, values in sizes.items()}


def _asked(multiple: int | None, name: str) -> int | None:
    if multiple is not None and multiple < 1:
        raise ShrinkError(f"{name}={multiple}: give 1 or more")
    return multiple


def _divisible(sizes: list[int], by: int, what: str, option: str) -> list[int]:
    fitting = [size for size in sizes if size % by == 0]
    if not fitting:
        raise ShrinkError(f"no number of {what} up to {sizes[0]} is divisible by {by} and may be chosen: "
                          f"change {option}, or the axes")  # fmt: skip
    return fitting


def _rounded(sizes: list[int], multiple: int, keeps_whole: bool, what: str, option: str) -> list[int]:
    """Multiples; the whole size too where nobody asked for them."""
    if len(sizes) == 1 and keeps_whole:
        return sizes
    fitting = [size for size in sizes if size % multiple == 0]
    if keeps_whole and sizes[0] not in fitting:
        return [sizes[0], *fitting]
    return fitting if fitting else _divisible(sizes, multiple, what, option)


def _thinned(sizes: list[int]) -> list[int]:
    """At most some sizes, evenly taken, with the largest and the smallest."""
    step = -(-len(sizes) // _MAX_VALUES)
    return sizes if step == 1 else list(dict.fromkeys([*sizes[::step], sizes[-1]]))


def grid_of(structure: HasConfig, sizes: Mapping[str, list[int]]) -> GridShape:
    """All combinations of sizes that the family's configuration can hold, as flat arrays."""
    values = [sizes[axis] for axis in AXES]
    arrays = dict(zip(AXES.values(), (grid.ravel() for grid in np.meshgrid(*values, indexing="ij")), strict=True))
    if structure.ties_hidden_to_heads:
        heads = arrays["num_kv_heads"] * structure.queries_per_group * structure.head_dim
        fits = arrays["hidden_size"] == heads
        arrays = {name: array[fits] for name, array in arrays.items()}
    return GridShape(**arrays)


def check_experts(structure: HasConfig, shape: Shape) -> None:
    """Whether stock kernels can run the experts of a shape.

    Raises:
        ShrinkError: a size that shrinks is no multiple of what they need.
    """
    if not shape.num_experts:
        return
    for name, what in (("ffn_size", "FFN neurons"), ("hidden_size", "hidden channels")):
        size = getattr(shape, name)
        if size % _EXPERT_MULTIPLE and size != getattr(structure.shape, name):
            raise ShrinkError(
                f"{size} {what} are not a multiple of {_EXPERT_MULTIPLE}, which kernels of experts need: take "
                f"{size - size % _EXPERT_MULTIPLE or _EXPERT_MULTIPLE}"
            )


def is_legal(structure: HasConfig, shape: Shape) -> bool:
    """Whether a stock configuration can hold a shape, and stock kernels can run it."""
    try:
        structure.check(shape)
        check_experts(structure, shape)
    except ShrinkError:
        return False
    return True
