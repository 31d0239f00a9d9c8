"""What a shrink tells about itself while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from pia.ipad.data import Split
from pia.ipad.distiller import StepInfo
from pia.ipad.record import RoundRecord
from pia.ipad.shape import Shape


class Progress:
    """Keeps silent; derive from it to show something."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def doing(self, text: str) -> None:
        """What takes a while now."""

    def begin_with(self, model: str, family: str, original: RoundRecord, data: Split) -> None:
        """Model and data are read: the name of the one, and the rows of the other."""

    def begin(self, original: RoundRecord, shapes: Sequence[Shape], done: Sequence[RoundRecord]) -> None:
        """The way is known: the shape of every round, of which some are done already."""

    def begin_training(self, number: int, shape: Shape, first_step: int, num_steps: int) -> None:
        """A round's model is cut and will be trained; steps are numbered over the whole run."""

    def step(self, info: StepInfo) -> None:
        """A step of training is done."""

    def end_round(self, record: RoundRecord) -> None:
        """A round is done and saved."""
