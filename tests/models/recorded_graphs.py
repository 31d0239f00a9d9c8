"""What a CUDA graph does, without CUDA: operations are recorded with their tensors and done again with the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pia.models.static.graphs import Unseeing


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output


class RecordedGraphs:
    """Replays by calling every operation with the tensors of the recording, and writing into its very outputs.

    As in a CUDA graph, whatever Python decided while recording stays as it was.
    """

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0
        self.num_forgotten = 0

    def forget(self) -> None:
        self.num_forgotten += 1

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        self.num_captures += 1
        with Unseeing():
            function()
        function()
        with _Recorder() as recorder:
            output = function()

        def replay() -> None:
            self.num_replays += 1
            for func, args, kwargs, recorded in recorder.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay, output
