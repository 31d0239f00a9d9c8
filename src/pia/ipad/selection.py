"""Which units of a model stay when it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pia.ipad.shape import Shape

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """Indices of the units that stay, in ascending order.

    `kv_groups`, `ffn` and `experts` hold a row for each layer that stays, in the order of `layers`; all rows of a
    field are of one length, so that every layer keeps the same shape.
    """

    layers: Indices
    kv_groups: tuple[Indices, ...]
    ffn: tuple[Indices, ...]
    hidden: Indices
    experts: tuple[Indices, ...] = ()
    """Empty for dense models. The neurons in `ffn` are then those of every expert that stays."""

    @classmethod
    def everything(cls, shape: Shape) -> Selection:
        """All units of a model."""
        num = shape.num_layers
        return cls(
            layers=_all(num),
            kv_groups=(_all(shape.num_kv_heads),) * num,
            ffn=(_all(shape.ffn_size),) * num,
            hidden=_all(shape.hidden_size),
            experts=(_all(shape.num_experts),) * num if shape.num_experts else (),
        )

    @property
    def shape(self) -> Shape:
        """Of the model that is left."""
        return Shape(
            len(self.layers),
            _width(self.kv_groups),
            _width(self.ffn),
            len(self.hidden),
            _width(self.experts) if self.experts else 0,
        )

    def then(self, later: Selection) -> Selection:
        """The selection in the model that was there first, once what this one left has been cut again by `later`."""
        return Selection(
            tuple(self.layers[i] for i in later.layers),
            _rows_then(self.kv_groups, later.layers, later.kv_groups),
            _rows_then(self.ffn, later.layers, later.ffn),
            tuple(self.hidden[i] for i in later.hidden),
            _rows_then(self.experts, later.layers, later.experts) if self.experts else (),
        )

    def to_json(self) -> dict[str, Any]:
        """Lists of whole numbers."""
        return {
            "layers": list(self.layers),
            "kv_groups": [list(row) for row in self.kv_groups],
            "ffn": [list(row) for row in self.ffn],
            "hidden": list(self.hidden),
            "experts": [list(row) for row in self.experts],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Selection:
        """What `to_json` made."""
        return cls(
            tuple(content["layers"]),
            tuple(map(tuple, content["kv_groups"])),
            tuple(map(tuple, content["ffn"])),
            tuple(content["hidden"]),
            tuple(map(tuple, content["experts"])),
        )


def _all(num: int) -> Indices:
    return tuple(range(num))


def _width(rows: Sequence[Indices]) -> int:
    widths = {len(row) for row in rows}
    assert len(widths) == 1, f"rows of {widths} units: all layers keep the same number"
    return widths.pop()


def _rows_then(rows: Sequence[Indices], layers: Indices, later: Sequence[Indices]) -> tuple[Indices, ...]:
    return tuple(tuple(rows[layer][i] for i in kept) for layer, kept in zip(layers, later, strict=True))
