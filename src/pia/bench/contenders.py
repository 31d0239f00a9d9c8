"""Ways of generating that a latency benchmark compares, all through the one call of Transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from pia.decoding.stats import Stats
from pia.drafting.cache import DraftCache
from pia.lookahead import Lookahead
from pia.text import decode

_WARM_UP_TOKENS = 8
PROMPT_LOOKUP_TOKENS = 10


@dataclass(frozen=True)
class Run:
    """One prompt answered by one contender."""

    token_ids: list[int]
    """The answer, `[n]`."""
    seconds: float
    """Wall time of the whole call, prefill and preparation included."""
    stats: Stats | None


class Stock:
    """Transformers' own decoding.

    Args:
        name: shown in tables and JSON.
        **extra: further arguments of `generate`.
    """

    def __init__(self, name: str, **extra: Any) -> None:
        self.name = name
        self._extra = extra

    def reset(self, model: Any, prompt: torch.Tensor) -> None:
        """Begins a round: runs a few tokens, unmeasured."""
        self.run(model, prompt, {"max_new_tokens": _WARM_UP_TOKENS, "do_sample": False})

    def run(self, model: Any, prompt: torch.Tensor, options: dict[str, Any]) -> Run:
        """Answers a prompt, `[1, length]`, and takes the time."""
        return _timed(model, prompt, {**options, **self._extra})


class Accelerated:
    """PIA's decoding, through `custom_generate`.

    Args:
        name: shown in tables and JSON.
        new_cache: makes the draft cache that each round starts from.
        **options: of `Lookahead`.
    """

    def __init__(self, name: str, new_cache: Callable[[], DraftCache], **options: Any) -> None:
        self.name = name
        self._new_cache = new_cache
        self._options = options
        self._lookahead: Lookahead | None = None

    def reset(self, model: Any, prompt: torch.Tensor) -> None:
        """Begins a round with nothing learned in the last one: a new cache, new measurements of the model."""
        self._lookahead = Lookahead(self._new_cache(), **self._options)
        warm_up(model, prompt, self._lookahead)

    def run(self, model: Any, prompt: torch.Tensor, options: dict[str, Any]) -> Run:
        """Answers a prompt, `[1, length]`, and takes the time."""
        assert self._lookahead is not None
        run = _timed(model, prompt, {**options, "custom_generate": self._lookahead})
        return Run(run.token_ids, run.seconds, self._lookahead.last_stats)


Contender = Stock | Accelerated


def warm_up(model: Any, prompt: torch.Tensor, lookahead: Lookahead) -> None:
    """Lets PIA measure a model before it is measured itself, with a scratch cache, so that nothing is learned.

    Args:
        model: a causal language model.
        prompt: any, `[1, length]`.
        lookahead: its own cache is left as it is.
    """
    cache, lookahead.cache = lookahead.cache, DraftCache()
    try:
        for _ in decode(model, prompt, lookahead=lookahead, max_new_tokens=_WARM_UP_TOKENS, do_sample=False):
            pass
    finally:
        lookahead.cache = cache


def _timed(model: Any, prompt: torch.Tensor, arguments: dict[str, Any]) -> Run:
    mask = torch.ones_like(prompt)
    started = perf_counter()
    output = model.generate(prompt, attention_mask=mask, **arguments)
    token_ids = output[0, prompt.shape[1] :].tolist()  # waits for the device
    return Run(token_ids, perf_counter() - started, None)


def usual_contenders(new_cache: Callable[[], DraftCache], **options: Any) -> list[Contender]:
    """The five that `pia bench` compares.

    Args:
        new_cache: makes the warmed cache of `pia`; `pia_cold` starts each round with an empty one of its own.
        **options: of `Lookahead`.
    """
    return [
        Stock("generate"),
        Stock("prompt_lookup", prompt_lookup_num_tokens=PROMPT_LOOKUP_TOKENS),
        Accelerated("plain", DraftCache, budget=0),
        Accelerated("pia_cold", DraftCache, **options),
        Accelerated("pia", new_cache, **options),
    ]
