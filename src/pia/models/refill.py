"""Models whose `generate` throws its cache away at one place of a text, and feeds all of it anew (Phi-3's longrope)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pia.drafting.tree import DraftTree
from pia.models.runner import SlabRunner


class RefillRunner(SlabRunner):
    """Runs one request and does as such a model's `generate` does; no draft may reach over that place.

    Args:
        model: as of `SlabRunner`.
        refill_at: when the token at this position is fed, the whole text is.
        **options: as of `SlabRunner`.
    """

    def __init__(self, model: Any, *, refill_at: int, **options: Any) -> None:
        super().__init__(model, **options)
        self._refill_at = refill_at
        self._text: list[int] = []
        self._fed: list[int] = []

    def prefill(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        (prompt,) = prompts
        self._text = prompt.tolist()
        return super().prefill(prompts)

    def forward(
        self, token_ids: Sequence[int], trees: Sequence[DraftTree], meanwhile: Callable[[], None] | None = None
    ) -> torch.Tensor:
        self._fed = [*token_ids, *trees[0].token_ids.tolist()]
        length = len(self._text)
        if length != self._refill_at:
            return super().forward(token_ids, trees, meanwhile)
        logits = super().prefill([torch.tensor([*self._text, *token_ids])])
        self.cache.lengths[0] = length  # the new token is kept, as any, after the step
        return logits[:, None]

    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        self._text += [self._fed[entry] for entry in kept[0]]
        super().keep(kept)
