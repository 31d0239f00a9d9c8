"""Traces made fit for a replay by a model of another vocabulary, or at another context length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pia.bench.shapes import Shape
from pia.bench.trace import Trace
from pia.errors import TraceError

_PROMPT_LENGTH = _OUTPUT_LENGTH = 192
"""Of random requests: about what the recorded ones have."""


def random_trace(num_requests: int, vocab: int, *, seed: int = 0) -> Trace:
    """Requests of random tokens, prompts and outputs; an eighth of the vocabulary stays unused, to lengthen prompts."""
    rng = np.random.default_rng(seed)
    draw = rng.integers(0, vocab - vocab // 8, (num_requests, _PROMPT_LENGTH + _OUTPUT_LENGTH)).astype(np.int32)
    return Trace("random", list(draw[:, :_PROMPT_LENGTH]), list(draw[:, _PROMPT_LENGTH:]), {"seed": seed})


def fitted(trace: Trace, shape: Shape) -> Trace:
    """The trace in ids that a shape's vocabulary has; as it is, if it has them all.

    Raises:
        TraceError: it has more different ids than the vocabulary.
    """
    used = _used(trace)
    if not len(used) or used[-1] < shape.vocab:
        return trace
    if len(used) > shape.vocab:
        raise TraceError(
            f"{trace.name} uses {len(used)} different tokens, and the vocabulary of {shape.name} has {shape.vocab}; "
            "choose a shape with a larger vocabulary, or fewer requests"
        )
    prompts, outputs = (
        [np.searchsorted(used, ids).astype(np.int32) for ids in part] for part in (trace.prompts, trace.outputs)
    )
    return Trace(trace.name, prompts, outputs, trace.meta)


def padded(trace: Trace, context: int, vocab: int, seed: int, *, beside: Trace) -> Trace:
    """Lengthens prompts at the front to a number of tokens, by random ones that neither trace uses.

    Raises:
        TraceError: the traces use the whole vocabulary.
    """
    foreign = np.setdiff1d(np.arange(vocab, dtype=np.int32), np.union1d(_used(trace), _used(beside)))
    if not len(foreign):
        raise TraceError(f"{trace.name} uses the whole vocabulary, which leaves no token to lengthen prompts with")
    rng = np.random.default_rng(seed)
    prompts = [
        np.concatenate([rng.choice(foreign, max(0, context - len(prompt))).astype(np.int32), prompt])
        for prompt in trace.prompts
    ]
    return Trace(trace.name, prompts, trace.outputs, trace.meta)


def _used(trace: Trace) -> npt.NDArray[np.int32]:
    """All ids that occur, ascending."""
    return np.unique(np.concatenate([np.empty(0, np.int32), *trace.prompts, *trace.outputs]))
