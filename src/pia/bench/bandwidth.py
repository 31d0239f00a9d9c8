"""Measures how fast a device reads memory: the roof under which a decode step runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

_LARGE = {"cpu": 512 << 20, "other": 1 << 30}
"""Bytes of a pass through memory: far more than any cache holds."""
_COLUMNS = 1024
_MIN_PASSES, _MAX_PASSES = 3, 30
_SECONDS = 0.5
"""For each operation, after its warm-up."""
_LAUNCHES = 4
"""Passes queued at once, so that a GPU is not timed on how fast it is told."""


@dataclass(frozen=True)
class Bandwidth:
    """The best rate at which a device was seen to move so many bytes."""

    bytes_per_s: float
    operation: str
    """What was the fastest: a sum, a maximum, a product with a vector, or a copy."""
    num_bytes: int
    """Bytes counted in each pass; a copy reads half of them and writes the other half."""


def measure_bandwidth(device: torch.device | str, num_bytes: int | None = None) -> Bandwidth:
    """Reads and copies float32 numbers through torch, with all its threads, and keeps the best pass of each way.

    Args:
        device: where.
        num_bytes: of a pass; by default many times what caches hold. A few megabytes stay in the caches, and their
            rate is what a small model can hope for.
    """
    device = torch.device(device)
    num_bytes = num_bytes or _LARGE.get(device.type, _LARGE["other"])
    rows = max(2, num_bytes // (4 * _COLUMNS) // 2 * 2)
    data = torch.ones(rows, _COLUMNS, device=device)  # written, since untouched pages would all be one page
    counted = data.numel() * data.element_size()
    rates = {name: counted / _seconds(pass_, device) for name, pass_ in _passes(data).items()}
    fastest = max(rates, key=lambda name: rates[name])
    return Bandwidth(rates[fastest], fastest, counted)


def _passes(data: torch.Tensor) -> Mapping[str, Callable[[], Any]]:
    """Ways to touch all of `[rows, columns]` once."""
    half = len(data) // 2
    vector = torch.ones(data.shape[1], device=data.device)
    return {
        "sum": data.sum,
        "maximum": data.amax,
        "product with a vector": lambda: torch.mv(data, vector),
        "copy": lambda: data[half:].copy_(data[:half]),
    }


def _seconds(pass_: Callable[[], Any], device: torch.device) -> float:
    """The best time of one pass."""
    launches = 1 if device.type == "cpu" else _LAUNCHES
    best = float("inf")
    _timed(pass_, device, launches)
    started = perf_counter()
    for number in range(_MAX_PASSES):
        best = min(best, _timed(pass_, device, launches))
        if number + 1 >= _MIN_PASSES and perf_counter() - started > _SECONDS:
            break
    return best


def _timed(pass_: Callable[[], Any], device: torch.device, launches: int) -> float:
    synchronize(device)
    started = perf_counter()
    for _ in range(launches):
        pass_()
    synchronize(device)
    return (perf_counter() - started) / launches


def synchronize(device: torch.device) -> None:
    """Waits for what a device has been given to do."""
    backend: Any = None if device.type == "cpu" else getattr(torch, device.type, None)
    if backend is not None and hasattr(backend, "synchronize"):
        backend.synchronize()
