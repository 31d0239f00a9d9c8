"""What a replay counted, step by step, and the figures that come of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pia.bench.drafters.protocol import Checked
from pia.drafting.budget import CostCurve
from pia.drafting.tree import SOURCE_NAMES, DraftTree

_NUM_BINS = 10
Samples = npt.NDArray[np.float64]


@dataclass
class ReplayResult:
    """Samples over the decode forwards of a replay.

    Attributes:
        num_nodes: Drafted nodes that each forward verified.
        num_emitted: Tokens that each forward yielded.
        draft_us: Microseconds of each `propose`; 0 where the budget asked for none.
        update_us: Microseconds of each `observe`.
        begin_us: Microseconds of each request's `begin`.
        accepted_by_depth: How many forwards accepted a draft so far ahead; 1 is the first token.
        drafted_by_source: Nodes by the source that proposed them, where drafts say so.
        accepted_by_source: Likewise, of those accepted.
        has_probs: Whether the drafts came with probabilities.
    """

    num_nodes: list[int] = field(default_factory=list)
    num_emitted: list[int] = field(default_factory=list)
    draft_us: list[float] = field(default_factory=list)
    update_us: list[float] = field(default_factory=list)
    begin_us: list[float] = field(default_factory=list)
    accepted_by_depth: Counter[int] = field(default_factory=Counter)
    drafted_by_source: Counter[str] = field(default_factory=Counter)
    accepted_by_source: Counter[str] = field(default_factory=Counter)
    has_probs: bool = True
    _probs: list[npt.NDArray[np.float32]] = field(default_factory=list, repr=False)
    _hits: list[npt.NDArray[np.bool_]] = field(default_factory=list, repr=False)

    def add(
        self, draft: Checked, tree: DraftTree, nodes: list[int], num_emitted: int, draft_us: float, update_us: float
    ) -> None:
        """Counts one forward over `tree`, the part of a draft that was verified, of which `nodes` were accepted."""
        self.num_nodes.append(len(tree))
        self.num_emitted.append(num_emitted)
        self.draft_us.append(draft_us)
        self.update_us.append(update_us)
        self.accepted_by_depth.update(range(1, len(nodes) + 1))
        if draft.has_sources:
            self.drafted_by_source.update(SOURCE_NAMES[source] for source in tree.sources.tolist())
            self.accepted_by_source.update(SOURCE_NAMES[tree.sources[node]] for node in nodes)
        self.has_probs &= draft.has_probs
        if draft.has_probs and len(tree):
            hits = np.zeros(len(tree), bool)
            hits[nodes] = True
            self._probs.append(tree.probs)
            self._hits.append(hits)

    @property
    def num_steps(self) -> int:
        """Decode forwards."""
        return len(self.num_emitted)

    @property
    def num_tokens(self) -> int:
        """Output tokens that came from them."""
        return sum(self.num_emitted)

    @property
    def edl(self) -> float:
        """Output tokens per decode forward; 1 without any."""
        return self.num_tokens / self.num_steps if self.num_steps else 1.0

    @property
    def drafted(self) -> float:
        """Drafted nodes per forward."""
        return sum(self.num_nodes) / max(self.num_steps, 1)

    @property
    def expected_edl(self) -> float | None:
        """Tokens per forward as the probabilities predicted them; None without probabilities."""
        total = sum(float(probs.sum()) for probs in self._probs)
        return 1 + total / max(self.num_steps, 1) if self.has_probs else None

    def acceptance_by_depth(self) -> list[float]:
        """Share of the forwards that accepted a draft 1, 2, ... tokens ahead. The sum is the accepted drafts of one."""
        depths = range(1, max(self.accepted_by_depth, default=0) + 1)
        return [self.accepted_by_depth[depth] / self.num_steps for depth in depths]

    def by_source(self) -> dict[str, dict[str, float]]:
        """Nodes drafted and accepted per forward, by the source that proposed them; empty where drafts do not say."""
        return {
            name: {
                "drafted": round(count / self.num_steps, 4),
                "accepted": round(self.accepted_by_source[name] / self.num_steps, 4),
            }
            for name, count in sorted(self.drafted_by_source.items())
        }

    def calibration(self) -> list[dict[str, float]]:
        """Predicted against real acceptance of nodes, in ten bins of equal count by predicted path probability."""
        if not self.has_probs or not self._probs:
            return []
        probs, hits = np.concatenate(self._probs), np.concatenate(self._hits)
        bins = np.array_split(np.argsort(probs, kind="stable"), _NUM_BINS)
        return [
            {
                "predicted": round(float(probs[nodes].mean(dtype=np.float64)), 5),
                "real": round(float(hits[nodes].mean()), 5),
                "count": len(nodes),
            }
            for nodes in bins
            if len(nodes)
        ]

    def speedup(self, curve: CostCurve) -> float:
        """Modelled speed-up: what plain forwards cost for the same tokens, by what these forwards cost."""
        if not self.num_steps:
            return 1.0
        costs = curve.table(max(self.num_nodes) + 1)
        return self.num_tokens / float(costs[np.asarray(self.num_nodes)].sum())

    def take_faster(self, other: ReplayResult) -> None:
        """Keeps the shorter time of each step of two equal runs: other work on the machine only ever adds."""
        for mine, theirs in ((self.draft_us, other.draft_us), (self.update_us, other.update_us)):
            mine[:] = np.minimum(mine, theirs).tolist()
        self.begin_us[:] = np.minimum(self.begin_us, other.begin_us).tolist()

    def as_dict(self) -> dict[str, Any]:
        """Figures for a table or a JSON line; times in microseconds."""
        drafts = [us for us in self.draft_us if us > 0]
        steps = [draft + update for draft, update in zip(self.draft_us, self.update_us, strict=True)]
        return {
            "edl": round(self.edl, 4),
            "expected_edl": None if self.expected_edl is None else round(self.expected_edl, 4),
            "drafted": round(self.drafted, 3),
            "steps": self.num_steps,
            "tokens": self.num_tokens,
            "acceptance_by_depth": [round(share, 4) for share in self.acceptance_by_depth()],
            "by_source": self.by_source(),
            "calibration": self.calibration(),
            "draft_us": _percentile(drafts, 50),
            "update_us": _percentile(self.update_us, 50),
            "p99_us": _percentile(steps, 99),
            "begin_us": _percentile(self.begin_us, 50),
        }


def _percentile(samples: list[float], share: float) -> float:
    return round(float(np.percentile(samples, share)), 2) if samples else 0.0
