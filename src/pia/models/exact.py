"""Exact decoding: a token's logits are the same bits however many tokens its forward carried.

A chain of drafts is fed. Its tokens stand in the slots that they would stand in without drafts, so attention sums
over a token's own text in one order, and what attention sees has a shape that follows from the position alone
(`exact_cache`). What is left is the number of tokens in a forward and a token's row among them: only sizes are fed
whose rows have been shown to be the same bits (`exact_check`), the smallest that holds what is to be fed, filled up
with tokens in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from pia.drafting.tree import DraftTree
from pia.models.exact_cache import BUCKET, ExactCache, bucket_of, slots_of

Sizes = Callable[[int], Sequence[int]]
"""For a bucket of positions, the sizes of forwards that give the same bits, ascending."""


class ExactRunner:
    """Runs an attention-only model on one request.

    Each request has forwards of its own, so that it has no neighbours. Prompts are fed as they always are: the same
    prompt is the same forward, with or without drafts after it.

    Args:
        model: a causal language model of Transformers.
        sizes: interchangeable sizes by bucket.
        prefill_chunk_size: tokens per prefill forward; `None` for one forward.
    """

    can_draft = True
    can_branch = False

    def __init__(self, model: Any, sizes: Sizes, *, prefill_chunk_size: int | None = None) -> None:
        self.model = model
        self.cache = ExactCache()
        self._sizes = sizes
        self._chunk_size = prefill_chunk_size
        self._start = 0

    @torch.inference_mode()
    def prefill(self, input_ids: torch.Tensor) -> torch.Tensor:
        length = input_ids.shape[1]
        self.cache.open(slots_of(bucket_of(length)), sees_all=False)
        options = {"logits_to_keep": 1} if self.model._supports_logits_to_keep() else {}
        positions = torch.arange(length, device=self.model.device)[None]
        size = self._chunk_size or length
        for ids, chunk in zip(torch.split(input_ids, size, 1), torch.split(positions, size, 1), strict=True):
            logits = self._call(ids.to(self.model.device), chunk, **options)
        return logits[-1:]

    @torch.inference_mode()
    def forward(self, token_id: int, tree: DraftTree) -> torch.Tensor:
        assert np.array_equal(tree.parents, np.arange(-1, len(tree) - 1)), "exact decoding verifies chains only"
        self._start = self.cache.length
        left = [token_id, *tree.token_ids.tolist()]
        rows = []
        while left:  # nearly always once: a forward ends at the border of a bucket and at the largest size
            rows.append(self._feed(left))
            left = left[rows[-1].shape[0] :]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def keep(self, rows: Sequence[int]) -> None:
        assert list(rows) == list(range(len(rows))), "of a chain, the beginning is kept"
        self.cache.set_length(self._start + len(rows))

    def _feed(self, token_ids: list[int]) -> torch.Tensor:
        """One forward over as many of the tokens as it may carry; returns their logits."""
        start = self.cache.length
        bucket = bucket_of(start)
        sizes = self._sizes(bucket)
        fed = token_ids[: min(sizes[-1], (bucket + 1) * BUCKET - start)]
        num_vain = next(size for size in sizes if size >= len(fed)) - len(fed)
        last = start + len(fed) - 1
        positions = [*range(start, last + 1), *[last] * num_vain]  # none that the model may not have
        self.cache.open(slots_of(bucket), sees_all=True)
        device = self.model.device
        ids = torch.tensor([[*fed, *fed[-1:] * num_vain]], device=device)
        logits = self._call(ids, torch.tensor([positions], device=device))
        self.cache.set_length(start + len(fed))
        return logits[: len(fed)]

    def _call(self, ids: torch.Tensor, positions: torch.Tensor, **options: Any) -> torch.Tensor:
        """One forward, with the causal mask that the model makes from what the cache says; logits `[q, vocab]`."""
        output = self.model(
            input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, **options
        )
        logits: torch.Tensor = output.logits[0]
        return logits


class ExactRows:
    """Several requests, each with forwards of its own: a row's bits are those that it has alone; implements `Runner`.

    Args:
        new_runner: makes the runner of one row.
    """

    can_draft = True
    can_branch = False
    is_asynchronous = False

    def __init__(self, new_runner: Callable[[], ExactRunner]) -> None:
        self._new_runner = new_runner
        self.runners: list[ExactRunner] = []

    @property
    def cache(self) -> ExactCache:
        """The cache of the only row."""
        (runner,) = self.runners
        return runner.cache

    def prefill(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Feeds prompts `[length]`; returns the logits after their last tokens, `[rows, vocab]`."""
        self.runners = [self._new_runner() for _ in prompts]
        return torch.cat([runner.prefill(ids[None]) for runner, ids in zip(self.runners, prompts, strict=True)])

    def forward(
        self, token_ids: Sequence[int], trees: Sequence[DraftTree], meanwhile: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """Feeds each row its last accepted token and its chain; returns logits `[rows, q, vocab]`."""
        rows = zip(self.runners, token_ids, trees, strict=True)
        return pad_sequence([runner.forward(token_id, tree) for runner, token_id, tree in rows], batch_first=True)

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        """Keeps, of each row, these tokens of its last forward."""
        for runner, rows in zip(self.runners, kept, strict=True):
            runner.keep(rows)

    def retire(self, row: int) -> None:
        """Takes a row out of the batch; the last row moves to its place."""
        self.runners[row] = self.runners[-1]
        self.runners.pop()
