"""Keeps a training run from waiting for cores that other programs use."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch


class ThreadBalancer:
    """Gives torch as many threads as there are cores free for this process.

    A parallel region is as slow as its slowest thread: two threads on one and a half cores are slower than one. Now
    and then all threads are tried, since a process of high priority gets cores that are not idle.
    """

    def __init__(self, max_threads: int, try_every: int = 10) -> None:
        self.max_threads = max_threads
        self.try_every = try_every
        self.num_updates = 0
        self.seen = self._clocks()

    def update(self) -> None:
        """Sets the number of threads from what was used and what lay idle since the last call."""
        now = self._clocks()
        wall, used, idle = (new - old for new, old in zip(now, self.seen, strict=True))
        self.seen = now
        free = math.floor((used + idle) / max(wall, 1e-6) + 0.3)
        self.num_updates += 1
        if self.num_updates % self.try_every == 0:
            free = self.max_threads
        torch.set_num_threads(min(max(free, 1), self.max_threads))

    @staticmethod
    def _clocks() -> tuple[float, float, float]:
        """Seconds: wall clock, processor time of this process, idle time of all cores together."""
        return time.perf_counter(), time.process_time(), _idle_seconds()


def _idle_seconds() -> float:
    uptime = Path("/proc/uptime")
    return float(uptime.read_text().split()[1]) if uptime.exists() else 0.0
