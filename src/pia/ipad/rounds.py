"""The iterative schedule (arXiv 2312.05795): cut a little, distil from the original, measure, and again.

Weights go on from what was saved, so that a shrink that was killed and one that was not come to the same bytes.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from pia.bench.memory import PeakMemory
from pia.errors import ShrinkError
from pia.ipad.calibration import importance_of
from pia.ipad.checkpoint import load_model, save_model
from pia.ipad.cost import cost_of
from pia.ipad.cut import cut
from pia.ipad.data import Batches, Rows, Split
from pia.ipad.distiller import Distiller, StepInfo
from pia.ipad.equality import check_cut
from pia.ipad.journal import Journal
from pia.ipad.loss_curve import LossCurve
from pia.ipad.moments import Moments, cut_moments, read_moments, save_moments
from pia.ipad.on_policy import OnPolicyConfig, train_on_policy
from pia.ipad.original import Original
from pia.ipad.progress import Progress
from pia.ipad.quality import measure
from pia.ipad.record import RoundRecord
from pia.ipad.scores import Scores
from pia.ipad.selection import Selection
from pia.ipad.settings import ShrinkConfig
from pia.ipad.speed import measure_speeds
from pia.ipad.structure import structure_of
from pia.ipad.teacher import Teacher

_CHECKED_TOKENS = 64
"""Of the row on which cut and masked model are compared."""
_SPEED_ROUNDS = 5


def steps_of_rounds(num_steps: int, num_rounds: int, last_share: float) -> list[int]:
    """How many steps each round trains: the last one its share, the others the rest, evenly; at least one each.

    Raises:
        ShrinkError: there are fewer steps than rounds.
    """
    if num_steps < num_rounds:
        raise ShrinkError(f"{num_steps} steps do not reach for {num_rounds} rounds; give more, or a larger round_share")
    if num_rounds == 1:
        return [num_steps]
    others = num_rounds - 1
    rest = min(max(round(num_steps * (1 - last_share)), others), num_steps - 1)
    ends = [rest * number // others for number in range(num_rounds)]
    return [*(end - begin for begin, end in pairwise(ends)), num_steps - rest]


def dealt_steps(config: ShrinkConfig, rows: Rows, num_rounds: int) -> list[int]:
    """The steps of each round; in all as many as were asked for, or as one pass over the rows takes.

    Raises:
        ShrinkError: there are fewer steps than rounds.
    """
    steps = config.steps or len(Batches(rows, config.distil.batch_tokens, config.seed).epoch(0))
    return steps_of_rounds(steps, num_rounds, config.last_share)


class Rounds:
    """Does what is left to do of a shrink.

    Args:
        original: the model to shrink; it is not changed.
        teacher: what the student learns from: the original, online or from a cache.
        data: rows to train on and rows held out.
        config: how.
        journal: where it stands.
        progress: is told.
    """

    def __init__(
        self,
        original: Original,
        teacher: Teacher,
        data: Split,
        config: ShrinkConfig,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self.original = original.model
        self.tokenizer = original.tokenizer
        self.teacher = teacher
        self.data = data
        self.config = config
        self.journal = journal
        self.processes = journal.processes
        self.progress = progress
        self.dtype = saved_dtype(original, config)
        self.steps = dealt_steps(config, data.training, len(journal.shapes) - bool(config.on_policy_steps))

    def run(self) -> None:
        """Does the rounds that are left.

        Raises:
            ShrinkError: a cut is not what it should be, or training fails.
            OSError: something cannot be written; what was done stays, and the next run goes on from it.
        """
        while (number := self.journal.next_round) is not None:
            with PeakMemory(self.original.device) as memory:
                started = time.perf_counter()
                record = self._trained(number)
            record = replace(record, seconds=time.perf_counter() - started, peak_bytes=memory.num_bytes)
            record = self.processes.from_main(record)
            if self._is_below_floor(record):
                self._roll_back(record)
            else:
                self.journal.keep_round(record)
                self.progress.end_round(record)
            if self.processes.is_main:  # this round's own is kept: the next one takes over its moments
                shutil.rmtree(self.journal.folder.stage_path(number - 1), ignore_errors=True)

    def _trained(self, number: int) -> RoundRecord:
        """Cuts, trains and saves the model of a round; its figures are those of what was saved."""
        if number > len(self.steps):
            student, units, curve = self._on_policy(number)
        else:
            student, units, moments = self._cut(number)
            curve = self._distil(student, number, units, moments)
        path = self.journal.folder.round_path(number)
        self.progress.doing(f"saving round {number}")
        if self.processes.is_main:
            save_model(student, self.tokenizer, path, self.dtype)
        self.processes.wait()
        student = load_model(path, self.original)
        self.progress.doing(f"measuring round {number}")
        structure = structure_of(student)
        cost = cost_of(structure, structure.shape)
        quality = measure(student, self.data.held_out, self.original)
        return RoundRecord(
            number, structure.shape, units, cost.parameters, cost.non_embedding,
            quality.perplexity, quality.kl, quality.agreement, self._speed(student), curve,
        )  # fmt: skip

    def _cut(self, number: int) -> tuple[Any, Selection, Moments | None]:
        """The student of a round before training, its units as indices of the original's, and moments for them."""
        before = self._before(number)
        if self.journal.cut is None:
            self.progress.doing(f"round {number}: which units matter")
            scores = self._scores(number, before)
            self.journal.set_cut(scores.select(self.journal.shapes[number - 1]))
        selection = self.journal.cut
        assert selection is not None
        self.progress.doing(f"round {number}: cutting")
        student = cut(before, selection)
        check_cut(before, student, selection, self._checked_ids())
        moments = read_moments(self._moments_path(number - 1))
        if moments is not None:
            moments = cut_moments(moments, before, structure_of(before), selection)
        return student, self.journal.record.last.selection.then(selection), moments

    def _moments_path(self, number: int) -> Path:
        return self.journal.folder.stage_path(number) / "moments.safetensors"

    def _before(self, number: int) -> Any:
        if number == 1:
            return self.original
        return load_model(self.journal.folder.round_path(number - 1), self.original)

    def _scores(self, number: int, model: Any) -> Scores:
        """The first round's are known: the way was chosen by them."""
        if number == 1 and self.journal.record.scores is not None:
            return self.journal.record.scores
        return importance_of(model, self.data.training, self.config, teacher=self.original)

    def _checked_ids(self) -> torch.Tensor:
        row = max(self.data.training, key=len)
        return torch.from_numpy(row.ids[None, :_CHECKED_TOKENS]).long().to(self.original.device)

    def _distil(self, student: Any, number: int, units: Selection, moments: Moments | None) -> list[tuple[int, float]]:
        first, num, total = sum(self.steps[: number - 1]), self.steps[number - 1], sum(self.steps)
        curve = LossCurve(self.journal.folder.stage_path(number) / "losses.jsonl")

        def on_step(info: StepInfo) -> None:
            curve.add(info.step - first, info.loss)
            self.progress.step(info)

        self.progress.begin_training(number, self.journal.shapes[number - 1], first, num)
        distiller = Distiller(
            student,
            self.teacher,
            self.data.training,
            self.config.distil,
            seed=self.config.seed,
            folder=self.journal.folder.stage_path(number),
            first_step=first,
            num_steps=num,
            lr_from=1.0,
            lr_to=0.0 if first + num == total else 1.0,  # it falls in the last round alone: the others only prepare it
            on_step=on_step,
            hidden_channels=units.hidden,
            moments=moments,
        )
        distiller.run()
        if self.processes.is_main and distiller.moments is not None:
            save_moments(distiller.moments, self._moments_path(number))
        return curve.points()

    def _on_policy(self, number: int) -> tuple[Any, Selection, list[tuple[int, float]]]:
        """The round behind the last cut: the student writes, and the original corrects."""
        student, first = self._before(number), sum(self.steps)
        num, folder = self.config.on_policy_steps, self.journal.folder.stage_path(number)
        curve = LossCurve(folder / "losses.jsonl")

        def on_step(step: int, loss: float) -> None:
            curve.add(step - 1, loss)
            self.progress.step(StepInfo(first + step - 1, loss, loss, 0.0, 0, 0.0))

        self.progress.begin_training(number, self.journal.shapes[number - 1], first, num)
        temperature = self.config.distil.temperature
        train_on_policy(
            student, self.original, self.tokenizer, self.data.training,
            OnPolicyConfig(num_steps=num, temperature=temperature), seed=self.config.seed, folder=folder / "trl",
            on_step=on_step,
        )  # fmt: skip
        return student, self.journal.record.last.selection, curve.points()

    def _speed(self, student: Any) -> float:
        """Tokens per second, on the scale of the original's: both are timed in turns, as machines have busy times."""
        speeds = measure_speeds({"original": self.original, "student": student}, rounds=_SPEED_ROUNDS)
        reference = self.journal.record.original.tokens_per_second
        assert reference is not None
        return reference * speeds["student"].tokens_per_second / speeds["original"].tokens_per_second

    def _is_below_floor(self, record: RoundRecord) -> bool:
        floor = self.config.max_perplexity
        return floor is not None and not self._against_original(record) <= floor

    def _against_original(self, record: RoundRecord) -> float:
        """Perplexity as a multiple of the original's."""
        original = self.journal.record.original.perplexity
        assert record.perplexity is not None and original is not None
        return record.perplexity / original

    def _roll_back(self, record: RoundRecord) -> None:
        """Leaves the models before as the last ones."""
        ratio = self._against_original(record)
        note = (
            f"round {record.number} ({record.shape}) was rolled back: its perplexity of {record.perplexity:.3f} is "
            f"{ratio:.3f} x the original's, above the floor of {self.config.max_perplexity:g} x"
        )
        if self.processes.is_main:
            shutil.rmtree(self.journal.folder.round_path(record.number), ignore_errors=True)
        self.journal.end(note)
        self.progress.note(note)


def saved_dtype(original: Original, config: ShrinkConfig) -> torch.dtype:
    """Of the checkpoints that are written."""
    return original.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
