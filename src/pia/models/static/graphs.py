"""CUDA graphs: what a step launches is recorded once and launched again as a whole, by a single call of the host."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_Output = TypeVar("_Output")

_LOOKS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "aten.equal.")
"""Parts of the names of operations that look at values on the host, or whose output's size depends on values."""
_capturing = threading.Lock()
"""One capture at a time in a process: PyTorch allows no more, and another's preparations would disturb it."""


class LookError(RuntimeError):
    """A forward looks at values, which a captured one cannot."""


class Unseeing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, looking at values is an error, in this thread.

    A capture that looks fails as well, but leaves PyTorch's allocator and random numbers in disorder.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(look in name for look in _LOOKS):
            raise LookError(f"{name} looks at values, which a CUDA graph cannot")
        return func(*args, **(kwargs or {}))


class Graphs(Protocol):
    """Something that records what a function does to tensors, so that it can be done again."""

    def capture(self, function: Callable[[], _Output]) -> tuple[Callable[[], Any], _Output]:
        """Records a function that reads and writes the same tensors each time.

        Returns:
            what does it again, and the output, whose tensors are written anew each time.

        Raises:
            LookError: the function looks at values.
        """
        ...

    def forget(self) -> None:
        """Told that nothing recorded so far is used any more."""
        ...


class CudaGraphs:
    """CUDA's own graphs. All share their memory: what one leaves is good until another runs.

    Args:
        device: of the tensors.
        is_compiled: the functions are compiled; PyTorch's compiler has looked through them, and steps aside where a
            dispatch mode is entered.
    """

    def __init__(self, device: torch.device, *, is_compiled: bool = False) -> None:
        self._device = device
        self._is_compiled = is_compiled
        with torch.cuda.device(device):
            # Its own: libraries keep a workspace for each stream, and a graph that is dropped takes its stream's along.
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], _Output]) -> tuple[Callable[[], Any], _Output]:
        """Runs the function twice, so that libraries and kernels are ready, then records it without executing it."""
        with _capturing, torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._run_unseeing(function)
                function()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile: "thread_local" lets them.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = function()
        return graph.replay, output

    def forget(self) -> None:
        """Takes new memory for what comes: a pool whose graphs are all gone is not to be had again."""
        self._pool = torch.cuda.graph_pool_handle()

    def _run_unseeing(self, function: Callable[[], Any]) -> None:
        if self._is_compiled:
            function()
            return
        with Unseeing():  # type: ignore[no-untyped-call]
            function()
