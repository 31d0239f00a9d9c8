"""What `gpu_figures.py` measures of a replay case: answers of contenders in turns, and single steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from statistics import mean, median
from time import perf_counter
from typing import Any

from pia.bench.contenders import Accelerated, Contender, Run, Stock, warm_up
from pia.bench.forced import ReplayCase
from pia.decoding.stats import Stats
from pia.drafting.cache import DraftCache
from pia.lookahead import Lookahead
from pia.text import decode


@dataclass
class Answers:
    """Runs of contenders on the requests of a case; not every contender answers all of them."""

    label: str
    outputs: list[list[int]]
    runs: dict[str, dict[tuple[int, int], Run]] = field(default_factory=dict)
    """By contender, then by round and request."""

    def ratio(self, name: str, other: str) -> float | None:
        """How many times faster one is than the other, over the requests that both answered."""
        both = self._both(name, other)
        ours, theirs = (sum(self.runs[who][key].seconds for key in both) for who in (name, other))
        return theirs / ours if both else None

    def spread(self, name: str, other: str) -> list[float]:
        """Least, median and largest of that ratio, request by request."""
        both = self._both(name, other)
        ratios = sorted(self.runs[other][key].seconds / self.runs[name][key].seconds for key in both)
        return [round(value, 3) for value in (ratios[0], median(ratios), ratios[-1])] if both else []

    def tokens_per_s(self, name: str) -> float:
        runs = self.runs[name].values()
        return sum(len(run.token_ids) for run in runs) / sum(run.seconds for run in runs)

    def stats(self, name: str) -> Stats | None:
        """Sums of a contender that counts."""
        parts = [run.stats for run in self.runs[name].values() if run.stats is not None]
        return Stats.total(parts) if parts else None

    @property
    def num_answers(self) -> int:
        return sum(map(len, self.runs.values()))

    @property
    def num_identical(self) -> int:
        """Answers that are the recorded ones, token by token."""
        return sum(
            run.token_ids == self.outputs[index] for runs in self.runs.values() for (_, index), run in runs.items()
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "requests": {name: len(runs) for name, runs in self.runs.items()},
            "tokens_per_s": {name: round(self.tokens_per_s(name), 2) for name in self.runs},
            "steps": {name: _sums(stats) for name in self.runs if (stats := self.stats(name)) is not None},
            "identical": self.num_identical,
            "answers": self.num_answers,
        }

    def _both(self, name: str, other: str) -> list[tuple[int, int]]:
        return [key for key in self.runs.get(name, {}) if key in self.runs.get(other, {})]


def _sums(stats: Stats) -> dict[str, Any]:
    """Tokens, nodes and milliseconds a decode step; times of accept and keep include the prefill's."""
    steps = max(stats.num_steps, 1)
    times = {name: getattr(stats, f"{name}_s") for name in ("draft", "forward", "accept", "keep", "launch", "hidden")}
    return {
        "edl": round(stats.edl, 4),
        "nodes": round(stats.num_drafted / steps, 2),
        **{f"{name}_ms": round(1e3 * seconds / steps, 4) for name, seconds in times.items()},
        "prefill_ms": round(1e3 * stats.prefill_s / max(stats.num_requests, 1), 2),
        "engine": stats.engine,
        "engine_reason": stats.engine_reason,
        "reason": stats.reason,
    }


def compare(
    case: ReplayCase,
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    limits: Mapping[str, int],
) -> Answers:
    """Lets contenders answer a case's requests in turns, another one first each time.

    Args:
        case: model, prompts and recorded answers.
        contenders: ways to answer.
        rounds: how often; each begins with nothing learned in the last.
        seconds: no further request is begun after so long, but for the first.
        limits: contenders that answer only the first few requests, because they are slow.
    """
    answers = Answers(case.label, case.outputs, {contender.name: {} for contender in contenders})
    started = perf_counter()
    for number in range(rounds):
        for contender in contenders:
            contender.reset(case.model, case.prompts[0])
        for index, prompt in enumerate(case.prompts):
            if index and perf_counter() - started > seconds:
                break
            options = {"max_new_tokens": case.max_new_tokens[index], "do_sample": False}
            first = index % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                if index < limits.get(contender.name, len(case.prompts)):
                    with case.forcing(index):
                        answers.runs[contender.name][number, index] = contender.run(case.model, [prompt], options)[0]
    return answers


