"""CUDA graphs: what a step launches is recorded once and launched again as a whole, by a single call of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

_Output = TypeVar("_Output")

_WARM_UPS = 2
"""Runs before a capture: libraries make their handles and workspaces in the first, which a capture must not see."""


class Graphs(Protocol):
    """Something that records what a function does to tensors, so that it can be done again."""

    def capture(self, function: Callable[[], _Output]) -> tuple[Callable[[], Any], _Output]:
        """Records a function that reads and writes the same tensors each time.

        Returns:
            what does it again, and the output, whose tensors are written anew each time.
        """
        ...


class CudaGraphs:
    """CUDA's own graphs. All share their memory: what one leaves is good until another runs.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], _Output]) -> tuple[Callable[[], Any], _Output]:
        """Runs the function a few times, then records it. Nothing of a recording is executed until it is replayed."""
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = function()
        return graph.replay, output
