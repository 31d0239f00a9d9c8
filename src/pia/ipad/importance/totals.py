"""Sums over a calibration set, in float64, so that neither its order nor its size costs digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pia.ipad.shape import Shape


class Totals:
    """A float64 sum for every unit.

    Args:
        shape: of the model.
        device: where the sums are kept, that of the model.
    """

    def __init__(self, shape: Shape, device: torch.device | str) -> None:
        def zeros(*sizes: int) -> torch.Tensor:
            return torch.zeros(*sizes, dtype=torch.float64, device=device)

        self._sums = {
            "kv_groups": zeros(shape.num_layers, shape.num_kv_heads),
            "ffn": zeros(shape.num_layers, shape.ffn_size),
            "hidden": zeros(1, shape.hidden_size),
        }
        if shape.num_experts:
            self._sums["experts"] = zeros(shape.num_layers, shape.num_experts)

    def add(self, kind: str, layer: int, values: torch.Tensor) -> None:
        """Adds `[units]` to the sums of a kind in a layer (0 for hidden channels, which all layers share)."""
        self._sums[kind][layer] += values.to(self._sums[kind])

    def divided(self, by: float) -> dict[str, np.ndarray[Any, Any]]:
        """The sums over a count, by kind: `[layers, units]`, and `[hidden]`."""
        arrays = {kind: (values / by).cpu().numpy() for kind, values in self._sums.items()}
        return {**arrays, "hidden": arrays["hidden"][0]}
