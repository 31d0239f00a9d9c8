"""Time for a token of plain decoding as a function of the shape, fitted to a few shapes that were timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pia.ipad.counts import Amount, GridShape, HasConfig
from pia.ipad.limits import is_legal
from pia.ipad.shape import Shape

_PROBED = ("num_layers", "num_kv_heads", "ffn_size", "hidden_size")


@dataclass(frozen=True)
class LatencyModel:
    """Seconds a token: a sum of what a forward, a layer, its attention, its FFN and the head each take.

    No part is negative, so a smaller model is never predicted to be slower.
    """

    forward: float
    """Whatever the shape."""
    layer: float
    """For each layer, whatever its widths: launching its operations."""
    attention: float
    """For each KV head times hidden channel of each layer."""
    ffn: float
    """For each neuron times hidden channel of each layer."""
    head: float
    """For each hidden channel of the model: the head is the largest matrix that grows with it alone."""

    def seconds(self, shape: Shape | GridShape) -> Amount:
        """Predicted time of one decode step."""
        terms = (self.forward, self.layer, self.attention, self.ffn, self.head)
        return sum(rate * term for rate, term in zip(terms, _terms(shape), strict=True))

    def to_json(self) -> dict[str, float]:
        """The five rates."""
        return asdict(self)

    @classmethod
    def fit(cls, seconds: Mapping[Shape, float]) -> LatencyModel:
        """Least squares over shapes that were timed, weighted by 1 / time; what would be negative is left out."""
        rows = np.array([_terms(shape) for shape in seconds], np.float64)
        times = np.array(list(seconds.values()), np.float64)
        rates = _non_negative(rows / times[:, None], np.ones(len(times)))
        return cls(*(float(rate) for rate in rates))


def probe_shapes(structure: HasConfig) -> list[Shape]:
    """Shapes to time, so that a fit can tell the parts: the whole, and each size halved, or as near as is legal."""
    whole = structure.shape
    return list(dict.fromkeys([whole, *(_halved(structure, name) for name in _PROBED)]))


def _halved(structure: HasConfig, name: str) -> Shape:
    """One size about half as large; the whole shape where it cannot shrink alone."""
    whole = structure.shape
    for size in range(max(1, getattr(whole, name) // 2), 0, -1):
        shape = replace(whole, **{name: size})
        if is_legal(structure, shape):
            return shape
    return whole


def _terms(shape: Shape | GridShape) -> tuple[Amount, ...]:
    layers, hidden = shape.num_layers, shape.hidden_size
    return (
        np.ones_like(layers) if isinstance(layers, np.ndarray) else 1.0,
        layers,
        layers * 1.0 * shape.num_kv_heads * hidden,
        layers * 1.0 * shape.ffn_size * hidden,
        hidden,
    )


def _non_negative(rows: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Least squares without negative coefficients: the most negative one is dropped until there is none."""
    scale = np.abs(rows).max(axis=0)
    used = [index for index in range(rows.shape[1]) if scale[index] > 0]
    while used:
        found, *_ = np.linalg.lstsq(rows[:, used] / scale[used], values, rcond=None)
        if found.min() >= 0:
            coefficients = np.zeros(rows.shape[1])
            coefficients[used] = found / scale[used]
            return coefficients
        used.pop(int(found.argmin()))
    return np.zeros(rows.shape[1])
