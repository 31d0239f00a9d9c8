"""A model's steps, each size captured once and replayed for every request on one slab that stays where it is.

Sizes are few, so a tree is filled up to the next of them with tokens that nobody sees. Attention runs over one of a few
numbers of slots, so a graph serves texts of any length up to that.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pia.drafting.tree import DraftTree
from pia.models.attention.plug_in import TreeState, tree_attention
from pia.models.attention.reference import TreeAttention
from pia.models.kv import SlabCache
from pia.models.masks import TreeMasks
from pia.models.placement import input_device
from pia.models.runner import num_layers
from pia.models.static.graphs import Graphs
from pia.models.static.inputs import DeviceRow, StepInputs
from pia.models.static.step import StepModule, states_of

SIZES = (1, 4, 8, 16, 32, 64, 128)
"""Tokens fed by a captured step."""
LEAST_SLOTS = 1024
_FINER_FROM = 4096
"""From here on a power of two would be too coarse."""


@dataclass(frozen=True)
class Captured:
    """One size's step over one number of slots: how to run it, and where what it reads and writes lies."""

    replay: Callable[[], Any]
    ids: torch.Tensor
    """`[1, size]`."""
    logits: torch.Tensor
    """`[1, size, vocab]`."""
    positions: torch.Tensor
    """`[1, size]`."""


@dataclass(frozen=True)
class _Move:
    """What puts the kept tokens of one size's step together."""

    sources: DeviceRow
    replay: Callable[[], Any]


class GraphSteps:
    """Captured steps of one model; one request at a time may use them.

    Args:
        model: a model of which `why_not_static` says nothing.
        graphs: what captures.
        choose_attention: for a number of slots and a size, what attends over trees without a mask, or `None` for masks.
        compile_step: what makes the step's module faster before it is captured, such as `torch.compile`; what it makes
            is kept, and keeps the model alive.
    """

    def __init__(
        self,
        model: Any,
        graphs: Graphs,
        choose_attention: Callable[[int, int], TreeAttention | None] = lambda num_slots, size: None,
        compile_step: Callable[[torch.nn.Module], Callable[..., torch.Tensor]] | None = None,
    ) -> None:
        self._model = weakref.ref(model)
        self._graphs = graphs
        self._choose_attention = choose_attention
        self._compile_step = compile_step
        self._masks = TreeMasks(model)
        self._device = input_device(model)
        self._inputs: dict[int, StepInputs] = {}
        self._steps: dict[tuple[int, int], Captured] = {}
        self._moves: dict[int, _Move] = {}
        self._storage: tuple[Any, ...] = ()
        self._compiled: Callable[..., torch.Tensor] | None = None
        self._lease: weakref.ref[Lease] | None = None
        self._lock = threading.Lock()
        self.failure: str | None = None
        """Why the steps are not to be used any more."""
        self.cache = SlabCache(num_layers(model.config), is_reused=True)

    def take(self) -> Lease:
        """Reserves the slab for one request.

        Raises:
            StepsBusyError: another has it, or they have failed.
        """
        if self.failure is not None:
            raise StepsBusyError(f"captured steps failed ({self.failure})")
        with self._lock:
            current = self._lease() if self._lease is not None else None
            if current is not None and not current.is_released:
                raise StepsBusyError("the captured steps serve another request")
            lease = Lease(self)
            self._lease = weakref.ref(lease)
        self.cache.clear()
        return lease

    def run(self, token_id: int, tree: DraftTree, size: int) -> Captured:
        """One step of this size behind what the slab has kept; what it writes is good until the next one."""
        (start,) = self.cache.lengths
        num_slots = _slots_for(start + size)
        self.cache.reserve(num_slots)
        self._drop_if_moved()
        self._inputs_of(size).load(token_id, tree, start)
        if (size, num_slots) not in self._steps:
            attend = self._choose_attention(num_slots, size)  # measures, with captures of its own
            replay, written = self._graphs.capture(lambda: self._step(size, num_slots, attend))
            self._steps[size, num_slots] = Captured(replay, self._inputs_of(size).ids, *written)
        step = self._steps[size, num_slots]
        step.replay()
        return step

    def keep(self, nodes: Sequence[int], size: int) -> None:
        """Moves what the last step, of this size, fed in these places (ascending) together, and counts it as kept."""
        if any(n != node for n, node in enumerate(nodes)):
            move = self._move_of(size)
            move.sources.load([*nodes, *range(len(nodes), size)])
            move.replay()
        self.cache.set_lengths([self.cache.lengths[0] + len(nodes)])

    def _step(self, size: int, num_slots: int, attend: TreeAttention | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What is captured: the model's forward, with what says who sees whom; returns logits and positions."""
        inputs = self._inputs_of(size)
        slots, positions = inputs.start + torch.arange(size, device=self._device), inputs.start + inputs.depths
        if attend is None:
            masks = self._masks.on_device(inputs.start, inputs.depths, inputs.visible(), num_slots)
            return self._module()(inputs.ids, positions, masks, slots, states_of(self.cache)), positions
        state = TreeState(inputs.start.to(torch.int32), inputs.bits, inputs.depths, attend)
        with tree_attention(self._model(), state):
            return self._module()(inputs.ids, positions, None, slots, states_of(self.cache), num_slots), positions

    def _module(self) -> Callable[..., torch.Tensor]:
        """The step as a function of tensors."""
        if self._compiled is not None:
            return self._compiled
        module = StepModule(self._model())
        if self._compile_step is None:
            return module
        self._compiled = self._compile_step(module)
        return self._compiled

    def _move(self, size: int, sources: torch.Tensor) -> None:
        """What is captured: of the last step's slots, copies those in places `sources` to its first ones, together."""
        start = self._inputs_of(size).start
        targets = start + torch.arange(size, device=self._device)
        for block in self._blocks():
            block.index_copy_(3, targets, block.index_select(3, start + sources))

    def _move_of(self, size: int) -> _Move:
        if size not in self._moves:
            sources = DeviceRow(size, self._device)
            sources.load(range(size))  # while it is captured it runs, and must change nothing
            replay, _ = self._graphs.capture(lambda: self._move(size, sources.values))
            self._moves[size] = _Move(sources, replay)
        return self._moves[size]

    def _inputs_of(self, size: int) -> StepInputs:
        if size not in self._inputs:
            self._inputs[size] = StepInputs(size, self._device)
        return self._inputs[size]

    def _blocks(self) -> list[torch.Tensor]:
        return [block.data for block in self.cache.blocks]

    def _drop_if_moved(self) -> None:
        """Captured steps know where the slab lay; when it has grown they are captured anew."""
        storage = tuple((block.data_ptr(), block.shape) for block in self._blocks())
        if storage != self._storage:
            self._storage = storage
            self._steps.clear()
            self._moves.clear()
            self._graphs.forget()


class Lease:
    """One request's right to a model's captured steps and their slab, until it is released or nobody holds it.

    Args:
        steps: what it is the right to.
    """

    def __init__(self, steps: GraphSteps) -> None:
        self.steps = steps
        self.is_released = False

    def release(self) -> None:
        """Gives the steps free for another request. Idempotent."""
        self.is_released = True


class StepsBusyError(RuntimeError):
    """The captured steps are not to be had now."""


def _slots_for(length: int) -> int:
    """The slots a step attends over: few numbers, so that few graphs serve all lengths, and a quarter more at most."""
    power = max(LEAST_SLOTS, 1 << (length - 1).bit_length())
    part = power // 8 if power > _FINER_FROM else power
    return -(-length // part) * part
