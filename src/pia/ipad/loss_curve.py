"""The training losses of a round, on disk: a shrink that goes on after being killed shows the whole curve."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path


class LossCurve:
    """Appends a line for each step.

    Args:
        path: of the file; its folder need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, step: int, loss: float) -> None:
        """The loss of a step of the round; one that is trained again takes the place of the first."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps([step, loss])}\n")

    def points(self) -> list[tuple[int, float]]:
        """Step and loss of each, in order."""
        losses: dict[int, float] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # a line that was cut off as the process died; its step comes again
                    step, loss = json.loads(line)
                    losses[step] = loss
        return sorted(losses.items())
