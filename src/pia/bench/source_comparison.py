"""Sources of drafts against each other: each one alone, all in one tree, and a peer, at the same budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pia.bench.by_source import by_source
from pia.bench.contenders import Accelerated, Contender, Stock
from pia.bench.drafters.token_recycling import NUM_NODES, TokenRecycling
from pia.bench.report import Report
from pia.bench.workload import Workload
from pia.config import SOURCES
from pia.drafting.cache import DraftCache

Budget = int | Literal["auto"]
BUDGETS: tuple[Budget, ...] = (16, 64, "auto")
PLAIN = "plain"
Role = Literal["single", "mix", "peer"]
WORST_TEMPERATURE = 4.0
"""Text that is drawn so hot is hardly ever foreseen."""


@dataclass(frozen=True)
class Way:
    """A way to draft."""

    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `Lookahead`."""
    role: Role = "single"
    """A single source, several in one tree, which ought to be better than each alone, or somebody else's way."""
    new_source: Callable[[], Any] = DraftCache
    """Makes what each round starts from."""
    own_budget: int | None = None
    """Where a tree of one size belongs to the way: it is measured at that, instead of an automatic one."""

    def budgets(self, wanted: Sequence[Budget]) -> list[Budget]:
        """Those that it is measured at."""
        if self.own_budget is None:
            return list(wanted)
        return [*(budget for budget in wanted if budget != "auto"), self.own_budget]


def usual_ways() -> list[Way]:
    """Every source alone, then Token Recycling as published, then all in one tree, without a window and with one."""
    return [
        *(Way(source, f"{source} alone", {"sources": (source,)}) for source in SOURCES),
        Way("jacobi", "Jacobi window alone", {"sources": (), "jacobi": True}),
        Way(
            "token_recycling",
            "Token Recycling as published",
            role="peer",
            new_source=TokenRecycling,
            own_budget=NUM_NODES,
        ),
        Way("mix", "all in one tree", role="mix"),
        Way("mix_jacobi", "all, and a window", {"jacobi": True}, role="mix"),
    ]


@dataclass(frozen=True)
class Entry:
    """A way at a budget."""

    way: Way
    budget: Budget

    @property
    def name(self) -> str:
        return f"{self.way.name}@{self.budget}"


class SourceComparison:
    """Which ways are compared at which budgets, and what came of it.

    Args:
        ways: to draft.
        budgets: nodes a step.
        forgets: each prompt starts from nothing; else from what the earlier ones of its round have taught.
        **options: of `Lookahead`, for all.
    """

    def __init__(
        self, ways: Sequence[Way], budgets: Sequence[Budget] = BUDGETS, *, forgets: bool = False, **options: Any
    ) -> None:
        self.entries = [Entry(way, budget) for budget in _all(ways, budgets) for way in ways
                        if budget in way.budgets(budgets)]  # fmt: skip
        self._forgets = forgets
        self._options = options

    def contenders(self, *, is_sampled: bool) -> list[Contender]:
        """Plain decoding by PIA, the ways, and, unless text is drawn, Transformers' own `generate`."""
        plain = Accelerated(PLAIN, DraftCache, **{**self._options, "budget": 0})
        return [*([] if is_sampled else [Stock("generate")]), plain, *map(self._contender, self.entries)]

    def result(self, workload: Workload, report: Report) -> dict[str, Any]:
        """Figures ready for JSON."""
        rows = {entry.name: self._row(report, entry) for entry in self.entries}
        names = [PLAIN, *rows]
        return {
            "questions": report.num_prompts,
            "rounds": len(report.runs[PLAIN]),
            "tokens": sum(len(run.token_ids) for run in report.runs[report.reference][0]),
            "batch": report.batch_size,
            "reference": report.reference,
            "identical": min(report.num_identical(name) for name in names if name != report.reference),
            "is_sampled": bool(workload.options.get("do_sample")),
            "forgets": self._forgets,
            "edl": {name: row["edl"] for name, row in rows.items()},
            "over_plain": {name: row["over_plain"] for name, row in rows.items()},
            "mix_over_best": _mix_over_best(rows),
            "tokens_per_s": {name: round(report.tokens_per_s(name), 2) for name in report.runs},
            "contenders": rows,
        }

    def _contender(self, entry: Entry) -> Accelerated:
        options = {**self._options, **entry.way.options, "budget": entry.budget}
        return Accelerated(entry.name, entry.way.new_source, forgets=self._forgets, **options)

    def _row(self, report: Report, entry: Entry) -> dict[str, Any]:
        stats, over = report.stats(entry.name), report.ratio(entry.name, PLAIN)
        assert stats is not None and over is not None
        slowest, fastest = report.spread(entry.name)
        return {
            "way": entry.way.name,
            "label": entry.way.label,
            "budget": entry.budget,
            "role": entry.way.role,
            "edl": round(stats.edl, 4),
            "window": round(stats.num_window / max(1, stats.num_steps), 3),
            "drafted": round(stats.num_drafted / max(1, stats.num_steps), 3),
            "by_source": by_source(stats),
            "tokens_per_s": {
                "median": round(report.tokens_per_s(entry.name), 2),
                "min": round(slowest, 2),
                "max": round(fastest, 2),
            },
            "over_plain": round(over, 4),
            "over_plain_per_prompt": round(report.ratio_per_prompt(entry.name, PLAIN), 4),
            "identical": report.num_identical(entry.name),
            "host_share": round(stats.host_share, 4),
        }


def _all(ways: Sequence[Way], budgets: Sequence[Budget]) -> list[Budget]:
    """The budgets that any way is measured at, those of its own last."""
    return list(dict.fromkeys([*budgets, *(budget for way in ways for budget in way.budgets(budgets))]))


def _mix_over_best(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For each tree of several sources the best single source at its budget, in tokens a forward and in speed."""
    found = {}
    for name, mix in rows.items():
        single = [row for row in rows.values() if row["role"] == "single" and row["budget"] == mix["budget"]]
        if mix["role"] == "mix" and single:
            best, fastest = (max(single, key=lambda row: row[key]) for key in ("edl", "over_plain"))
            found[name] = {
                "best": best["way"],
                "edl": round(mix["edl"] / best["edl"], 4),
                "fastest": fastest["way"],
                "speed": round(mix["over_plain"] / fastest["over_plain"], 4),
            }
    return found
