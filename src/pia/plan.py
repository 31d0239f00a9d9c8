"""How a call is decoded: what its model can verify there, what that costs, with which runner and which budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

from pia.config import JacobiConfig, LookaheadConfig
from pia.drafting.budget import BudgetPolicy, Calibrator, CostCurve
from pia.drafting.chain_budget import ChainBudgetPolicy
from pia.drafting.separate_budget import SeparateBudgetPolicy
from pia.drafting.window_policy import WindowPolicy, WindowWorth
from pia.generate_call import GenerateCall
from pia.models.capability import Capability, Mode
from pia.models.engine import Engine, eager_engine
from pia.models.exact import ExactRows, ExactRunner
from pia.models.exact_support import exact_sizes
from pia.models.own_prompt import OwnPromptRunner
from pia.models.positions import context_length
from pia.models.profile import (
    capability_of,
    engine_curve_of,
    engine_of,
    exact_curve_of,
    exact_sizes_of,
    recurrent_curve_of,
)
from pia.models.recurrent import RecurrentRunner
from pia.models.refill import RefillRunner
from pia.models.runner import Runner, StockRunner
from pia.models.static.graph_steps import StepsBusyError

_LEAST_STEP_S = 0.0025
"""Recycling does not pay where plain steps are shorter: looking through the logits and drafting from them costs some
0.1 ms of the host's time a step, and wins a few per cent of the tokens (docs/LOG.md)."""


@dataclass(frozen=True)
class Plan:
    """How a call will be decoded.

    Attributes:
        call: the prepared call.
        config: its options.
        capability: what the model can verify in this call.
        curve: what forwards cost, where that decides on sizes.
        call_reason: why this call, not the model, asks for plain decoding.
        engine: what runs the steps.
    """

    call: GenerateCall
    config: LookaheadConfig
    capability: Capability
    curve: CostCurve | None
    call_reason: str | None = None
    engine: Engine = field(default_factory=lambda: eager_engine("the model as it is"))

    @classmethod
    def of(cls, call: GenerateCall, config: LookaheadConfig) -> Plan:
        """Finds out what there is to know.

        Raises:
            UnsupportedOptionError: the options cannot be honoured for this model.
        """
        if config.exact:
            return cls(
                call, config, _exact_capability(call, config), _curve(config, partial(exact_curve_of, call.model))
            )
        capability = capability_of(call.model, self_check=config.self_check and config.budget != 0)
        if not capability.can_verify_chains:
            return cls(call, config, capability, None)
        reason = call.plain_reason(is_recurrent=capability.is_recurrent)
        if reason is not None:
            return cls(call, config, Capability(Mode.PLAIN, reason), None, call_reason=reason)
        if capability.is_recurrent:
            return cls(call, config, capability, _curve(config, partial(recurrent_curve_of, call.model)))
        engine, curve = _engine_and_curve(call, config, capability)
        return cls(call, config, capability, curve, engine=engine)

    @property
    def can_draft(self) -> bool:
        return self.capability.can_verify_chains and self.config.budget != 0

    @property
    def reason(self) -> str:
        """Why it is decoded so, for the statistics."""
        if not self.capability.can_verify_chains:
            return self.capability.reason
        budget = f"budget by measured cost: {self.curve!r}" if self.curve else f"budget fixed at {self.config.budget}"
        return f"{self.capability.reason}; {budget}{self._sources_reason}{self._window_reason}"

    @property
    def _sources_reason(self) -> str:
        return "; nothing is recycled: steps are too short for it" if self.sources != self.config.sources else ""

    @property
    def _window_reason(self) -> str:
        if not self.config.jacobi:
            return ""
        if self.jacobi is None:
            return "; no Jacobi window, which needs drafts and a model that verifies trees"
        how = "as far as it pays" if self.curve is not None else "at every step"
        return f"; Jacobi window of {self.jacobi.window_size} columns of {self.jacobi.ngram_size}-grams, {how}"

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """What drafts are made from: under the budget rule, only what the steps are long enough for."""
        wanted = self.config.sources
        is_short = self.curve is not None and self.curve.seconds[0] < _LEAST_STEP_S
        return tuple(name for name in wanted if name != "recycled") if is_short and "cache" in wanted else wanted

    @cached_property
    def jacobi(self) -> JacobiConfig | None:
        """The Jacobi window of this call's requests, if there is one: it is a tree, and lives in drafts."""
        wanted = self.config.jacobi
        if not (wanted and self.can_draft and self.capability.can_verify_trees):
            return None
        return wanted if isinstance(wanted, JacobiConfig) else JacobiConfig.for_model_size(_num_parameters(self.call))

    def new_window_policy(self, worth: WindowWorth) -> WindowPolicy | None:
        """How much of the window rides along, if there is one; learns from, and for, other calls of the model."""
        if self.jacobi is None:
            return None
        return WindowPolicy(
            self.jacobi,
            self.curve,
            max_tree=self._largest_tree,
            num_rows=self.call.num_rows,
            is_mixed=bool(self.sources),
            worth=worth,
        )

    @property
    def draftable_length(self) -> int | None:
        """Tokens of text that fit into the model's context."""
        length = context_length(self.call.model)
        return None if length is None else length - self.call.num_hidden

    def new_runner(self) -> Runner:
        """What runs the model for this call."""
        call, capability, chunk_size = self.call, self.capability, self.call.config.prefill_chunk_size
        if not capability.can_verify_chains:
            return StockRunner(call.model, call.config, call.model_kwargs, call.input_ids)
        if capability.is_recurrent:
            return RecurrentRunner(call.model, prefill_chunk_size=chunk_size)
        if self.config.exact:
            sizes = partial(exact_sizes_of, call.model)
            return ExactRows(lambda: ExactRunner(call.model, sizes, prefill_chunk_size=chunk_size))
        can_branch, max_length = capability.can_verify_trees, self._max_length
        if call.own_prompt is not None:
            return OwnPromptRunner(call.own_prompt, can_branch=can_branch, max_length=max_length)
        options = {"max_length": max_length, "prefill_chunk_size": chunk_size}
        if (refill_at := capability.positions.refill_at) is not None:
            return RefillRunner(call.model, refill_at=refill_at, can_branch=can_branch, **options)
        return self.engine.new_runner(call.model, num_rows=call.num_rows, **options)

    def new_policy(self, runner: Runner, calibrator: Calibrator) -> BudgetPolicy:
        """The budget of this call; an automatic one goes on from what the calibrator has seen."""
        new_policy: Callable[..., BudgetPolicy] = partial(BudgetPolicy, num_rows=self.call.num_rows)
        if isinstance(runner, RecurrentRunner):
            new_policy = partial(ChainBudgetPolicy, lambda: runner.num_pending)
        if isinstance(runner, ExactRows):
            new_policy = SeparateBudgetPolicy
        if self.config.budget == "auto" and self.curve is not None:
            return new_policy(self.curve, max_nodes=self.config.max_budget, calibrator=calibrator)
        fixed = 0 if self.config.budget == "auto" else self.config.budget
        return new_policy(None, max_nodes=fixed, fixed=fixed)

    @property
    def _max_length(self) -> int | None:
        """The most KV slots a row can need."""
        length = self.call.stopping_criteria.max_length
        fed = self._largest_tree + (self.jacobi.num_nodes if self.jacobi is not None else 0)
        return None if length is None else length + self.call.num_hidden + fed

    @property
    def _largest_tree(self) -> int:
        return self.config.max_budget if self.config.budget == "auto" else self.config.budget


