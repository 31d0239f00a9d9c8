"""Runs a request's steps as captured graphs, and its prefill through the model itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from pia.drafting.tree import DraftTree
from pia.models.runner import SlabRunner
from pia.models.static.graph_steps import SIZES, Captured, Lease
from pia.models.static.hooks import hooked

logger = logging.getLogger("pia")


class GraphRunner(SlabRunner):
    """As `SlabRunner`, for one request, on the slab that the captured steps know.

    Args:
        model: the model the steps are of.
        lease: the right to its captured steps.
        sizes: tokens that steps may feed; larger trees go through the model itself.
        **options: as of `SlabRunner`.
    """

    def __init__(self, model: Any, lease: Lease, sizes: Sequence[int] = SIZES, **options: Any) -> None:
        super().__init__(model, **options)
        self.lease = lease
        self._steps = lease.steps
        self._sizes = sorted(sizes)
        self._last_size: int | None = None
        self.cache = lease.steps.cache

    @staticmethod
    def _adapter_of(model: Any) -> None:
        """Models that need one are not compiled or captured."""

    def _launch(self, token_ids: Sequence[int], trees: Sequence[DraftTree]) -> torch.Tensor:
        (token_id,), (tree,) = token_ids, trees
        q = len(tree) + 1
        step = self._run(token_id, tree)
        if step is None:
            return super()._launch(token_ids, trees)
        logits, fed = step.logits[:, :q], {"input_ids": step.ids[:, :q], "position_ids": step.positions[:, :q]}
        return hooked(self.model, logits, **fed)

    def _run(self, token_id: int, tree: DraftTree) -> Captured | None:
        """The captured step that takes this tree, run; `None` where there is none or it cannot be had."""
        self._last_size = None
        size = next((size for size in self._sizes if size > len(tree)), None)
        if size is None or self._steps.failure is not None:
            return None
        try:
            step = self._steps.run(token_id, tree, size)
        except Exception as error:  # no memory for another graph, or a capture that this driver refuses
            self._steps.failure = f"{type(error).__name__}: {str(error)[:200]}"
            logger.warning("PIA goes on without captured steps: %s", self._steps.failure)
            return None
        self._last_size = size
        return step

    @torch.inference_mode()
    def keep(self, kept: Sequence[Sequence[int]]) -> None:
        if self._last_size is None:
            super().keep(kept)
        else:
            self._steps.keep(kept[0], self._last_size)
