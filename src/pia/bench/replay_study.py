"""A replay study: every trace through every drafter at every budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pia.bench.drafters import Kind
from pia.bench.drafters.protocol import Drafter
from pia.bench.replay import NoProbabilitiesError, fixed_budget, play, warm_up
from pia.bench.replay_result import ReplayResult
from pia.bench.trace import Trace
from pia.drafting.budget import BudgetPolicy, Calibrator, CostCurve
from pia.errors import DrafterError, TraceError

Budget = int | Literal["auto"]
Row = dict[str, Any]
MAX_AUTO_NODES = 64


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        kinds: The drafters.
        budgets: Nodes a step; with "auto" PIA's own rule chooses under each curve, out of up to 64 proposed nodes.
        curves: Cost of a forward, by name.
        warm: So many requests of a trace only warm; None for half of them.
        limit: Only the first so many requests of a trace; None for all.
        repeat: Play everything so often and keep the shorter time of each step.
    """

    kinds: Sequence[Kind]
    budgets: Sequence[Budget]
    curves: Mapping[str, CostCurve]
    warm: int | None = None
    limit: int | None = None
    repeat: int = 1

    @property
    def num_runs(self) -> int:
        """Rows of one trace, if every drafter can do all."""
        return len(self.kinds) * sum(len(self.curves) if budget == "auto" else 1 for budget in self.budgets)


@dataclass
class Study:
    """What came of it: rows ready for JSON, and remarks on what is not there."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    without_auto: list[str] = field(default_factory=list)
    """Drafters that an automatic budget was asked of and that cannot have one."""

    def close(self) -> None:
        """Makes the last remarks."""
        if names := list(dict.fromkeys(self.without_auto)):
            verb = "estimate" if len(names) > 1 else "estimates"
            self.notes.append(f"no auto budget for {', '.join(names)}, which {verb} no probabilities")


def cut(trace: Trace, plan: Plan) -> tuple[Trace, Trace]:
    """The requests that warm and those that are measured.

    Raises:
        TraceError: nothing would be left to measure.
    """
    part = trace.part(0, plan.limit) if plan.limit is not None else trace
    warm = plan.warm if plan.warm is not None else len(part) // 2
    if not len(part):
        raise TraceError(f"the trace {trace.name} holds no requests; record some with pia generate --record")
    if warm >= len(part):
        raise TraceError(
            f"all {len(part)} requests of {trace.name} would only warm (--warm {warm}) and none be measured; "
            f"lower --warm below {len(part)}" + (" or raise --limit" if len(trace) > len(part) else "")
        )
    measured = part.part(warm, len(part))
    if not any(len(output) > 1 for output in measured.outputs):
        raise TraceError(f"no measured request of {trace.name} has an output of two tokens or more: nothing to draft")
    return part.part(0, warm), measured


def run(traces: Sequence[Trace], plan: Plan, *, on_row: Callable[[str], None] = lambda _: None) -> Study:
    """Measures all there is in a plan.

    Args:
        traces: recorded outputs.
        plan: drafters, budgets, curves.
        on_row: told what is measured next, before each row.

    Raises:
        TraceError: a trace has nothing to measure.
        DrafterError: a drafter is missing, fails, or breaks the protocol.
    """
    study = Study()
    for trace, (warming, measured) in [(trace, cut(trace, plan)) for trace in traces]:
        if plan.limit is not None and plan.limit > len(trace):
            study.notes.append(f"{trace.name} has {len(trace)} requests, not {plan.limit}; all are taken")
        for kind in plan.kinds:
            for budget, curve_name in _settings(plan):
                on_row(f"{trace.name}: {kind.name}, {budget}")
                _measure(study, plan, kind, budget, curve_name, warming, measured)
    study.close()
    return study


def _settings(plan: Plan) -> Iterator[tuple[Budget, str | None]]:
    """Budgets, the automatic one under each curve."""
    for budget in plan.budgets:
        yield from [(budget, name) for name in plan.curves] if budget == "auto" else [(budget, None)]


def _measure(
    study: Study, plan: Plan, kind: Kind, budget: Budget, curve_name: str | None, warming: Trace, measured: Trace
) -> None:
    """Adds a row, or a note why there is none."""
    if budget == "auto" and kind.has_probs is False:
        study.without_auto.append(kind.name)
        return
    try:
        result, num_bytes = _play(kind, _policies(plan, budget, curve_name), warming, measured)
        for _ in range(plan.repeat - 1):
            result.take_faster(_play(kind, _policies(plan, budget, curve_name), warming, measured)[0])
    except NoProbabilitiesError:
        study.without_auto.append(kind.name)
        return
    curves = plan.curves if curve_name is None else {curve_name: plan.curves[curve_name]}
    num_learned = warming.num_output_tokens + measured.num_output_tokens
    study.rows.append(
        {
            "trace": measured.name,
            "drafter": kind.name,
            "budget": budget,
            "curve": curve_name,
            "warm": len(warming),
            "requests": len(measured),
            **result.as_dict(),
            "bytes_per_token": None if num_bytes is None else round(num_bytes / num_learned, 1),
            "speedup": {name: round(result.speedup(curve), 4) for name, curve in curves.items()},
        }
    )


def _policies(plan: Plan, budget: Budget, curve_name: str | None) -> Callable[[], BudgetPolicy]:
    """The budget of each request; an automatic one goes on from what earlier requests showed, as in use."""
    if budget != "auto":
        return fixed_budget(budget)
    assert curve_name is not None
    curve, calibrator = plan.curves[curve_name], Calibrator()
    return lambda: BudgetPolicy(curve, max_nodes=MAX_AUTO_NODES, calibrator=calibrator)


def _play(
    kind: Kind, new_policy: Callable[[], BudgetPolicy], warming: Trace, measured: Trace
) -> tuple[ReplayResult, int | None]:
    """A new drafter, warmed and measured, and the bytes it holds in the end."""
    try:
        drafter = kind.new()
        warm_up(drafter, warming)
        result = play(drafter, measured, new_policy)
        return result, _num_bytes(drafter)
    except NoProbabilitiesError:
        raise
    except DrafterError as error:
        raise DrafterError(f"the drafter {kind.name}: {error}") from error
    except Exception as error:
        raise DrafterError(
            f"the drafter {kind.name} failed on {measured.name}: {type(error).__name__}: {error} "
            "(PIA_DEBUG=1 shows where)"
        ) from error


def _num_bytes(drafter: Drafter) -> int | None:
    num_bytes = getattr(drafter, "num_bytes", None)
    return num_bytes() if num_bytes is not None else None
