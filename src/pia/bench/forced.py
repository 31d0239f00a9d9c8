"""Replay at full size: a model of some shape runs every forward for real while a recorded output is what it writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pia.bench.forced_logits import ForcedText
from pia.bench.forced_trace import fitted, padded, random_trace
from pia.bench.replay import warm as warm_cache
from pia.bench.shapes import Shape, build, shape_of
from pia.bench.trace import Trace
from pia.drafting.cache import DraftCache
from pia.errors import TraceError

RANDOM = "random"
"""In place of a trace: prompts and outputs of random tokens, of which drafts can predict nothing."""
_NUM_RANDOM = 20


@dataclass(frozen=True)
class ReplayCase:
    """A model of a shape, and recorded requests that it answers as they were answered.

    Attributes:
        model: random weights, on its device.
        prompts: token ids, `[1, length]` each, on the same device.
        outputs: the recorded answers.
        new_cache: makes draft caches that know the warming requests' outputs, each its own.
        label: says what is real and what is replayed.
        forced: what makes the model write the answers.
    """

    model: Any
    prompts: list[torch.Tensor]
    outputs: list[list[int]]
    new_cache: Callable[[], DraftCache]
    label: str
    forced: ForcedText

    @property
    def max_new_tokens(self) -> list[int]:
        """Length of each recorded answer; answers end by it, as no token ends a text."""
        return list(map(len, self.outputs))

    def forcing(self, index: int) -> AbstractContextManager[None]:
        """Surrounds the answering of prompt `index`, by whatever calls the model."""
        return self.forced.forcing([*self.prompts[index][0].tolist(), *self.outputs[index]])


def replay_case(
    trace: str | os.PathLike[str] | Trace,
    shape: str | Shape,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    limit: int | None = None,
    warm: int | None = None,
    context: int | None = None,
    seed: int = 0,
    like: ReplayCase | None = None,
) -> ReplayCase:
    """Prepares a replay of recorded outputs by a model of some shape.

    Token ids that the shape's vocabulary lacks are renumbered, one to one, which changes neither drafts nor costs.

    Args:
        trace: recorded outputs, the file that holds them, or "random".
        shape: a name of `pia.bench.shapes.SHAPES`, or a shape of your own.
        dtype: of the weights.
        device: where the model runs.
        limit: so many requests are measured; all behind the warming ones by default.
        warm: so many requests, the first, only warm the cache; half of them by default. None of a random trace.
        context: prompts that are shorter are lengthened to so many tokens, in front, by tokens that the trace has
            nowhere: text that drafts find no context in, so that acceptance stays what it is.
        seed: of weights, padding, and random traces.
        like: a case whose model is taken, instead of building another.

    Raises:
        ModelError: the shape is unknown or does not fit into memory.
        TraceError: the trace cannot be read, holds too many different tokens, is too long, or leaves nothing to
            measure.
        OSError: the file cannot be read.
    """
    shape = shape if isinstance(shape, Shape) else shape_of(shape)
    whole = trace if isinstance(trace, Trace) else _load(trace, shape, (warm or 0) + (limit or _NUM_RANDOM), seed)
    warming, measured = _cut(whole, warm, limit)
    both = fitted(
        Trace(whole.name, [*warming.prompts, *measured.prompts], [*warming.outputs, *measured.outputs]), shape
    )
    warming, measured = both.part(0, len(warming)), both.part(len(warming), len(both))
    if context is not None:
        measured = padded(measured, context, shape.vocab, seed, beside=warming)
    _check_lengths(measured, shape)
    if like is None:
        model = build(shape, dtype=dtype, device=device, seed=seed)
        forced = ForcedText(model)
    else:
        model, forced = like.model, like.forced
    return ReplayCase(
        model,
        [torch.from_numpy(prompt.astype(np.int64))[None].to(model.device) for prompt in measured.prompts],
        [output.tolist() for output in measured.outputs],
        _cache_maker(warming),
        f"{shape.name} shape, random weights, {_origin(whole)}",
        forced,
    )


def _load(path: str | os.PathLike[str], shape: Shape, num_random: int, seed: int) -> Trace:
    if str(path) == RANDOM and not Path(path).exists():
        return random_trace(num_random, shape.vocab, seed=seed)
    return Trace.load(path)


def _cut(trace: Trace, warm: int | None, limit: int | None) -> tuple[Trace, Trace]:
    """The requests that warm, and those that are measured: of them, those with an answer."""
    warm = warm if warm is not None else 0 if trace.name == RANDOM else len(trace) // 2
    stop = len(trace) if limit is None else min(len(trace), warm + limit)
    measured = trace.part(warm, stop)
    answered = [
        number for number, output in enumerate(measured.outputs) if len(output) and len(measured.prompts[number])
    ]
    if not answered:
        raise TraceError(
            f"of the {len(trace)} requests of {trace.name} none is left to be measured (warming: {warm}); lower --warm"
        )
    prompts, outputs = ([part[number] for number in answered] for part in (measured.prompts, measured.outputs))
    return trace.part(0, warm), Trace(trace.name, prompts, outputs)


def _check_lengths(trace: Trace, shape: Shape) -> None:
    longest = max(len(prompt) + len(output) for prompt, output in trace)
    if longest > shape.max_positions:
        raise TraceError(
            f"{trace.name} has a request of {longest} tokens, and a model of {shape.name} shape takes "
            f"{shape.max_positions}; choose fewer requests (--limit), a smaller context, or another shape"
        )


def _cache_maker(warming: Trace) -> Callable[[], DraftCache]:
    warmed = DraftCache()
    warm_cache(warmed, warming)

    def new_cache() -> DraftCache:
        cache = DraftCache()
        cache.merge(warmed)
        return cache

    return new_cache


def _origin(trace: Trace) -> str:
    return "random tokens" if trace.name == RANDOM else f"tokens from {trace.name}"