def _engine_and_curve(
    call: GenerateCall, config: LookaheadConfig, capability: Capability
) -> tuple[Engine, CostCurve | None]:
    """What runs the steps of this call, ready for it, and what they cost."""
    engine = _engine(call, config, capability)
    try:
        curve = _curve(config, partial(engine_curve_of, call.model, engine))  # needs the engine, so before it is taken
        return engine.for_request(), curve
    except StepsBusyError as busy:
        engine = eager_engine(f"the model as it is: {busy}", can_branch=capability.can_verify_trees)
    return engine, _curve(config, partial(engine_curve_of, call.model, engine))


def _engine(call: GenerateCall, config: LookaheadConfig, capability: Capability) -> Engine:
    """What could run the steps of this call."""
    eager = partial(eager_engine, can_branch=capability.can_verify_trees)
    if call.num_rows > 1:
        return eager("the model as it is, for a batch")
    if call.own_prompt is not None or capability.positions.refill_at is not None:
        return eager("the model as it is: its text is more than tokens, keys and values")
    return engine_of(call.model, capability, config.engine)


def _num_parameters(call: GenerateCall) -> int:
    return sum(parameter.numel() for parameter in call.model.parameters())


def _curve(config: LookaheadConfig, measure: Callable[[], CostCurve]) -> CostCurve | None:
    return measure() if config.budget == "auto" else None


def _exact_capability(call: GenerateCall, config: LookaheadConfig) -> Capability:
    """What `exact=True` verifies, or the refusal. Drafts or none, the answer is the same: so must be the bits."""
    capability = capability_of(call.model, self_check=config.self_check)
    reason = call.plain_reason()
    if reason is None and call.own_prompt is not None:
        reason = "the prompt is more than token ids, and is fed in the model's own way"
    if reason is None and capability.positions.refill_at is not None:
        reason = capability.positions.reason
    sizes = exact_sizes(call.model, capability, reason)
    reason = f"exact: forwards of {', '.join(map(str, sizes))} tokens give the same bits"
    return Capability(Mode.CHAIN, reason, can_batch=True, positions=capability.positions)
