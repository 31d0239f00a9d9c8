"""Peak memory of a piece of work: on CUDA as torch counts it, elsewhere the growth of the process."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

_INTERVAL_S = 0.002


class PeakMemory:
    """Measures the most memory that was in use beyond what was in use before; a context.

    On CUDA it is `torch.cuda.max_memory_allocated`. On Linux it is the process's own high-water mark, which is set back
    first; where that is forbidden, resident memory is looked at every two milliseconds; systems without /proc do not
    say. What the allocator keeps for itself from earlier work is given back beforehand, as far as it lets itself be
    asked, so that it hides no growth.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self.num_bytes: int | None = None
        """The growth; `None` where it cannot be measured."""
        self.method = "not measured on this system"
        self._before = 0
        self._sampler: _Sampler | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._device.type == "cuda":
            self.method = "torch.cuda.max_memory_allocated"
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        _return_free_memory()
        self._before = resident_bytes() or 0
        if _reset_high_water_mark():
            self.method = "high-water mark of resident memory"
        elif self._before:
            self.method = "resident memory, sampled"
            self._sampler = _Sampler()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = self._peak()
        self.num_bytes = None if peak is None else max(0, peak - self._before)

    def _peak(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _status_bytes("VmHWM") if self._sampler is None else self._sampler.stop()


class _Sampler:
    """Looks at resident memory now and then, in a thread of its own."""

    def __init__(self) -> None:
        self._peak = 0
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._is_done.set()
        self._thread.join()
        return max(self._peak, resident_bytes() or 0)

    def _watch(self) -> None:
        while not self._is_done.wait(_INTERVAL_S):
            self._peak = max(self._peak, resident_bytes() or 0)


def resident_bytes() -> int | None:
    """Memory of this process that lies in RAM; `None` where the system does not say."""
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return None


def _reset_high_water_mark() -> bool:
    """Sets the process's peak back to what it uses now (Linux); says whether it could."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _status_bytes("VmHWM") is not None
    return False


def _return_free_memory() -> None:
    """Asks the C library to give back what is free (glibc)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
