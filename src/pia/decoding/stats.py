"""What a step did, and sums over steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import SOURCE_NAMES


@dataclass(slots=True)
class Step:
    """One forward pass and what came of it. The prefill is a step with one token and no drafts."""

    token_ids: list[int]
    """Tokens emitted, at least one."""
    sources: list[str | None]
    """For each token, the source that had drafted it; `None` where the model went its own way."""
    num_nodes: int = 0
    """Draft nodes fed."""
    num_window: int = 0
    """Nodes of a lookahead window fed besides, which are no drafts."""
    draft_s: float = 0.0
    """Seconds spent on drafting (and choosing the tree's size)."""
    forward_s: float = 0.0
    """Seconds spent in the model, its masks and positions included, and what was done meanwhile."""
    accept_s: float = 0.0
    """Seconds spent on choosing tokens: processors, sampling, stopping."""
    keep_s: float = 0.0
    """Seconds spent on the KV cache and on learning, as far as that was not put off until the next forward."""
    launch_s: float = 0.0
    """Of the forward's seconds, those until a device had it that works on its own; 0 where there is none."""
    hidden_s: float = 0.0
    """Of the forward's seconds, those in which the host learned and drafted while such a device worked."""
    is_prepared: bool = False
    """The draft had been made while the last forward ran."""
    num_prepared: int = 0
    """Drafts made while this one ran, for what might come of it."""
    is_prefill: bool = False
    finish_reason: str | None = None
    """"eos", "length" or "stop" on the last step."""
    row: int = 0
    """Whose step it is, in a batch. Times are this row's share: those of the batch's step divided by its rows."""
    node_sources: npt.NDArray[np.uint8] | None = field(default=None, compare=False)
    """For each draft node fed, an index into `SOURCE_NAMES`."""
    top: TopTokens | None = field(default=None, compare=False)
    """The likeliest tokens of each place that emitted one, `[tokens, k]`, if somebody asked for them."""

    @property
    def is_drafted(self) -> list[bool]:
        """For each token, whether it was a draft that the model agreed with."""
        return [source is not None for source in self.sources]

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return sum(source is not None for source in self.sources)

    @property
    def seconds(self) -> float:
        return self.draft_s + self.forward_s + self.accept_s + self.keep_s


@dataclass
class Stats:
    """Sums over the steps of one request or of several."""

    mode: str = "plain"
    """"tree", "chain" or "plain": what this model can verify."""
    reason: str = ""
    """Why this mode and this budget."""
    engine: str = ""
    """"eager", "graph" or "compile": what ran the steps; empty where Transformers' own loop did."""
    engine_reason: str = ""
    """Why this engine."""
    num_requests: int = 0
    num_steps: int = 0
    """Decode forwards, counted once for each row they served; the prefill is not one."""
    num_tokens: int = 0
    """Tokens emitted, the prefill's included."""
    num_drafted: int = 0
    num_window: int = 0
    """Nodes of lookahead windows fed, which are no drafts."""
    num_accepted: int = 0
    prefill_s: float = 0.0
    draft_s: float = 0.0
    forward_s: float = 0.0
    accept_s: float = 0.0
    keep_s: float = 0.0
    launch_s: float = 0.0
    """Part of `forward_s`: until the device had its work."""
    hidden_s: float = 0.0
    """Part of `forward_s`: the host's own work while the device did its."""
    num_prepared: int = 0
    """Drafts made while a forward ran, for what might come of it."""
    prepared_hits: int = 0
    """Steps whose draft was one of these."""
    accepted_by_depth: Counter[int] = field(default_factory=Counter)
    """How many steps accepted a drafted token at this depth (1 is the first token ahead)."""
    accepted_by_source: Counter[str] = field(default_factory=Counter)
    """Drafted tokens that were accepted, by the source that proposed them."""
    drafted_by_source: Counter[str] = field(default_factory=Counter)
    """Draft nodes fed, by the source that proposed them."""
    edls: list[int] = field(default_factory=list)
    """Effective decoding lengths: tokens each forward yielded, the prefill's 1 first (seed 001)."""
    dls: list[int] = field(default_factory=list)
    """Decoding lengths: tokens each forward was fed; 1 for the prefill (seed 001)."""
    fts: list[float] = field(default_factory=list)
    """Forward times in seconds, the prefill's first (seed 001)."""
    qts: list[float] = field(default_factory=list)
    """Query times in seconds: drafting, one for each decode forward (seed 001)."""
    finish_reason: str | None = None

    def add(self, step: Step) -> None:
        """Counts one step."""
        self.num_tokens += len(step.token_ids)
        self.edls.append(len(step.token_ids))
        self.dls.append(1 + step.num_nodes + step.num_window)
        self.fts.append(step.forward_s)
        self.accept_s += step.accept_s
        self.keep_s += step.keep_s
        self.finish_reason = step.finish_reason
        if step.is_prefill:
            self.num_requests += 1
            self.prefill_s += step.forward_s
            return
        self.num_steps += 1
        self.num_drafted += step.num_nodes
        self.num_window += step.num_window
        self.num_accepted += step.num_accepted
        self.draft_s += step.draft_s
        self.forward_s += step.forward_s
        self.launch_s += step.launch_s
        self.hidden_s += step.hidden_s
        self.num_prepared += step.num_prepared
        self.prepared_hits += step.is_prepared
        self.qts.append(step.draft_s)
        self.accepted_by_depth.update(range(1, step.num_accepted + 1))
        self.accepted_by_source.update(source for source in step.sources if source is not None)
        if step.node_sources is not None:
            counts = np.bincount(step.node_sources).tolist()
            self.drafted_by_source.update({SOURCE_NAMES[source]: count for source, count in enumerate(counts) if count})

    def fresh(self) -> Stats:
        """Empty statistics of the same way of decoding."""
        return Stats(mode=self.mode, reason=self.reason, engine=self.engine, engine_reason=self.engine_reason)

    @classmethod
    def total(cls, parts: Iterable[Stats]) -> Stats:
        """Sums the statistics of several requests."""
        total = cls()
        for part in parts:
            for name, value in vars(part).items():
                if isinstance(value, (int, float)):
                    setattr(total, name, getattr(total, name) + value)
                elif isinstance(value, Counter):
                    getattr(total, name).update(value)
                elif isinstance(value, list):
                    getattr(total, name).extend(value)
                else:
                    setattr(total, name, value)
        return total

    @property
    def seconds(self) -> float:
        """All time inside the loop, prefill included."""
        return self.prefill_s + self.draft_s + self.forward_s + self.accept_s + self.keep_s

    @property
    def edl(self) -> float:
        """Mean tokens per decode forward (1.0 is plain decoding)."""
        return (self.num_tokens - self.num_requests) / self.num_steps if self.num_steps else 1.0

    @property
    def acceptance(self) -> float:
        """Share of the drafted nodes that were accepted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    @property
    def host_s(self) -> float:
        """Decode time in which a device that works on its own has nothing to do: draft, launch, accept and keep.

        By `num_steps` it is the host's time between two forwards. What such a device does last, choosing the likeliest
        tokens and moving keys and values, is in it.
        """
        return self.draft_s + self.launch_s + self.accept_s + self.keep_s

    @property
    def host_share(self) -> float:
        """Share of the decode time spent outside the forward: draft, accept and keep."""
        host = self.draft_s + self.accept_s + self.keep_s
        return host / (host + self.forward_s) if self.forward_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def kwargs(self) -> dict[str, list[Any]]:
        """The seed's four lists."""
        return {"edls": self.edls, "dls": self.dls, "fts": self.fts, "qts": self.qts}

    def by_source(self) -> dict[str, dict[str, float]]:
        """Nodes drafted and accepted per decode forward, by the source that proposed them."""
        steps = max(1, self.num_steps)
        return {
            name: {"drafted": count / steps, "accepted": self.accepted_by_source[name] / steps}
            for name, count in sorted(self.drafted_by_source.items())
        }

    def as_dict(self) -> dict[str, Any]:
        """Totals as plain numbers, ready for JSON (the per-step lists left out)."""
        totals = {name: value for name, value in vars(self).items() if not isinstance(value, list)}
        totals["accepted_by_depth"] = {str(depth): n for depth, n in sorted(self.accepted_by_depth.items())}
        totals["accepted_by_source"] = dict(self.accepted_by_source)
        totals["drafted_by_source"] = dict(self.drafted_by_source)
        for name in ("edl", "acceptance", "host_s", "host_share", "tokens_per_s", "seconds"):
            totals[name] = getattr(self, name)
        return totals

    def __repr__(self) -> str:
        return (
            f"Stats({self.num_tokens} tokens in {self.num_steps} decode forwards: EDL {self.edl:.2f}, "
            f"{self.num_accepted} of {self.num_drafted} drafted accepted ({self.acceptance:.0%}), "
            f"{self.tokens_per_s:.1f} tokens/s; prefill {self.prefill_s:.3f} s, draft {self.draft_s:.3f} s, "
            f"forward {self.forward_s:.3f} s, accept {self.accept_s:.3f} s, keep {self.keep_s:.3f} s; "
            f"mode {self.mode}: {self.reason or 'no reason given'}; "
            f"engine {self.engine or 'of Transformers'}: {self.engine_reason or 'its own loop'})"
        )
