"""How long a GPU waits for the host between the forwards of a decoding, as its own clock tells."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from typing import Any

import torch

from pia.bench.forced import ReplayCase
from pia.lookahead import Lookahead
from pia.text import decode

_NUM_STEPS = 16
_SHORTEST_US = 10.0
"""Shorter gaps lie between any two kernels, and are the device's own."""


def waits_us(spans: Iterable[tuple[float, float]], shortest_us: float = _SHORTEST_US) -> float:
    """Sum of the gaps between spans of work, in microseconds.

    Args:
        spans: starts and ends, in any order; they may overlap.
        shortest_us: shorter gaps do not count.
    """
    total, last = 0.0, None
    for start, end in sorted(spans):
        if last is not None and start - last >= shortest_us:
            total += start - last
        last = end if last is None else max(last, end)
    return total


def device_waits_ms(case: ReplayCase, index: int, lookahead: Lookahead) -> float | None:
    """Milliseconds that the GPU waits a step, from the profiler's record of its kernels and copies; `None` on a CPU."""
    if case.model.device.type != "cuda":
        return None
    options: dict[str, Any] = {"max_new_tokens": case.max_new_tokens[index], "do_sample": False}
    with (
        case.forcing(index),
        closing(decode(case.model, case.prompts[index], lookahead=lookahead, **options)) as steps,
    ):
        for _ in islice(steps, 8):  # the prefill, and what is set up at first use
            pass
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            num_steps = sum(1 for _ in islice(steps, _NUM_STEPS))
            torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return round(waits_us(spans) / num_steps / 1e3, 4) if spans and num_steps else None
