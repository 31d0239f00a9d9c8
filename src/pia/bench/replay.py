"""Replay of recorded outputs: how many tokens a forward would have yielded with a given source of drafts.

The drafter sees a prompt, then after each forward the tokens it yielded: the accepted drafts and one more. The first
output token comes from prefill and counts for no forward. Warming requests are shown in one piece.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pia.drafting.cache import DraftCache
    from pia.drafting.source import DraftSession, DraftSource
    from pia.drafting.tree import DraftTree

TokenArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Trace:
    """Prompts and outputs of one model on one task, as token ids.

    Attributes:
        name: Shown in tables.
        prompts: One int32 array a request.
        outputs: Likewise, without end-of-text tokens.
        meta: Where it comes from.
    """

    name: str
    prompts: list[TokenArray]
    outputs: list[TokenArray]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Reads a .npz trace: `prompt_tokens`, `prompt_offsets`, `output_tokens`, `output_offsets` and `meta`.

        Raises:
            ValueError: If the file holds no trace.
        """
        with np.load(path, allow_pickle=False) as arrays:
            missing = {f"{part}_{what}" for part in ("prompt", "output") for what in ("tokens", "offsets")} - {*arrays}
            if missing:
                raise ValueError(f"{path} is not a trace: it lacks {', '.join(sorted(missing))}")
            meta = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
            prompts, outputs = (_split(arrays[f"{p}_tokens"], arrays[f"{p}_offsets"]) for p in ("prompt", "output"))
        return cls(Path(path).stem, prompts, outputs, meta)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[tuple[TokenArray, TokenArray]]:
        return zip(self.prompts, self.outputs, strict=True)

    def part(self, start: int, stop: int) -> Trace:
        """Requests `start` to `stop`, exclusive."""
        return Trace(self.name, self.prompts[start:stop], self.outputs[start:stop], self.meta)


def _split(tokens: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> list[TokenArray]:
    return np.split(tokens.astype(np.int32), offsets[1:-1])


@dataclass
class ReplayResult:
    """Sums and samples over the decode forwards of a replay.

    Attributes:
        num_steps: Decode forwards.
        num_tokens: Output tokens that came from them.
        num_drafted: Drafted nodes.
        expected: Accepted drafts as the tree probabilities predicted them.
        draft_us: Microseconds of each `propose`.
        update_us: Microseconds of each `observe`.
    """

    num_steps: int = 0
    num_tokens: int = 0
    num_drafted: int = 0
    expected: float = 0.0
    draft_us: list[float] = field(default_factory=list)
    update_us: list[float] = field(default_factory=list)

    @property
    def edl(self) -> float:
        """Output tokens per decode forward."""
        return self.num_tokens / max(self.num_steps, 1)

    @property
    def drafted(self) -> float:
        """Drafted nodes per step."""
        return self.num_drafted / max(self.num_steps, 1)

    def as_dict(self) -> dict[str, float]:
        """Figures for a table or a JSON line; times in microseconds."""
        steps = [a + b for a, b in zip(self.draft_us, self.update_us, strict=True)] or [0.0]
        return {
            "edl": round(self.edl, 4),
            "drafted": round(self.drafted, 2),
            "expected_edl": round(1 + self.expected / max(self.num_steps, 1), 4),
            "draft_us": round(float(np.median(self.draft_us or [0.0])), 2),
            "update_us": round(float(np.median(self.update_us or [0.0])), 2),
            "p99_us": round(float(np.percentile(steps, 99)), 2),
        }


def warm(cache: DraftCache, trace: Trace) -> None:
    """Lets the cache learn the outputs of all requests of a trace."""
    for output in trace.outputs:
        cache.insert(output)


def replay(source: DraftSource, trace: Trace, *, budget: int, max_depth: int = 32) -> ReplayResult:
    """Plays all requests of a trace, one after the other, through a source of drafts.

    Each request is committed at its end, so later ones can draft from it.

    Args:
        source: What drafts.
        trace: What the model wrote.
        budget: Most nodes a step.
        max_depth: Most drafted tokens in a row.
    """
    result = ReplayResult()
    for prompt, output in trace:
        session = source.begin(prompt)
        session.observe(output[:1].tolist())
        _replay_output(session, output.tolist(), budget, max_depth, result)
        session.end(commit=True)
    return result


def _replay_output(session: DraftSession, output: list[int], budget: int, max_depth: int, result: ReplayResult) -> None:
    position = 1
    while position < len(output):
        start = time.perf_counter()
        tree = session.propose(budget, max_depth)
        drafted = time.perf_counter()
        emitted = output[position : position + count_accepted(tree, output[position:]) + 1]
        ready = time.perf_counter()
        session.observe(emitted)
        result.update_us.append((time.perf_counter() - ready) * 1e6)
        result.draft_us.append((drafted - start) * 1e6)
        result.num_steps += 1
        result.num_tokens += len(emitted)
        result.num_drafted += len(tree)
        result.expected += float(tree.probs.sum())
        position += len(emitted)


def count_accepted(tree: DraftTree, truth: list[int]) -> int:
    """How many tokens of `truth` the tree drafted in a row, from the root."""
    children = {
        (parent, token): node
        for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))
    }
    node = -1
    for depth, token in enumerate(truth):
        node = children.get((node, token), -2)
        if node == -2:
            return depth
    return len(truth)
