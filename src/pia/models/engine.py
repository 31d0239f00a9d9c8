"""What runs a model's steps: the model as it is, captured graphs of its forward, or programs compiled of it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pia.config import EngineName
from pia.drafting.budget import CostCurve
from pia.models.attention.choice import attention_backend_of, backends_on
from pia.models.attention.reference import TreeAttention
from pia.models.capability import Capability
from pia.models.costs import measure_costs, measure_stepped_costs, time_runners
from pia.models.placement import input_device
from pia.models.runner import SlabRunner
from pia.models.self_check import why_not_right
from pia.models.static.captured import GraphRunner
from pia.models.static.compiled import CompiledRunner, Programs
from pia.models.static.graph_steps import LEAST_SLOTS, SIZES, GraphSteps, Lease
from pia.models.static.graphs import CudaGraphs
from pia.models.static.programs import build_programs
from pia.models.static.store import files_of, may_have_programs
from pia.models.static.support import why_not_static
from pia.models.static.weights import PlacesWatch

logger = logging.getLogger("pia")

_TRIED_SIZES = (1, 16)
"""Tokens of the forwards by which engines are compared."""
_MEMORY_SHARE = 0.8
"""Part of the free memory that a copy of the weights may take."""


@dataclass(frozen=True)
class Engine:
    """What runs the steps of one request at a time.

    Attributes:
        name: "eager", "graph" or "compile".
        reason: why this one, for the user.
        new_runner: makes a runner for a request; takes the model and the options of `SlabRunner`. An engine is kept
            as long as its model, and must not keep that alive.
        measure: times forwards of the model.
        is_current: whether it still fits the model; its weights may be changed any time.
        take: reserves what only one request at a time can have.
    """

    name: str
    reason: str
    new_runner: Callable[..., SlabRunner]
    measure: Callable[[Any], CostCurve]
    is_current: Callable[[], bool] = lambda: True
    take: Callable[[], Lease] | None = None

    def for_request(self) -> Engine:
        """This engine, with what a request needs of it reserved.

        Raises:
            StepsBusyError: another request has it.
        """
        if self.take is None:
            return self
        lease = self.take()
        return replace(self, new_runner=partial(GraphRunner, lease=lease), take=None)


def eager_engine(reason: str, *, can_branch: bool = True) -> Engine:
    """The model as it is."""
    new_runner = partial(SlabRunner, can_branch=can_branch)
    return Engine("eager", reason, new_runner, partial(measure_costs, new_runner=new_runner))


def find_engine(model: Any, capability: Capability, wanted: EngineName) -> Engine:
    """The engine that is asked for, or with "auto" the fastest; the eager one, with the reason, where that cannot be.

    Args:
        model: in evaluation mode.
        capability: what it can verify.
        wanted: an engine, or "auto".
    """
    eager = partial(eager_engine, can_branch=capability.can_verify_trees)
    if wanted == "eager":
        return eager("as asked")
    reason = why_not_static(model, capability)
    if reason is not None:
        return eager(f"the model cannot be captured or compiled: {reason}")
    is_cuda = input_device(model).type == "cuda"
    if wanted == "graph" and not is_cuda:
        return eager(f"CUDA graphs need a CUDA device, and the model is on {input_device(model)}")
    try:
        other = _graph_engine(model, wanted) if is_cuda else _compiled_engine(model, wanted)
        if isinstance(other, str):
            return eager(other)
        wrong = why_not_right(model, partial(other.new_runner, model))
        other.for_request()  # says so if a step could not be captured, and the model stood in for it
        if wrong is not None:
            return eager(f"{other.name} steps were tried and not used: {wrong}")
        return other if wanted != "auto" else _faster(model, eager("the model as it is"), other)
    except Exception as error:  # compilers and captures refuse in any way they like; that is an answer too
        return eager(f"no {'graph' if is_cuda else 'compiled'} steps: {type(error).__name__}: {str(error)[:200]}")


def _graph_engine(model: Any, wanted: EngineName) -> Engine:
    """Captured steps; with "compile" of a forward that PyTorch's compiler has fused."""
    is_compiled = wanted == "compile"
    graphs = CudaGraphs(input_device(model), is_compiled=is_compiled)
    if is_compiled:  # its compiler makes the attention as well
        steps, reason = GraphSteps(model, graphs, compile_step=partial(torch.compile, dynamic=True)), "compiled forward"
    else:
        choice = attention_backend_of(model, LEAST_SLOTS, _TRIED_SIZES[-1])
        steps = GraphSteps(model, graphs, choose_attention=partial(_attention_for, weakref.ref(model)))
        reason = f"model's own forward, attention by {choice.name} ({choice.reason})"
    watch = PlacesWatch(model)
    return engine_of_steps(
        steps, "compile" if is_compiled else "graph", f"CUDA graphs of the {reason}", lambda: not watch.has_changed()
    )


