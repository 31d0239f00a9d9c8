"""Ways of generating that a latency benchmark compares, all through the one call of Transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch.nn.functional import pad

from pia.config import EngineName
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
    """The answer, `[n]`, up to its end."""
    seconds: float
    """Wall time of the whole call, prefill and preparation included; in a batch, an equal share of it."""
    stats: Stats | None
    num_forwards: int | None = None
    """Forwards of the model, the prefill's included, where the contender keeps no statistics of its own."""


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
        self.run(model, [prompt], {"max_new_tokens": _WARM_UP_TOKENS, "do_sample": False})

    def run(self, model: Any, batch: Sequence[torch.Tensor], options: dict[str, Any]) -> list[Run]:
        """Answers prompts, `[1, length]` each, in one call, and takes the time."""
        with _counting(model) as count:
            runs = _timed(model, batch, {**options, **self._extra})
        return [replace(run, num_forwards=count.num_forwards) for run in runs]


class Accelerated:
    """PIA's decoding, through `custom_generate`.

    Args:
        name: shown in tables and JSON.
        new_cache: makes the draft cache that each round starts from.
        forgets: each call starts from a new one.
        **options: of `Lookahead`.
    """

    def __init__(
        self, name: str, new_cache: Callable[[], DraftCache], *, forgets: bool = False, **options: Any
    ) -> None:
        self.name = name
        self._new_cache = new_cache
        self._forgets = forgets
        self._options = options
        self._lookahead: Lookahead | None = None

    @property
    def engine(self) -> EngineName:
        """What it asks to run its steps."""
        engine: EngineName = self._options.get("engine", "auto")
        return engine

    def reset(self, model: Any, prompt: torch.Tensor) -> None:
        """Begins a round with nothing learned in the last one: a new cache, new measurements of the model."""
        self._lookahead = Lookahead(self._new_cache(), **self._options)
        warm_up(model, prompt, self._lookahead)

    def run(self, model: Any, batch: Sequence[torch.Tensor], options: dict[str, Any]) -> list[Run]:
        """Answers prompts, `[1, length]` each, in one call, and takes the time."""
        assert self._lookahead is not None
        if self._forgets:
            self._lookahead.cache = self._new_cache()
        first, *others = _timed(model, batch, {**options, "custom_generate": self._lookahead})
        return [replace(first, stats=self._lookahead.last_stats), *others]  # they are of the whole call


Contender = Stock | Accelerated


def willing(
    contenders: Sequence[Contender], model: Any, prompt: torch.Tensor, *, reference: str
) -> tuple[list[Contender], dict[str, str]]:
    """Finds out which ways of Transformers' own a model refuses: those with a recurrent state cannot be assisted.

    Args:
        contenders: all that are wanted.
        model: a causal language model.
        prompt: any, `[1, length]`.
        reference: must run; its error is the caller's.

    Returns:
        those that run, and for each of the others what Transformers says.
    """
    refusals: dict[str, str] = {}
    for contender in contenders:
        if isinstance(contender, Stock) and contender.name != reference:
            try:
                contender.reset(model, prompt)
            except (ValueError, TypeError, NotImplementedError) as error:
                refusals[contender.name] = f"Transformers refuses it ({' '.join(str(error).split())[:200]})"
    return [contender for contender in contenders if contender.name not in refusals], refusals


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


class _Count:
    num_forwards = 0

    def __call__(self, *_: Any) -> None:
        self.num_forwards += 1


@contextmanager
def _counting(model: Any) -> Iterator[_Count]:
    """Counts forwards; that costs each of them a microsecond or two."""
    count = _Count()
    handle = model.register_forward_pre_hook(count)
    try:
        yield count
    finally:
        handle.remove()


def _timed(model: Any, batch: Sequence[torch.Tensor], arguments: dict[str, Any]) -> list[Run]:
    longest = max(prompt.shape[1] for prompt in batch)
    padding = [longest - prompt.shape[1] for prompt in batch]
    ids = torch.cat([pad(prompt, (size, 0)) for prompt, size in zip(batch, padding, strict=True)])
    mask = torch.stack([torch.arange(longest, device=ids.device) >= size for size in padding]).long()
    started = perf_counter()
    output = model.generate(ids, attention_mask=mask, **arguments)
    answers = output[:, longest:].tolist()  # waits for the device
    seconds = perf_counter() - started
    return [Run(_until_end(model, answer), seconds / len(batch), None) for answer in answers]


def _until_end(model: Any, token_ids: list[int]) -> list[int]:
    """An answer without the padding that stands behind its end where another row went on."""
    end = model.generation_config.eos_token_id
    stops = {end} if isinstance(end, int) else set(end or ())
    return token_ids[: next((n + 1 for n, token in enumerate(token_ids) if token in stops), None)]


def usual_contenders(
    new_cache: Callable[[], DraftCache],
    *,
    batch_size: int = 1,
    assisted: Stock | None = None,
    **options: Any,
) -> list[Contender]:
    """Those that `pia bench` compares; of batches without prompt lookup, which takes one prompt at a time.

    Args:
        new_cache: makes the warmed cache of `pia`; `pia_cold` starts each round with an empty one of its own.
        batch_size: prompts a call.
        assisted: generation with a draft model, where there is one.
        **options: of `Lookahead`; plain decoding has them too, but for the budget.
    """
    lookup = Stock("prompt_lookup", prompt_lookup_num_tokens=PROMPT_LOOKUP_TOKENS)
    return [
        Stock("generate"),
        *([lookup] if batch_size == 1 else []),
        *([assisted] if assisted is not None else []),
        Accelerated("plain", DraftCache, **{**options, "budget": 0}),
        Accelerated("pia_cold", DraftCache, **options),
        Accelerated("pia", new_cache, **options),
    ]
