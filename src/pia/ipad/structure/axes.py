"""What the dimensions of a weight count, and which of their indices stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pia.ipad.selection import Indices, Selection

Dims = tuple[str, ...]
"""One entry a dimension: the axis that it runs along, several joined by `+` where a weight stacks them, in order."""

HIDDEN = "hidden"
QUERY = "query"
"""All query heads, each of `head_dim`; the heads of a KV group follow each other."""
KV = "kv"
"""All KV heads, each of `head_dim`."""
FFN = "ffn"
EXPERTS = "experts"
WHOLE = "whole"
"""Never cut: vocabulary, positions, the inside of a head."""


@dataclass(frozen=True)
class Sizes:
    """How long the axes of a model are."""

    hidden: int
    num_kv_heads: int
    queries_per_group: int
    head_dim: int
    ffn: int
    experts: int = 0

    @property
    def by_axis(self) -> dict[str, int]:
        """Length of each axis that has one."""
        kv = self.num_kv_heads * self.head_dim
        query = kv * self.queries_per_group
        return {HIDDEN: self.hidden, QUERY: query, KV: kv, FFN: self.ffn, EXPERTS: self.experts}

    def length(self, dim: str) -> int | None:
        """What a dimension must measure; None where anything goes."""
        lengths = self.by_axis
        return None if dim == WHOLE else sum(lengths[axis] for axis in dim.split("+"))


def linear(out: str, in_: str) -> dict[str, Dims]:
    """Weight `[out, in]` and bias of an `nn.Linear` or of an embedding `[entries, channels]`."""
    return {"weight": (out, in_), "bias": (out,)}


def transposed(in_: str, out: str) -> dict[str, Dims]:
    """Weight `[in, out]` and bias, as GPT-2's Conv1D keeps them."""
    return {"weight": (in_, out), "bias": (out,)}


def norm(axis: str = HIDDEN) -> dict[str, Dims]:
    """Weight and bias of a norm."""
    return {"weight": (axis,), "bias": (axis,)}


class Kept:
    """The indices that stay along each axis, in one layer of a model or outside of its layers.

    Args:
        row: place of the layer among those that stay; None outside of the layers.
    """

    def __init__(self, sizes: Sizes, selection: Selection, row: int | None) -> None:
        self.sizes = sizes
        self.indices: dict[str, torch.Tensor] = {HIDDEN: torch.tensor(selection.hidden)}
        if row is not None:
            groups = selection.kv_groups[row]
            self.indices[KV] = _of_groups(groups, sizes.head_dim)
            self.indices[QUERY] = _of_groups(groups, sizes.head_dim * sizes.queries_per_group)
            self.indices[FFN] = torch.tensor(selection.ffn[row])
            if selection.experts:
                self.indices[EXPERTS] = torch.tensor(selection.experts[row])

    def along(self, dim: str) -> torch.Tensor:
        """Indices that stay along a dimension, several axes joined by `+` included."""
        parts, start, lengths = [], 0, self.sizes.by_axis
        for axis in dim.split("+"):
            parts.append(self.indices[axis] + start)
            start += lengths[axis]
        return torch.cat(parts)

    def dropped(self, axis: str) -> torch.Tensor:
        """`[length of the axis]`, true for what goes."""
        mask = torch.ones(self.sizes.by_axis[axis], dtype=torch.bool)
        mask[self.indices[axis]] = False
        return mask

    def cut(self, weight: torch.Tensor, dims: Dims) -> torch.Tensor:
        """The part of a weight that stays."""
        for place, dim in enumerate(dims):
            if dim != WHOLE:
                weight = weight.index_select(place, self.along(dim).to(weight.device))
        return weight


def _of_groups(groups: Indices, width: int) -> torch.Tensor:
    starts = torch.tensor(groups)[:, None] * width
    return (starts + torch.arange(width)).flatten()


def dims_of(name: str, table: Mapping[str, Mapping[str, Dims]]) -> Dims | None:
    """Dimensions of the weight of a name such as `self_attn.q_proj.bias`; None if the table has no row for it."""
    module, _, parameter = name.rpartition(".")
    return table.get(module, {}).get(parameter)
