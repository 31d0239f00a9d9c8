"""By-products of a forward: the likeliest next tokens at every place that was fed."""

from __future__ import annotations

import numpy as np
import torch

from pia import _core
from pia.drafting.top_tokens import TopTokens


class TopTokensOfStep:
    """The likeliest tokens of a step's logits, worked out on the logits' own device.

    A device of its own works on them while the host chooses tokens; `fetch` waits for that and copies once.

    Args:
        logits: `[rows, q, vocab]`.
        count: how many tokens at each place, at most the vocabulary.
    """

    def __init__(self, logits: torch.Tensor, count: int) -> None:
        self._logits = logits
        self._count = min(count, logits.shape[-1])
        self._packed = None if logits.device.type == "cpu" else _packed(logits, self._count)

    def fetch(self) -> list[TopTokens]:
        """The tokens of each row, `[q, count]` each."""
        if self._packed is not None:
            packed = self._packed.cpu().numpy()
            ids, probs = packed[..., : self._count], packed[..., self._count :].view(np.float32).astype(np.float16)
            return [TopTokens(np.ascontiguousarray(i), p) for i, p in zip(ids, probs, strict=True)]
        return [top_of_rows(row, self._count) for row in self._logits]


def top_of_rows(logits: torch.Tensor, count: int) -> TopTokens:
    """The likeliest `count` tokens of logits `[q, vocab]` on the CPU. One thread: some 2 us for 1,000 tokens."""
    rows = np.ascontiguousarray(logits.detach().float().numpy())
    ids = np.empty((len(rows), count), np.int32)
    probs = np.empty((len(rows), count), np.float16)
    _core.top_tokens(rows, count, ids, probs.view(np.uint16))
    return TopTokens(ids, probs)


def _packed(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Ids, and behind them the bits of their probabilities, int32 `[rows, q, 2 * count]`."""
    scores = logits.float()
    values, ids = scores.topk(count, dim=-1)
    probs = (values - scores.logsumexp(dim=-1, keepdim=True)).exp()
    return torch.cat([ids.to(torch.int32), probs.view(torch.int32)], dim=-1)
