"""What is known of each model after its first use: what it can verify, and what a forward costs."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from pia.config import EngineName
from pia.drafting.budget import CostCurve
from pia.models.attention.plug_in import own_implementation
from pia.models.capability import Capability, Mode, declared_capability
from pia.models.costs import measure_costs, measure_exact_costs
from pia.models.engine import Engine, eager_engine, find_engine
from pia.models.evaluating import evaluating
from pia.models.exact_check import interchangeable_sizes
from pia.models.exact_sense import distance_from_text
from pia.models.inputs_probe import passing_reason
from pia.models.placement import compute_dtype, input_device
from pia.models.recurrent import RecurrentRunner
from pia.models.rows_probe import weight_kinds
from pia.models.self_check import proved_capability
from pia.models.static.support import why_not_now

_Answer = TypeVar("_Answer")

logger = logging.getLogger("pia")


class _Facts:
    """What is known of one model; whoever finds more out has it for himself meanwhile."""

    def __init__(self) -> None:
        self.answers: dict[tuple[Any, ...], Any] = {}
        self.lock = threading.RLock()


# Facts about models, not state of PIA's: found out once for all who use a model, and gone with it.
_known: weakref.WeakKeyDictionary[Any, _Facts] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def capability_of(model: Any, *, self_check: bool) -> Capability:
    """What a model can verify: as it declares, and with `self_check` as it proves. Found out at first use."""
    passing = passing_reason(model)
    if passing is not None:
        return _remembered(model, ("passing", passing), lambda: _warned(model, Capability(Mode.PLAIN, passing)))
    return _remembered(model, ("capability", self_check), lambda: _find_capability(model, self_check))


def engine_of(model: Any, capability: Capability, wanted: EngineName) -> Engine:
    """What runs a model's steps, found out at first use and again when its weights have changed."""
    reason = None if wanted == "eager" else why_not_now(model)
    if reason is not None:
        return eager_engine(f"the model as it is: {reason}", can_branch=capability.can_verify_trees)
    _forget_old_engines(model)
    question = ("engine", wanted, capability, torch.get_num_threads())
    return _remembered(model, question, lambda: _find_engine(model, capability, wanted))


def _forget_old_engines(model: Any) -> None:
    """Drops engines made of weights that the model no longer has, with all the memory they hold."""
    facts = _facts_of(model)
    with facts.lock:
        for key, answer in list(facts.answers.items()):
            if isinstance(answer, Engine) and not answer.is_current():
                del facts.answers[key]


def engine_curve_of(model: Any, engine: Engine) -> CostCurve:
    """What forwards of an engine cost, measured at first use."""

    def measure() -> CostCurve:
        with evaluating(model):
            return engine.measure(model)

    return _remembered(model, ("engine curve", engine.name, torch.get_num_threads()), measure)


def curve_of(model: Any, capability: Capability, wanted: EngineName = "eager") -> CostCurve:
    """What forwards of a model that verifies at least chains cost, by the engine that a single request would get."""
    if capability.is_recurrent:
        return recurrent_curve_of(model)
    return engine_curve_of(model, engine_of(model, capability, wanted))


def recurrent_curve_of(model: Any) -> CostCurve:
    """What chains of a recurrent model cost, each with a snapshot of its state, measured at first use."""

    def measure() -> CostCurve:
        with evaluating(model):
            return measure_costs(model, RecurrentRunner)

    return _remembered(model, ("recurrent curve",), measure)


def exact_sizes_of(model: Any, bucket: int) -> tuple[int, ...]:
    """Sizes of forwards that give the same bits for the positions of a bucket, found by trial at first use."""

    def find() -> tuple[int, ...]:
        with evaluating(model):
            return interchangeable_sizes(model, bucket)

    return _remembered(model, ("exact sizes", bucket, torch.get_num_threads()), find)


def exact_error_of(model: Any) -> tuple[float, float]:
    """How far exact decoding is from a forward without a cache, and how far ordinary decoding is, found by trial."""

    def find() -> tuple[float, float]:
        with evaluating(model):
            return distance_from_text(model)

    return _remembered(model, ("exact error", torch.get_num_threads()), find)


def exact_curve_of(model: Any) -> CostCurve:
    """What forwards of exact decoding cost, measured at first use."""

    def measure() -> CostCurve:
        with evaluating(model):
            return measure_exact_costs(model, exact_sizes_of(model, 0))

    return _remembered(model, ("exact curve", torch.get_num_threads()), measure)


def _remembered(model: Any, question: tuple[Any, ...], find_out: Callable[[], _Answer]) -> _Answer:
    """The answer for this model as it is now: its dtype, device, attention and weights may be changed any time."""
    implementation = own_implementation(model.config)
    key = (*question, compute_dtype(model), input_device(model), implementation, weight_kinds(model))
    facts = _facts_of(model)
    with facts.lock:
        if key not in facts.answers:
            facts.answers[key] = find_out()
        answer: _Answer = facts.answers[key]
        return answer


def _facts_of(model: Any) -> _Facts:
    with _lock:
        return _known.setdefault(model, _Facts())


def _find_capability(model: Any, self_check: bool) -> Capability:
    capability = declared_capability(model)
    if self_check and capability.can_verify_chains:
        with evaluating(model):
            capability = proved_capability(model, capability)
    return _warned(model, capability)


def _warned(model: Any, capability: Capability) -> Capability:
    if capability.mode != Mode.TREE:
        logger.warning("PIA decodes %s in %s mode: %s", type(model).__name__, capability.mode.label, capability.reason)
    return capability


def _find_engine(model: Any, capability: Capability, wanted: EngineName) -> Engine:
    with evaluating(model):
        engine = find_engine(model, capability, wanted)
    if wanted not in ("auto", engine.name):
        logger.warning("PIA runs %s with the engine %r: %s", type(model).__name__, engine.name, engine.reason)
    return engine
