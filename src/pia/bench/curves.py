"""Cost curves c(q) to model speed-up with: built in, or measured by PIA on a machine of yours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pia.drafting.budget import CostCurve
from pia.errors import UnsupportedOptionError

BUILT_IN: Mapping[str, Mapping[int, float]] = {
    # An 8B model in bf16 on an H100: a forward reads 16 GB of weights whatever q is (5 ms at 3.35 TB/s), and arithmetic
    # takes as long only from q = 300 on; what rises before that is attention and kernels that fit less well.
    "flat-gpu": {1: 1.0, 4: 1.0, 8: 1.01, 16: 1.02, 32: 1.03, 64: 1.05, 128: 1.15, 256: 1.4},
    # Measured: Llama of 50 M parameters in bf16 on two cores.
    "cpu": {1: 1.0, 4: 0.97, 8: 1.06, 16: 1.25, 32: 1.69, 64: 2.5},
}
"""Relative cost of a forward by the number of tokens it is fed."""


def load_curve(name: str) -> tuple[str, CostCurve]:
    """A built-in curve, or one from a JSON file.

    The file holds `{"sizes": [1, ...], "seconds": [...]}`, or is what `pia env --model MODEL
    --json` prints (`forward_ms`).

    Returns:
        the name to show, and the curve.

    Raises:
        UnsupportedOptionError: there is no such curve, or the file holds none.
        OSError: the file cannot be read.
    """
    if name in BUILT_IN:
        points = BUILT_IN[name]
        return name, CostCurve(list(points), list(points.values()))
    path = Path(name)
    if not path.exists() and path.suffix != ".json":
        known = ", ".join(BUILT_IN)
        raise UnsupportedOptionError(f"unknown cost curve {name!r}; choose from {known}, or give a JSON file")
    try:
        sizes, costs = _points(json.loads(path.read_bytes()))
        return path.stem, CostCurve(sizes, costs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsupportedOptionError(
            f'{name} holds no cost curve ({error}); it needs {{"sizes": [1, ...], "seconds": [...]}}, '
            "or what `pia env --model MODEL --json` prints"
        ) from error


def _points(fields: Any) -> tuple[list[int], list[float]]:
    if "forward_ms" in fields:
        fields = {"sizes": list(fields["forward_ms"]), "seconds": list(fields["forward_ms"].values())}
    sizes, costs = [int(size) for size in fields["sizes"]], [float(cost) for cost in fields["seconds"]]
    if not all(0 < cost < float("inf") for cost in costs):
        raise ValueError("costs must be positive")
    return sizes, costs