def engine_of_steps(steps: GraphSteps, name: str, reason: str, is_current: Callable[[], bool] = lambda: True) -> Engine:
    """The engine that captured steps make."""

    def new_runner(model: Any, **options: Any) -> GraphRunner:
        return GraphRunner(model, steps.take(), **options)

    measure = partial(measure_stepped_costs, new_runner=new_runner, sizes=SIZES)
    return Engine(name, reason, new_runner, measure, is_current, steps.take)


def _attention_for(model: weakref.ref[Any], num_slots: int, size: int) -> TreeAttention | None:
    """What attends fastest over so many slots, by measurement; `None` is the model's own attention, with a mask."""
    target = model()
    backends, _ = backends_on(input_device(target))
    choice = attention_backend_of(target, num_slots, size, backends=backends)
    logger.info("PIA attends from %d tokens over %d slots by %s: %s", size, num_slots, choice.name, choice.reason)
    return backends.get(choice.name)


def _compiled_engine(model: Any, wanted: EngineName) -> Engine | str:
    """Programs for the CPU, from the disk; they are made first where that is asked for."""
    if wanted == "auto" and not may_have_programs(model):
        return "the model as it is; `pia compile MODEL` makes programs for it, once"
    files = files_of(model)
    if not files.are_there:
        if wanted == "auto":
            return "the model as it is; the programs on disk were made of other weights (`pia compile MODEL`)"
        build_programs(model, files)
    needed, free = files.size, free_memory()
    if free is not None and needed > _MEMORY_SHARE * free:
        return f"its programs hold {needed >> 20} MiB of weights of their own, and {free >> 20} MiB are free"
    programs = Programs.load(model, files)
    new_runner = partial(CompiledRunner, programs=programs)
    return Engine(
        "compile",
        "programs compiled for this CPU",
        new_runner,
        partial(measure_costs, new_runner=new_runner),
        is_current=lambda: not programs.weights.has_changed(),
    )


def _faster(model: Any, eager: Engine, other: Engine) -> Engine:
    """The one that is faster, by a short measurement, with the figures in its reason."""
    eager_s, other_s = time_runners(model, [eager.new_runner, other.new_runner], _TRIED_SIZES)
    figures = f"{_ms(other_s)} for {_ms(eager_s)} ms at {' and '.join(map(str, _TRIED_SIZES))} tokens"
    is_faster = sum(b / a for a, b in zip(eager_s, other_s, strict=True)) < len(_TRIED_SIZES)
    chosen = other if is_faster else eager
    reason = f"{other.reason}: {figures}" if is_faster else f"{other.reason} are not faster here: {figures}"
    return replace(chosen, reason=reason)


def _ms(seconds: Sequence[float]) -> str:
    return " and ".join(f"{1e3 * s:.1f}" for s in seconds)


def free_memory() -> int | None:
    """Bytes of memory that programs may still take, as Linux says; `None` elsewhere."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
