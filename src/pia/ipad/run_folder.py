"""The folder of a shrink: its journal, its rounds, and the model in the end.

DIR/                 the small model, once it is done, with its manifest, card and report
DIR/rounds/round-03  the model after each round, a stock checkpoint
DIR/.shrink/         the journal, and what training needs to go on; most of it goes away at the end
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pia.drafting.atomic_file import replacing
from pia.errors import ShrinkError

_VERSION = 1
_RESULTS = ("config.json", "*.safetensors", "*.safetensors.index.json", "pia_shrink.json", "report*")
"""What makes a folder a model and a result; tokenizer and card are replaced by the next result."""
_AGAIN = "give the same options to go on with it, another folder for a new one, or --overwrite to begin anew"


class RunFolder:
    """Where a shrink keeps what it has done; one process at a time.

    Args:
        path: of the folder; its parent exists.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.state = self.path / ".shrink"
        self._journal = self.state / "journal.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; makes it first where there is none.

        Raises:
            ShrinkError: another process holds it, or something else lies there.
        """
        self._check_place()
        self.state.mkdir(parents=True, exist_ok=True)
        with open(self.state / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ShrinkError(
                    f"another process is shrinking into {self.path}; wait, or give another --out"
                ) from None
            self._sweep()
            yield

    def _check_place(self) -> None:
        if not self.path.absolute().parent.is_dir():
            raise ShrinkError(f"cannot write {self.path}: there is no folder {self.path.absolute().parent}")
        if self.path.exists() and not self.path.is_dir():
            raise ShrinkError(f"{self.path} exists already, and is no folder")
        if self.path.exists() and any(self.path.iterdir()) and not self.state.is_dir():
            raise ShrinkError(f"{self.path} holds something other than a shrink; give an empty or a new folder")

    def clear(self) -> None:
        """Throws away the shrink that lies here, finished or not; what else lies here stays.

        The journal goes first: without it the rest is nothing that a later run would go on from.
        """
        self._journal.unlink(missing_ok=True)
        self.clear_state()
        shutil.rmtree(self.path / "rounds", ignore_errors=True)
        for pattern in _RESULTS:
            for path in self.path.glob(pattern):
                path.unlink()

    def _sweep(self) -> None:
        """Removes what a process that was killed had begun to write."""
        for place in (self.path, self.path / "rounds", self.state, *self.state.glob("*/")):
            for left in [*place.glob(".*.tmp"), *place.glob(".*.tmp.old")]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    @property
    def num_state_bytes(self) -> int:
        """Of what only training needs, as far as it is there."""
        return sum(path.stat().st_size for path in self.state.rglob("*") if path.is_file())

    def clear_state(self) -> None:
        """Removes all that only training needs."""
        for child in self.state.iterdir():
            if child.is_dir():
                shutil.rmtree(child)

    def round_path(self, number: int) -> Path:
        """Of the model after a round; the first round is 1."""
        return self.path / "rounds" / f"round-{number:02}"

    def stage_path(self, number: int) -> Path:
        """Of what the training of a round needs to go on."""
        return self.state / f"round-{number:02}"

    def read(self) -> dict[str, Any] | None:
        """The journal; none before the first entry.

        Raises:
            ShrinkError: it is damaged, or of another version.
        """
        if not self._journal.exists():
            return None
        try:
            content = json.loads(self._journal.read_text(encoding="utf-8"))
            version = content["version"]
        except (ValueError, KeyError, TypeError):
            raise ShrinkError(f"{self._journal} is damaged; begin anew with --overwrite") from None
        if version != _VERSION:
            raise ShrinkError(
                f"{self._journal} is of version {version}, and this is {_VERSION}; begin anew with --overwrite"
            )
        return dict(content)

    def write(self, content: dict[str, Any]) -> None:
        """Replaces the journal; durable when it returns."""
        with replacing(self._journal) as file:
            file.write(json.dumps({"version": _VERSION, **content}).encode())

    def check_same(self, what: str, there: Any, here: Any) -> None:
        """Refuses to go on with something else than was begun.

        Raises:
            ShrinkError: they differ; says in what.
        """
        if there == here:
            return
        if isinstance(there, dict) and isinstance(here, dict):
            name = next(key for key in {**there, **here} if there.get(key) != here.get(key))
            self.check_same(f"{what} {name}", there.get(name), here.get(name))
        raise ShrinkError(f"{self.path} holds a shrink with {what} = {there}, and this one has {here}: {_AGAIN}")
