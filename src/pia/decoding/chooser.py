"""The model's own choice of the next token, from its logits: processors, then argmax or a draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pia.decoding.request import Request


class TokenChooser:
    """Chooses token after token exactly as Transformers' sampling loop does.

    Each choice sees the logits of its own true prefix, runs the processors on it once, and takes one draw from the
    random number generator, so that a seed gives the same text with and without drafts.

    Args:
        processors: the prepared `LogitsProcessorList`.
        do_sample: draw instead of taking the likeliest.
        keep_scores: collect processed scores, one `[1, vocab]` per token.
        keep_logits: collect raw logits likewise.
        generator: draws come from it; from torch's own by default.
    """

    def __init__(
        self,
        processors: Any,
        *,
        do_sample: bool = False,
        keep_scores: bool = False,
        keep_logits: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self._processors = processors
        self._do_sample = do_sample
        self.scores: tuple[torch.Tensor, ...] | None = () if keep_scores else None
        self.logits: tuple[torch.Tensor, ...] | None = () if keep_logits else None
        self._generator = generator
        self.is_argmax = not (len(processors) or do_sample or keep_scores or keep_logits)
        """The likeliest token is taken as it is, so that the rows of a step can be looked at in one call."""
        self._rows: torch.Tensor | None = None
        self._argmax: list[int] = []

    def load(self, logits: torch.Tensor, likeliest: list[int]) -> None:
        """Takes the logits of a step, `[q, vocab]`, and the likeliest token of each of its rows if they are known."""
        self._rows, self._argmax = logits, likeliest

    def choose(self, row: int, request: Request) -> int:
        """The token that follows `request.input_ids`, whose logits stand in this row."""
        if self._argmax:
            return self._argmax[row]
        assert self._rows is not None
        logits = self._rows[row : row + 1].to(copy=True, dtype=torch.float32, device=request.input_ids.device)
        scores = self._processors(request.input_ids, logits)
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)
        if self._do_sample:
            return int(torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1, generator=self._generator))
        return int(scores.argmax(dim=-1))


def load_rows(choosers: Sequence[TokenChooser], logits: torch.Tensor) -> None:
    """Gives each request's chooser its part of a step's logits `[rows, q, vocab]`."""
    is_argmax = all(chooser.is_argmax for chooser in choosers)
    likeliest = logits.argmax(dim=-1).tolist() if is_argmax else [[]] * len(choosers)  # one call and one transfer
    for chooser, row, best in zip(choosers, logits, likeliest, strict=True):
        chooser.load(row, best)
