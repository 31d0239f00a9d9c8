"""Runs a request's steps as captured graphs, and its prefill through the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from pia.drafting.tree import DraftTree
from pia.models.runner import SlabRunner
from pia.models.static.graph_steps import SIZES, GraphSteps
from pia.models.static.step import hooked


class GraphRunner(SlabRunner):
    """As `SlabRunner`, for one request, on the slab that the captured steps know.

    Args:
        model: the model the steps are of.
        steps: its captured steps, taken for this runner as long as it lives.
        sizes: tokens that steps may feed; larger trees go through the model itself.
        **options: as of `SlabRunner`.

    Raises:
        RuntimeError: another runner has the steps.
    """

    def __init__(self, model: Any, steps: GraphSteps, sizes: Sequence[int] = SIZES, **options: Any) -> None:
        super().__init__(model, **options)
        if not steps.take(self):
            raise RuntimeError("the captured steps are in use by another request")
        self._steps = steps
        self._sizes = sorted(sizes)
        self._last_size: int | None = None
        self.cache = steps.cache

    def _launch(self, token_ids: Sequence[int], trees: Sequence[DraftTree]) -> torch.Tensor:
        (token_id,), (tree,) = token_ids, trees
        q = len(tree) + 1
        self._last_size = next((size for size in self._sizes if size >= q), None)
        if self._last_size is None:
            return super()._launch(token_ids, trees)
        logits = self._steps.run(token_id, tree, self._last_size)
        return hooked(self.model, logits, partial(self._steps.positions, self._last_size))[:, :q]

    @torch.inference_mode()
    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        if self._last_size is None:
            super().keep(kept)
        else:
            self._steps.keep(kept[0], self._last_size)