def contenders_of(case: ReplayCase, names: Sequence[str], options: dict[str, Any]) -> list[Contender]:
    """Ways to answer by name: generate, and PIA plain, plain without its fast engine, and warmed."""
    plain = {**options, "budget": 0}
    known: dict[str, Callable[[], Contender]] = {
        "generate": lambda: Stock("generate"),
        "eager": lambda: Accelerated("eager", DraftCache, **{**plain, "engine": "eager"}),
        "plain": lambda: Accelerated("plain", DraftCache, **plain),
        "pia": lambda: Accelerated("pia", case.new_cache, **options),
    }
    return [known[name]() for name in names]


@dataclass(frozen=True)
class StepTimes:
    """Times of decode steps, in seconds, from one step's end to the next one's.

    Attributes:
        whole: of steps with as many nodes as were asked for.
        host: what of it is not the forward.
        launch: what of the forward passes until a device that works on its own has it.
        num_nodes: mean number of nodes over all steps.
    """

    whole: list[float]
    host: list[float]
    launch: list[float]
    num_nodes: float

    @property
    def ms(self) -> float | None:
        """Median of the whole steps, in milliseconds."""
        return _ms(self.whole)

    @property
    def host_ms(self) -> float | None:
        return _ms(self.host)

    def as_dict(self) -> dict[str, Any]:
        return {
            "steps": len(self.whole),
            "ms": self.ms,
            "host_ms": self.host_ms,
            "launch_ms": _ms(self.launch),
            "nodes": round(self.num_nodes, 2),
        }

    @staticmethod
    def all_as_dict(times: Mapping[str, StepTimes]) -> dict[str, Any]:
        return {budget: part.as_dict() for budget, part in times.items()}


def _ms(times: Sequence[float]) -> float | None:
    return round(1e3 * median(times), 4) if times else None


_Timed = tuple[int, float, float, float]
"""Of a step: its nodes, its seconds, those outside the forward, and those of the launch."""


def step_times(
    case: ReplayCase, budgets: Sequence[int | str], *, num_requests: int, seconds: float, options: dict[str, Any]
) -> dict[str, StepTimes]:
    """Times single steps with fixed numbers of nodes (of trees that are full) and with the automatic one, in turns.

    Returns:
        the times, by budget.
    """
    lookaheads = {budget: Lookahead(case.new_cache(), **{**options, "budget": budget}) for budget in budgets}
    found: dict[int | str, list[_Timed]] = {budget: [] for budget in budgets}
    for lookahead in lookaheads.values():
        warm_up(case.model, case.prompts[0], lookahead)
    started = perf_counter()
    for index in range(min(num_requests, len(case.prompts))):
        if index and perf_counter() - started > seconds:
            break
        for budget, lookahead in lookaheads.items():
            with case.forcing(index):
                found[budget] += _timed_steps(case, index, lookahead)
    return {str(budget): _full_steps(budget, steps) for budget, steps in found.items()}


def _timed_steps(case: ReplayCase, index: int, lookahead: Lookahead) -> list[_Timed]:
    """Each decode step of a request."""
    options: dict[str, Any] = {"max_new_tokens": case.max_new_tokens[index], "do_sample": False}
    times = []
    with closing(decode(case.model, case.prompts[index], lookahead=lookahead, **options)) as steps:
        last = perf_counter()
        for step in steps:
            now = perf_counter()
            if not step.is_prefill:
                times.append((step.num_nodes, now - last, now - last - step.forward_s, step.launch_s))
            last = perf_counter()
    return times


def _full_steps(budget: int | str, steps: Sequence[_Timed]) -> StepTimes:
    full = [step for step in steps if budget == "auto" or step[0] == budget]
    num_nodes = mean(step[0] for step in steps) if steps else 0.0
    whole, host, launch = ([step[place] for step in full] for place in (1, 2, 3))
    return StepTimes(whole, host, launch, num_nodes)
