"""How much each unit of a model matters, and which units stay for a given shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pia.ipad.selection import Indices, Selection
from pia.ipad.shape import Shape


@dataclass(frozen=True)
class Scores:
    """Importance of units, float64; more is more important. Only units of one kind compare with each other."""

    layers: np.ndarray
    """`[layers]`."""
    kv_groups: np.ndarray
    """`[layers, KV heads]`."""
    ffn: np.ndarray
    """`[layers, neurons]`."""
    hidden: np.ndarray
    """`[hidden]`."""
    experts: np.ndarray | None = None
    """`[layers, experts]`; none for dense models."""

    def select(self, shape: Shape) -> Selection:
        """The units that stay: in every layer the most important ones; of equals the first."""
        layers = _best(self.layers, shape.num_layers)
        experts = _best_rows(self.experts, layers, shape.num_experts) if self.experts is not None else ()
        return Selection(
            layers,
            _best_rows(self.kv_groups, layers, shape.num_kv_heads),
            _best_rows(self.ffn, layers, shape.ffn_size),
            _best(self.hidden, shape.hidden_size),
            experts,
        )


def _best(scores: np.ndarray, num: int) -> Indices:
    chosen = np.argsort(-scores, kind="stable")[:num]
    return tuple(int(i) for i in np.sort(chosen))


def _best_rows(scores: np.ndarray, layers: Sequence[int], num: int) -> tuple[Indices, ...]:
    return tuple(_best(scores[layer], num) for layer in layers)
