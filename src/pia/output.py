"""What a call of `generate` gives back: token ids, or Transformers' output with PIA's statistics."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from pia.decoding.loop import Row
from pia.decoding.request import Request
from pia.decoding.stats import Stats, Step
from pia.generate_call import GenerateCall
from pia.models.exact_cache import ExactCache
from pia.models.kv import SlabCache
from pia.models.runner import Runner


@dataclass
class LookaheadOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]
    """Transformers' output with PIA's statistics; `kwargs` holds the seed's `edls`, `dls`, `fts` and `qts`.

    Of a batch, `stats` is the sum over the rows. Its rows end apart, so behind a row's end `scores` and `logits` hold
    zeros, and there is no `past_key_values` that all could share.
    """

    stats: Stats | None = None
    kwargs: dict[str, Any] | None = None
    row_stats: list[Stats] | None = None
    """The statistics of each row of a batch."""


@dataclass(frozen=True)
class Decoding:
    """One call under way: iterate over `steps`; `stats` fills as they come."""

    rows: Sequence[Row]
    """By their places in the call."""
    runner: Runner
    stats: Stats
    row_stats: Sequence[Stats]
    steps: Generator[Step, None, None]

    @property
    def request(self) -> Request:
        """The request, in a call with one row."""
        assert len(self.rows) == 1
        return self.rows[0].request


def output_of(call: GenerateCall, decoding: Decoding) -> Any:
    """What `generate` returns: token ids `[rows, length]`, or `LookaheadOutput`."""
    sequences: Any = _sequences(call, [row.request for row in decoding.rows])
    if not call.config.return_dict_in_generate:
        return sequences
    choosers = [row.chooser for row in decoding.rows]
    cache = decoding.runner.cache if len(choosers) == 1 else None
    return LookaheadOutput(
        sequences=sequences,
        scores=cast(Any, _by_step([chooser.scores for chooser in choosers])),
        logits=cast(Any, _by_step([chooser.logits for chooser in choosers])),
        past_key_values=cast(Any, _returned_cache(call, cache)),
        stats=decoding.stats,
        kwargs=decoding.stats.kwargs,
        row_stats=list(decoding.row_stats),
    )


def _returned_cache(call: GenerateCall, cache: Any) -> Any:
    """The caller's own cache, else what was decoded with, as a cache of Transformers'."""
    if cache is not None and call.given_cache is not None:
        return call.given_cache
    return cache.as_dynamic() if isinstance(cache, (SlabCache, ExactCache)) else cache


def _sequences(call: GenerateCall, requests: Sequence[Request]) -> torch.Tensor:
    """Prompts as they were given, with what was generated behind; rows that ended early are filled up with padding."""
    outputs = [torch.tensor(request.output_ids, dtype=call.input_ids.dtype) for request in requests]
    padded = torch.nn.utils.rnn.pad_sequence(outputs, batch_first=True, padding_value=_padding_id(call))
    return torch.cat([call.input_ids, padded.to(call.input_ids.device)], dim=1)


def _padding_id(call: GenerateCall) -> int:
    token = getattr(call.config, "_pad_token_tensor", None)
    return 0 if token is None else int(token)


def _by_step(rows: Sequence[tuple[torch.Tensor, ...] | None]) -> tuple[torch.Tensor, ...] | None:
    """Rows' scores, a tuple of `[1, vocab]` each, as Transformers gives them: a tuple of `[rows, vocab]`."""
    given = [row for row in rows if row is not None]
    if not given:
        return None
    num_steps = max(map(len, given))
    nothing = torch.zeros_like(given[0][0])
    return tuple(torch.cat([row[n] if n < len(row) else nothing for row in given]) for n in range(num_steps))
