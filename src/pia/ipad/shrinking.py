"""Shrinks a model: what `pia shrink` does, for Python."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pia.errors import ShrinkError
from pia.ipad.card import licence_of, write_card
from pia.ipad.checkpoint import check_room, publish
from pia.ipad.cost import cost_of
from pia.ipad.decoder import weights_fingerprint
from pia.ipad.journal import Begun, Journal
from pia.ipad.manifest import write_manifest
from pia.ipad.original import Original
from pia.ipad.plan import Plan
from pia.ipad.processes import Processes
from pia.ipad.progress import Progress
from pia.ipad.quality import measure
from pia.ipad.record import RoundRecord, ShrinkRecord, versions
from pia.ipad.report import write_report
from pia.ipad.rounds import Rounds, saved_dtype
from pia.ipad.run_folder import RunFolder
from pia.ipad.selection import Selection
from pia.ipad.settings import ShrinkConfig
from pia.ipad.speed import measure_speeds
from pia.ipad.task import Task
from pia.ipad.teacher import Teacher
from pia.ipad.teacher_choice import teacher_for


@dataclass(frozen=True)
class Shrunk:
    """What came of a shrink."""

    path: Path
    """Of the small model, a stock checkpoint."""
    record: ShrinkRecord
    """All that was done and measured."""


def shrink(
    model: Any,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    held_out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> Shrunk:
    """Prunes and distils a model, in rounds, into a smaller one that stock tools load.

    Killed at any moment, the same call goes on where it was, to the same weights.

    Args:
        model: a name on the Hub, a folder, or a loaded causal language model of Transformers; it is not changed.
        data: what to distil on: a text file, JSON lines, Parquet, or the name of a dataset on the Hub.
        out: folder of the small model; new, empty, or of the same shrink, to go on with.
        tokenizer: of a loaded model.
        held_out: data to measure quality on; by default a share of `data` is held out.
        device: where a model that is given by name runs; "auto" is a GPU if there is one.
        overwrite: throw away the shrink that `out` holds, once the model and the data are found to be in order.
        command: how this was called, for the manifest.
        progress: is told what happens.
        **options: see `ShrinkConfig` and `DistillConfig`.

    Raises:
        ShrinkError: the model, the target, the data or the folder do not allow it.
        ModelError: the model cannot be loaded.
        OSError: something cannot be written, such as on a full disk; the next call goes on.
    """
    config = ShrinkConfig.of(**options)
    processes = Processes()
    progress = progress if progress is not None and processes.is_main else Progress()
    folder = RunFolder(out)
    with folder.locked() if processes.is_main else nullcontext():
        processes.wait()
        progress.doing("loading the model")
        original = Original.of(model, tokenizer, device=str(processes.device) if processes.num > 1 else device)
        task = Task.of(original, data, held_out, config, progress)
        whole = _Shrink(task, folder, Processes(original.model.device), command, progress)
        return whole.run(overwrite=overwrite)


def plan_shrink(
    model: Any,
    data: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    held_out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """What `shrink` would do with the same arguments, without training or writing anything.

    Raises:
        ShrinkError: the model, the target or the data do not allow it.
        ModelError: the model cannot be loaded.
    """
    config = ShrinkConfig.of(**options)
    progress = progress or Progress()
    progress.doing("loading the model")
    original = Original.of(model, tokenizer, device=device)
    return Task.of(original, data, held_out, config, progress).plan(progress, measures_speed=True)


class _Shrink:
    """One shrink, from its journal on."""

    def __init__(self, task: Task, folder: RunFolder, processes: Processes, command: str, progress: Progress) -> None:
        self.task = task
        self.original = task.original
        self.structure = task.structure
        self.data = task.data
        self.config = task.config
        self.folder = folder
        self.processes = processes
        self.progress = progress
        self.command = command
        progress.begin_with(self.original.name, self.structure.family, self._unmeasured(), self.data)

    def _journal(self) -> Journal:
        begun = Begun(
            weights_fingerprint(self.original.model),
            self.data.training.fingerprint,
            self.data.held_out.fingerprint,
            self.config.to_json(),
        )
        record = ShrinkRecord(
            self.original.name, self.structure.family, self._unmeasured(), command=self.command, seed=self.config.seed,
            data_fingerprint=begun.training_data, config=begun.settings, versions=versions(),
        )  # fmt: skip
        return Journal.open(self.folder, self.processes, begun, record)

    def run(self, *, overwrite: bool) -> Shrunk:
        """Does what is left."""
        if overwrite and self.processes.is_main:
            self.folder.clear()
        self.processes.wait()
        self.journal = self._journal()
        self._measure_original()
        self._choose_way()
        record = self.journal.record
        if problem := self.structure.vllm_problem(self.journal.shapes[-1]):
            self.progress.note(problem)
        self.progress.begin(record.original, self.journal.shapes, record.rounds)
        if self.journal.next_round is not None:
            check_room(self.folder.path, self._bytes_to_write())
            self._rounds().run()
        return self._finish()

    def _unmeasured(self) -> RoundRecord:
        cost = cost_of(self.structure, self.structure.shape)
        everything = Selection.everything(self.structure.shape)
        return RoundRecord(0, self.structure.shape, everything, cost.parameters, cost.non_embedding)

    def _measure_original(self) -> None:
        original = self.journal.record.original
        if original.perplexity is not None:
            return
        self.progress.doing("measuring the original")
        quality = measure(self.original.model, self.data.held_out)
        speed = measure_speeds({"original": self.original.model})["original"].tokens_per_second
        self.journal.set_original(replace(original, perplexity=quality.perplexity, tokens_per_second=speed))

    def _choose_way(self) -> None:
        """The shapes of all rounds, once and for all: a latency target would not come out the same again."""
        if self.journal.shapes:
            return
        plan = self.task.plan(self.progress, measures_speed=False)
        shapes = [planned.shape for planned in plan.rounds]
        if self.config.on_policy_steps:  # a round of its own, which cuts nothing
            shapes.append(shapes[-1])
        assert plan.scores is not None
        self.journal.set_shapes(shapes, plan.scores)

    def _rounds(self) -> Rounds:
        return Rounds(self.original, self._teacher(), self.data, self.config, self.journal, self.progress)

    def _teacher(self) -> Teacher:
        def on_shard(done: int, total: int) -> None:
            self.progress.doing(f"asking the original about all rows: {done} of {total}")

        model, folder = self.original.model.to(self.processes.device), self.folder.state / "teacher"
        return teacher_for(self.config.distil, model, self.data.training, folder, on_shard)

    def _bytes_to_write(self) -> int:
        """What the rest may write at most: the rounds' models and the last one again, and a training's checkpoint.

        A checkpoint of training holds weights and two moments in float32, and stands beside its predecessor for a
        moment; the moments of the round before stand there as well, and a cached teacher all the time.
        """
        done = len(self.journal.record.rounds)
        sizes = [cost_of(self.structure, shape).parameters for shape in self.journal.shapes[done:]]
        saved = saved_dtype(self.original, self.config).itemsize
        settings = self.config.distil
        asked = settings.needs_teacher and settings.teacher == "cache"
        width = 4 if self.original.model.config.vocab_size <= 1 << 16 else 6
        cached = width * settings.top_k * self.data.training.num_tokens if asked else 0
        needed = (sum(sizes) + sizes[-1]) * saved + (2 * 12 + 2 * 8) * sizes[0] + cached
        return max(0, needed - self.folder.num_state_bytes)

    def _finish(self) -> Shrunk:
        """Puts the last model, with all that is to be known about it, where it belongs."""
        record = self.journal.record
        if not record.rounds:
            raise ShrinkError(
                f"no round was kept, so there is no smaller model: {record.notes[-1]}. Give more --steps, a smaller "
                "--round-share or a higher --max-perplexity"
            )
        if self.processes.is_main:
            self._publish(record)
        self.processes.wait()
        return Shrunk(self.folder.path, record)

    def _publish(self, record: ShrinkRecord) -> None:
        self.progress.doing("writing the model and the report")
        source = self.folder.round_path(len(record.rounds))
        if source.exists() or not (self.folder.path / "config.json").exists():  # the user may have deleted the rounds
            publish(source, self.folder.path)
        write_manifest(record, self.folder.path)
        write_card(record, self.folder.path, licence=licence_of(Path(self.original.name)))
        write_report(record, self.folder.path)
        self.folder.clear_state()
