"""What a shrink has done so far, written down so that it can go on after being killed at any moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pia.ipad.processes import Processes
from pia.ipad.record import RoundRecord, ShrinkRecord
from pia.ipad.run_folder import RunFolder
from pia.ipad.scores import Scores
from pia.ipad.selection import Selection
from pia.ipad.shape import Shape


@dataclass(frozen=True)
class Begun:
    """What must be the same when a shrink goes on."""

    model: str
    """SHA-256 of the original's weights."""
    training_data: str
    """Fingerprint of the rows to train on."""
    held_out: str
    """Fingerprint of those to measure on."""
    settings: dict[str, Any]


@dataclass
class Journal:
    """The state of a shrink, as the folder has it. Every change is durable before the next step is taken.

    Decisions that rest on a measurement of time, which would come out otherwise a second time, are in here for that
    reason too: the shapes.
    """

    folder: RunFolder
    processes: Processes
    """The main one writes, and what it found holds for all."""
    begun: Begun
    record: ShrinkRecord
    shapes: list[Shape] = field(default_factory=list)
    """Of each round; empty until they are known."""
    cut: Selection | None = None
    """The units, of the model before, that the round under way keeps."""
    is_over: bool = False
    """No further round shall follow."""

    @classmethod
    def open(cls, folder: RunFolder, processes: Processes, begun: Begun, new_record: ShrinkRecord) -> Journal:
        """The journal of a folder, or a new one.

        Raises:
            ShrinkError: the folder holds a shrink of something else, or its journal is damaged.
        """
        content = folder.read()
        if content is None:
            return cls(folder, processes, begun, new_record)
        for name, here in asdict(begun).items():
            folder.check_same(name.replace("_", " "), content["begun"][name], here)
        return cls(
            folder,
            processes,
            begun,
            ShrinkRecord.from_json(content["record"]),
            [Shape(**sizes) for sizes in content["shapes"]],
            None if content["cut"] is None else Selection.from_json(content["cut"]),
            content["is_over"],
        )

    def save(self) -> None:
        """Writes it down."""
        self.folder.write(
            {
                "begun": asdict(self.begun),
                "record": self.record.to_json(),
                "shapes": [asdict(shape) for shape in self.shapes],
                "cut": None if self.cut is None else self.cut.to_json(),
                "is_over": self.is_over,
            }
        )

    @property
    def next_round(self) -> int | None:
        """Number of the round to do next, or to go on with."""
        number = len(self.record.rounds) + 1
        return None if self.is_over or number > len(self.shapes) else number

    def set_original(self, original: RoundRecord) -> None:
        """What the original does is measured."""
        self._change(record=replace(self.record, original=original))

    def set_shapes(self, shapes: list[Shape], scores: Scores) -> None:
        """The way is known."""
        self._change(shapes=shapes, record=replace(self.record, scores=scores))

    def set_cut(self, cut: Selection) -> None:
        """The units that stay in this round are chosen."""
        self._change(cut=cut)

    def keep_round(self, record: RoundRecord) -> None:
        """A round is done, and its model is saved."""
        self._change(cut=None, record=replace(self.record, rounds=[*self.record.rounds, record]))

    def end(self, *notes: str) -> None:
        """No round follows, and why."""
        self._change(cut=None, is_over=True, record=replace(self.record, notes=[*self.record.notes, *notes]))

    def _change(self, **values: Any) -> None:
        for name, value in self.processes.from_main(values).items():
            setattr(self, name, value)
        if self.processes.is_main:
            self.save()
        self.processes.wait()
