"""Runs a request's steps through compiled programs, and its prefill through the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pia.drafting.tree import DraftTree
from pia.models.layout import batch_layout
from pia.models.runner import SlabRunner
from pia.models.static.hooks import hooked
from pia.models.static.programs import Program, fits, load_program
from pia.models.static.step import states_of
from pia.models.static.store import ProgramFiles
from pia.models.static.weights import WeightsWatch


@dataclass(frozen=True)
class Programs:
    """A model's loaded programs."""

    one: Program
    tree: Program
    weights: WeightsWatch
    """Of the model whose weights they were made of."""

    @classmethod
    def load(cls, model: Any, files: ProgramFiles) -> Programs:
        """Loads the programs from their files."""
        return cls(load_program(files.one), load_program(files.tree), WeightsWatch(model))


class CompiledRunner(SlabRunner):
    """As `SlabRunner`, for one request; steps run in compiled programs on the same slab.

    Args:
        model: the model the programs were made of.
        programs: its programs.
        **options: as of `SlabRunner`.
    """

    def __init__(self, model: Any, programs: Programs, **options: Any) -> None:
        super().__init__(model, **options)
        self._programs = programs

    @staticmethod
    def _adapter_of(model: Any) -> None:
        """Models that need one are not compiled or captured."""

    def _launch(self, token_ids: Sequence[int], trees: Sequence[DraftTree]) -> torch.Tensor:
        assert self._masks is not None
        ids, depths, visible = map(torch.from_numpy, batch_layout(token_ids, trees))
        (start,), q = self.cache.lengths, ids.shape[1]
        self.cache.reserve(start + q + 1)  # programs are traced with more room than they attend over
        states = states_of(self.cache)
        if not fits(states, q):
            return super()._launch(token_ids, trees)
        mask = self._masks(torch.tensor([start]), depths, visible, start + q)
        program = self._programs.one if q == 1 else self._programs.tree
        logits = program(ids, depths + start, mask, torch.arange(start, start + q), states)
        return hooked(self.model, logits, input_ids=ids, position_ids=depths + start)
