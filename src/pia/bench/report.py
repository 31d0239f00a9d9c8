"""What a latency measurement says: figures for a table and for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import median, quantiles
from typing import Any

from pia.bench.contenders import Run
from pia.decoding.stats import Stats

REPEAT_LENGTH = 8
"""An answer repeats when a run of so many tokens occurs in it twice."""


@dataclass(frozen=True)
class Report:
    """All runs of a measurement.

    Args:
        runs: by contender, for each round the runs prompt by prompt.
        reference: the contender whose answers the others must equal.
    """

    runs: dict[str, list[list[Run]]]
    reference: str
    batch_size: int = 1
    """Prompts a call."""
    setup_s: dict[str, list[float]] = field(default_factory=dict)
    """By contender, what each round's beginning took: loading, examining, measuring, compiling; no part of the runs."""

    @property
    def num_prompts(self) -> int:
        return len(self.runs[self.reference][0])

    @property
    def nonrepeating(self) -> list[int]:
        """Prompts whose (reference) answer does not repeat: a looping model flatters drafts."""
        answers = self.runs[self.reference][0]
        return [index for index, run in enumerate(answers) if not repeats(run.token_ids)]

    def tokens_per_s(self, name: str, prompts: Sequence[int] | None = None) -> float:
        """Median over the rounds of all tokens by all time."""
        return median(_speed(runs, prompts) for runs in self.runs[name])

    def spread(self, name: str) -> tuple[float, float]:
        """The slowest and the fastest round, in tokens/s."""
        speeds = [_speed(runs, None) for runs in self.runs[name]]
        return min(speeds), max(speeds)

    def quartiles_by_prompt(self, name: str) -> tuple[float, float]:
        """First and third quartile, over prompts (and rounds), of tokens/s."""
        return quartiles([_speed([run], None) for run in chain(*self.runs[name])])

    def edl(self, name: str) -> float | None:
        """Mean tokens per decode forward; `None` where it is not known."""
        stats = self.stats(name)
        if stats is not None:
            return stats.edl
        runs = list(chain(*self.runs[name]))
        if self.batch_size > 1 or any(run.num_forwards is None for run in runs):
            return None
        num_forwards = sum(run.num_forwards or 0 for run in runs) - len(runs)
        return (sum(len(run.token_ids) for run in runs) - len(runs)) / num_forwards if num_forwards > 0 else 1.0

    def ratio(self, name: str, other: str, prompts: Sequence[int] | None = None) -> float | None:
        """Median over the rounds of one contender's speed by the other's; `None` where there is nothing to compare."""
        if prompts is not None and not prompts:
            return None
        pairs = zip(self.runs[name], self.runs[other], strict=True)
        return median(_speed(ours, prompts) / _speed(theirs, prompts) for ours, theirs in pairs)

    def ratio_per_prompt(self, name: str, other: str) -> float:
        """Median over all prompts (and rounds) of the speed ratio."""
        pairs = zip(chain(*self.runs[name]), chain(*self.runs[other]), strict=True)
        return median(_speed([run], None) / _speed([peer], None) for run, peer in pairs)

    def num_identical(self, name: str) -> int:
        """Prompts whose answer equals the reference's, token by token, in every round."""
        expected = [run.token_ids for run in self.runs[self.reference][0]]
        return sum(
            all(runs[index].token_ids == answer for runs in self.runs[name]) for index, answer in enumerate(expected)
        )

    def stats(self, name: str) -> Stats | None:
        """Sums over all runs of a contender; `None` for those that keep no statistics."""
        parts = [run.stats for runs in self.runs[name] for run in runs if run.stats is not None]
        return Stats.total(parts) if parts else None

    def as_dict(self) -> dict[str, Any]:
        """Figures ready for JSON, rounded to what they are worth."""
        stats = self.stats("pia") or Stats()
        ours = [name for name in ("plain", "pia_cold", "pia") if name in self.runs]
        answers = self.runs[self.reference][0]
        figures: dict[str, Any] = {
            "questions": self.num_prompts,
            "identical": min(self.num_identical(name) for name in ours),
            "identical_by_contender": {name: self.num_identical(name) for name in self.runs if name != self.reference},
            "reference": self.reference,
            "batch": self.batch_size,
            "rounds": len(self.runs[self.reference]),
            "tokens": sum(len(run.token_ids) for run in answers),
            "edl": round(stats.edl, 3),
            "edl_cold": round((self.stats("pia_cold") or Stats()).edl, 3),
            "tokens_per_s": {name: round(self.tokens_per_s(name), 1) for name in self.runs},
            "ratio": self._ratios(self.ratio),
            "ratio_per_prompt": self._ratios(self.ratio_per_prompt),
            "nonrepeating": len(self.nonrepeating),
            "ratio_nonrepeating": self._ratios(lambda name, other: self.ratio(name, other, self.nonrepeating)),
            "host_share": round(stats.host_share, 4),
            "drafted": stats.num_drafted,
            "accepted": stats.num_accepted,
            "acceptance": round(stats.acceptance, 4),
            "accepted_by_source": dict(stats.accepted_by_source),
            "mode": stats.mode,
        }
        return figures

    def _ratios(self, ratio: Callable[[str, str], float | None]) -> dict[str, float | None]:
        """PIA's warmed speed by those of the others."""
        rounded = {}
        for other in ("generate", "plain", "prompt_lookup"):
            value = ratio("pia", other) if other in self.runs else None
            rounded[f"pia_over_{other}"] = None if value is None else round(value, 3)
        return rounded


def repeats(token_ids: Sequence[int], length: int = REPEAT_LENGTH) -> bool:
    """Whether any run of `length` tokens occurs twice."""
    grams = [tuple(token_ids[i : i + length]) for i in range(len(token_ids) - length + 1)]
    return len(set(grams)) < len(grams)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of a single value, that value."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def _speed(runs: Sequence[Run], prompts: Sequence[int] | None) -> float:
    chosen = runs if prompts is None else [runs[index] for index in prompts]
    return sum(len(run.token_ids) for run in chosen) / sum(run.seconds for run in chosen)
