"""Where a stage of training is, on disk: to go on from after the process has died."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pia.drafting.atomic_file import replacing
from pia.errors import ShrinkError

NAME = "checkpoint.pt"


@dataclass(frozen=True)
class StageCheckpoint:
    """The file of one stage.

    No state of random numbers is kept: batches follow from seed and step, and nothing else draws any (dropout is off).

    Args:
        folder: of the stage; made when the first checkpoint is written.
        key: names everything the result depends on, so that no stage goes on from another one's checkpoint.
    """

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / NAME

    def save(self, step: int, model: Any, optimizers: list[torch.optim.Optimizer]) -> None:
        """Takes the place of the last checkpoint.

        Args:
            step: that comes next.
            model: whose trained parameters are written.
            optimizers: of the model.

        Raises:
            OSError: it cannot be written; the last checkpoint is left as it was, and the message names the file.
        """
        content = {
            "key": self.key,
            "step": step,
            "model": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(self.path) as file:
                torch.save(content, file)
        except RuntimeError as error:  # PyTorch's writer of archives hides what the file said
            raise _disk_error(error, self.path) from error
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

    def load(self, model: Any, optimizers: list[torch.optim.Optimizer]) -> int | None:
        """Goes back to the checkpoint.

        Returns:
            the step that comes next; None if there is no checkpoint.

        Raises:
            ShrinkError: the checkpoint is damaged, or of another stage.
        """
        if not self.path.exists():
            return None
        content = self._content()
        if content["key"] != self.key:
            raise ShrinkError(
                f"{self.path} is of a stage with other settings, data or weights: delete it, or use another folder"
            )
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(content["model"][name])
        for optimizer, saved in zip(optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(content["step"])

    def _content(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise ShrinkError(f"{self.path} is damaged ({error}): delete it to begin this stage again") from error
        return content


def _disk_error(error: BaseException, path: Path) -> BaseException:
    """The `OSError` that an error came from, if it did."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            cause.filename = cause.filename or str(path)
            return cause
        cause = cause.__cause__ or cause.__context__
    return error
