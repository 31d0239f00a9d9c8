"""The processes that train together: one, or as many as `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

import torch

from pia.errors import ShrinkError

T = TypeVar("T")


class Processes:
    """What one process knows of the others.

    Gradients are added up once a step, over all micro-batches: then it does not matter how many of those each process
    has, and every process takes the same update.

    Args:
        device: where a process that is alone works; of several, each has the one that was assigned to it.

    Raises:
        ShrinkError: the package accelerate is missing.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._state: Any = _state()
        self.num = int(self._state.num_processes)
        self.device: torch.device = self._state.device if device is None or self.num > 1 else device
        self.rank = int(self._state.process_index)
        self.is_main = bool(self._state.is_main_process)

    def share(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """This process's part of the rows of a batch; none if there are fewer rows than processes."""
        return rows[self.rank :: self.num]

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces tensors by their sums over all processes, which hold as many of the same shapes."""
        if self.num == 1:
            return
        for group in _by_type(tensors):
            flat = torch.cat([tensor.flatten() for tensor in group])
            torch.distributed.all_reduce(flat)
            for tensor, total in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def from_main(self, value: T) -> T:
        """The value that the main process gives; all processes come to it."""
        if self.num == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.num > 1:
            self._state.wait_for_everyone()


def _state() -> Any:
    try:
        from accelerate import PartialState
    except ImportError:
        raise ShrinkError(
            "distillation needs the package accelerate: pip install 'pia[ipad]', or pip install accelerate"
        ) from None
    return PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"))


def _by_type(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())
