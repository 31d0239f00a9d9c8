"""What is asked of a shrink: a model, what it shall become, and the text for it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pia.ipad.calibration import calibration_batches, importance_of
from pia.ipad.data import Rows, Split, read_rows, split
from pia.ipad.original import Original
from pia.ipad.plan import Plan, make_plan
from pia.ipad.preflight import check_before
from pia.ipad.progress import Progress
from pia.ipad.rounds import dealt_steps
from pia.ipad.sensitivity import measure_weights
from pia.ipad.settings import ShrinkConfig
from pia.ipad.structure import Structure, structure_of
from pia.ipad.target import Target

Source = str | os.PathLike[str]
"""A file, or the name of a dataset."""


@dataclass(frozen=True)
class Task:
    """All parts have been found to go together."""

    original: Original
    structure: Structure
    target: Target
    data: Split
    config: ShrinkConfig

    @classmethod
    def of(
        cls, original: Original, data: Source, held_out: Source | None, config: ShrinkConfig, progress: Progress
    ) -> Task:
        """Reads the data, and refuses what would fail later.

        Raises:
            ShrinkError: the model, the target or the data do not allow it.
        """
        structure = structure_of(original.model)
        target = Target(config.target, config.target_latency, config.wanted_shape(structure.shape))
        target.check()
        progress.doing("reading the data")
        rows = _rows(data, original, config)
        measured = None if held_out is None else _rows(held_out, original, config)
        parts = split(rows, measured, share=config.held_out_share)
        check_before(structure, target, parts, config)
        return cls(original, structure, target, parts, config)

    def plan(self, progress: Progress, *, measures_speed: bool) -> Plan:
        """The way to the target, by what the units are worth and how much the model minds losing some of each kind.

        Raises:
            ShrinkError: no shape meets the target, or there are fewer steps than rounds.
        """
        progress.doing("which units matter")
        model, config, rows = self.original.model, self.config, self.data.training
        scores = importance_of(model, rows, config, teacher=model)
        weights = None
        if self.target.shape is None:
            progress.doing("what each kind of cut costs")
            batches = calibration_batches(rows, config, model.device)
            weights = measure_weights(model, self.structure, scores, batches, config.limits)
        progress.doing("timing smaller models" if measures_speed or self.target.latency else "choosing the shapes")
        plan = make_plan(
            model, self.structure, self.target, scores=scores, limits=config.limits, step=config.round_share,
            weights=weights, measures_speed=measures_speed,
        )  # fmt: skip
        dealt_steps(config, rows, len(plan.rounds))  # refused now rather than after a teacher was asked
        return plan


def _rows(source: Source, original: Original, config: ShrinkConfig) -> Rows:
    settings = config.distil
    return read_rows(
        os.fspath(source), original.tokenizer, max_length=settings.max_length, prompt_weight=settings.prompt_weight
    )
