"""Parameters of a model as a function of its shape, exact, without building each one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from pia.errors import ShrinkError
from pia.ipad.shape import Shape

WIDTHS = ("num_kv_heads", "ffn_size", "hidden_size", "num_experts")
Amount = Any
"""A number, or an array of them, where a formula takes both."""


class HasConfig(Protocol):
    """What is asked of a structure map here."""

    @property
    def shape(self) -> Shape: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def queries_per_group(self) -> int: ...

    @property
    def ties_hidden_to_heads(self) -> bool: ...

    def layers(self, model: Any) -> Any: ...

    def config_for(self, shape: Shape, layers: Sequence[int] | None = None) -> Any: ...

    def check(self, shape: Shape) -> None: ...


def meta_model(structure: HasConfig, shape: Shape) -> Any:
    """A model of a shape without weights."""
    config = structure.config_for(shape, layers=range(shape.num_layers))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@dataclass(frozen=True)
class Tensor:
    """Sizes of a parameter: each a linear function of the widths."""

    part: str
    """`layer` (one of them), `embedding` (with positions and an untied head) or `rest`."""
    is_expert: bool
    sizes: np.ndarray[Any, Any]
    """`[dims]` at the base shape."""
    slopes: np.ndarray[Any, Any]
    """`[dims, widths]`: growth of each size with a width."""

    def count(self, steps: Sequence[Amount]) -> Amount:
        """Numbers in the tensor where each width differs from the base by some steps."""
        product: Amount = 1.0
        for size, slopes in zip(self.sizes, self.slopes, strict=True):
            product = product * (size + sum(slope * step for slope, step in zip(slopes, steps, strict=True) if slope))
        return product


class ParameterCounter:
    """Counts the parameters of any shape of a model.

    Each dimension of each tensor is linear in the widths, so a few models of one layer on the meta device tell them
    all; layers have one shape. What is counted is what a saved checkpoint holds: a tied head once.

    Args:
        structure: the model's map.
    """

    def __init__(self, structure: HasConfig) -> None:
        self.base = structure.shape
        self._structure = structure
        self._tensors = self._measure()

    def total(self, shape: Shape | GridShape) -> Amount:
        """All parameters."""
        return self.non_embedding(shape) + self._sum("embedding", shape)

    def embedding(self, shape: Shape | GridShape) -> Amount:
        """Token and position embeddings, and a head that is not tied to them."""
        return self._sum("embedding", shape)

    def non_embedding(self, shape: Shape | GridShape) -> Amount:
        """What is neither embedding nor head."""
        return shape.num_layers * self._sum("layer", shape) + self._sum("rest", shape)

    def layer_matrices(self, shape: Shape | GridShape, experts_share: float = 1.0) -> tuple[Amount, Amount]:
        """Numbers in a layer's matrices: those that depend on the FFN (as far as a token meets them), and others."""
        ffn: Amount = 0.0
        rest: Amount = 0.0
        for tensor in self._tensors:
            if tensor.part != "layer" or len(tensor.sizes) < 2:
                continue
            count = tensor.count(self._steps(shape)) * (experts_share if tensor.is_expert else 1.0)
            is_ffn = bool(tensor.slopes[:, WIDTHS.index("ffn_size")].any())
            ffn, rest = (ffn + count, rest) if is_ffn else (ffn, rest + count)
        return ffn, rest

    def _sum(self, part: str, shape: Shape | GridShape) -> Amount:
        steps = self._steps(shape)
        return sum(tensor.count(steps) for tensor in self._tensors if tensor.part == part)

    def _steps(self, shape: Shape | GridShape) -> list[Amount]:
        steps = [getattr(shape, width) - getattr(self.base, width) for width in WIDTHS]
        if self._structure.ties_hidden_to_heads:  # hidden follows from the heads, and carries their slopes
            steps[WIDTHS.index("num_kv_heads")] = 0
        return steps

    def _measure(self) -> list[Tensor]:
        base = self._sizes_at(self.base)
        probes = {index: self._probe(width) for index, width in enumerate(WIDTHS)}
        slopes = {name: np.zeros((len(sizes), len(WIDTHS))) for name, (_, sizes) in base.items()}
        for index, probe in probes.items():
            if probe is None:
                continue
            step = getattr(probe, WIDTHS[index]) - getattr(self.base, WIDTHS[index])
            for name, (_, sizes) in self._sizes_at(probe).items():
                slopes[name][:, index] = (np.array(sizes) - np.array(base[name][1])) / step
        expert = WIDTHS.index("num_experts")
        return [
            Tensor(part, _is_expert(name, sizes, slopes[name][:, expert]),
                   np.array(sizes, np.float64), slopes[name])
            for name, (part, sizes) in base.items()
        ]  # fmt: skip

    def _probe(self, width: str) -> Shape | None:
        """A legal shape with a smaller width; none where it cannot be any smaller."""
        ties = self._structure.ties_hidden_to_heads
        size = getattr(self.base, width)
        if ties and width == "num_kv_heads":
            return None
        for smaller in range(size - 1, 0, -1):
            probe = replace(self.base, **{width: smaller})
            if ties and width == "hidden_size":
                group = self._structure.head_dim * self._structure.queries_per_group
                if smaller % group:
                    continue
                probe = replace(probe, num_kv_heads=smaller // group)
            if self._is_legal(probe):
                return probe
        return None

    def _is_legal(self, shape: Shape) -> bool:
        try:
            self._structure.check(shape)
        except ShrinkError:
            return False
        return True

    def _sizes_at(self, shape: Shape) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Part and sizes of each parameter of a model of one layer."""
        model = meta_model(self._structure, replace(shape, num_layers=1))
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        head = model.get_output_embeddings()
        if head is not None:
            embeddings |= {id(parameter) for parameter in head.parameters()}
        inner = {id(parameter) for parameter in self._structure.layers(model)[0].parameters()}

        def part(parameter: torch.Tensor) -> str:
            return "layer" if id(parameter) in inner else "embedding" if id(parameter) in embeddings else "rest"

        return {name: (part(values), tuple(values.shape)) for name, values in model.named_parameters()}


@dataclass(frozen=True)
class GridShape:
    """Shapes as arrays of one form, to count many of them at once."""

    num_layers: Amount
    num_kv_heads: Amount
    ffn_size: Amount
    hidden_size: Amount
    num_experts: Amount

    def at(self, index: int) -> Shape:
        """One of them."""
        return Shape(**{field.name: int(getattr(self, field.name)[index]) for field in fields(self)})


def _is_expert(name: str, sizes: Sequence[int], slopes: np.ndarray[Any, Any]) -> bool:
    """Whether a tensor belongs to an expert: one of a list, or all of them in one tensor; a router is none."""
    return ".experts." in name and (len(sizes) == 2 or bool(slopes.any()))
