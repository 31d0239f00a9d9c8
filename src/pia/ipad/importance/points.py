"""Where importance is read off a model: what enters attention outputs and FFN outputs, and what norms give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pia.ipad.shape import Shape

See = Callable[["Point", torch.Tensor], None]


class HasPoints(Protocol):
    """What is asked of a structure map here."""

    @property
    def shape(self) -> Shape: ...

    def layers(self, model: Any) -> Any: ...

    def attention_output(self, layer: Any) -> Any: ...

    def ffn_output(self, layer: Any) -> Any: ...

    def experts(self, layer: Any) -> Any: ...

    def norms(self, model: Any) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Point:
    """A place in a model where every unit of a kind shows."""

    kind: str
    """`kv_groups`, `ffn` or `hidden`."""
    layer: int
    """0 for hidden channels, which all layers share."""
    module: Any
    is_input: bool
    """Whether the units enter the module, or leave it."""
    num_units: int

    def by_unit(self, values: torch.Tensor, num_rows: int) -> torch.Tensor:
        """`[rows, tokens, units * width]` as `[rows, tokens, units, width]`: a KV group has all its heads' dims.

        Some layers run rows and tokens together before their FFN (OPT's do): then `[rows * tokens, units * width]`.
        """
        return values.reshape(num_rows, -1, self.num_units, values.shape[-1] // self.num_units)


def points_of(structure: HasPoints, model: Any) -> list[Point]:
    """All places of a model, layer by layer; but not those inside of experts, see `pia.ipad.importance.experts`."""
    shape = structure.shape
    points = []
    for index, layer in enumerate(structure.layers(model)):
        points.append(Point("kv_groups", index, structure.attention_output(layer), True, shape.num_kv_heads))
        if not shape.num_experts:
            points.append(Point("ffn", index, structure.ffn_output(layer), True, shape.ffn_size))
    points += [Point("hidden", 0, norm, False, shape.hidden_size) for norm in structure.norms(model)]
    return points


@contextmanager
def watching(points: Sequence[Point], see: See) -> Iterator[None]:
    """Lets `see` look at what passes each point, `[rows, tokens, width]`; no hook outlives the block."""
    with ExitStack() as stack:
        for point in points:
            stack.callback(_watch(point, see).remove)
        yield


def _watch(point: Point, see: See) -> Any:
    if point.is_input:
        return point.module.register_forward_pre_hook(lambda _module, inputs: see(point, inputs[0]))

    def after(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        see(point, output)

    return point.module.register_forward_hook(after)
