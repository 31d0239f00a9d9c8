"""What a teacher says about all rows, on disk: its likeliest tokens and how probable all others are together.

The rows' places lie one behind the other, in shards of some rows each. A shard is there whole or not at all, so a
process that dies loses the shard it was at and nothing else. Values of 16 bits hold a log-probability to 1/2000 of
its value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pia.drafting.atomic_file import replacing
from pia.errors import ShrinkError
from pia.ipad.data import Batch, Rows, make_batch
from pia.ipad.data.batches import grouped
from pia.ipad.losses import MAX_LOGITS
from pia.ipad.processes import Processes
from pia.ipad.targets import SparseTargets
from pia.ipad.teacher import Teacher

_INDEX = "teacher.json"
_SHARD_PLACES = 1 << 16
_LOWEST = -60.0
"""Of a log-probability that is kept; float16 holds it, and its probability is nothing."""


class TeacherCache:
    """A teacher that has said it all already.

    Made by `TeacherCache.build`, it has the interface of the teacher it came from, except for hidden states.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], rows: Rows) -> None:
        self._folder = folder
        self._facts = facts
        self._top_k = int(facts["top_k"])
        places = np.array([num_places(row.weights) for row in rows])
        self._ends = np.cumsum(places)
        self._starts = self._ends - places
        self._shards = [_Shard(folder / name(n)) for n in range(len(_ranges(places)))]
        self._first_rows = np.array([first for first, _ in _ranges(places)])

    @classmethod
    def build(
        cls,
        teacher: Teacher,
        rows: Rows,
        folder: Path,
        *,
        top_k: int,
        temperature: float,
        batch_tokens: int = 8192,
        autocast_dtype: torch.dtype | None = None,
        on_shard: Callable[[int, int], None] | None = None,
    ) -> TeacherCache:
        """Asks a teacher about all rows, as far as the folder does not hold its answers already.

        Args:
            teacher: to ask; it is moved to the device of this process.
            rows: to train on.
            folder: for the shards; made if need be.
            top_k: tokens to keep; fewer if the vocabulary has no more.
            temperature: of the distributions.
            batch_tokens: most tokens of a forward, padding counted.
            autocast_dtype: of matrix products; that of the weights when None.
            on_shard: is told how many shards are there, and of how many, behind each one.

        Raises:
            ShrinkError: the folder holds what another teacher said, or about other rows.
            OSError: a shard cannot be written; the message names it, and those before it stay.
        """
        facts = {
            "teacher": teacher.fingerprint, "rows": rows.fingerprint, "top_k": min(top_k, teacher.vocab_size - 1),
            "temperature": temperature, "vocab_size": teacher.vocab_size,
            "arithmetic": str(autocast_dtype), "format": 1,
        }  # fmt: skip
        processes = Processes(teacher.models[0].device)
        if processes.is_main:
            teacher.to(processes.device)
            cls._fill(teacher, rows, folder, facts, batch_tokens, autocast_dtype, on_shard)
        processes.wait()
        return cls(folder, facts, rows)

    @staticmethod
    def _fill(
        teacher: Teacher, rows: Rows, folder: Path, facts: dict[str, Any], batch_tokens: int,
        autocast_dtype: torch.dtype | None, on_shard: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        """Writes the shards that are not there."""
        _claim(folder, facts)
        writer = _Writer(teacher, rows, facts, batch_tokens, autocast_dtype)
        ranges = _ranges(np.array([num_places(row.weights) for row in rows]))
        for number, (first, last) in enumerate(ranges):
            path = folder / name(number)
            if not path.exists():
                _write(path, save(writer.shard(first, last)))
            if on_shard is not None:
                on_shard(number + 1, len(ranges))

    @property
    def fingerprint(self) -> str:
        """Names teacher, rows, number of tokens kept and temperature."""
        return hashlib.sha256(_text(self._facts).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Width of the logits that were cut."""
        return int(self._facts["vocab_size"])

    @property
    def models(self) -> tuple[Any, ...]:
        """None: nothing runs."""
        return ()

    def to(self, device: torch.device) -> None:
        """Nothing to do: what is read goes where the batch is."""

    def targets(self, batch: Batch) -> SparseTargets:
        """What the teacher said at the places of a batch.

        Raises:
            ShrinkError: a shard is missing or damaged.
        """
        parts = [self._row(number) for number in batch.rows]
        ids, log_probs, rest = (torch.cat(part).to(batch.ids.device) for part in zip(*parts, strict=True))
        log_rest = rest.float()
        return SparseTargets(ids.long(), log_probs.float(), log_rest, float(self._facts["temperature"]))

    def _row(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shard = int(np.searchsorted(self._first_rows, number, side="right")) - 1
        base = self._starts[self._first_rows[shard]]
        return self._shards[shard].read(int(self._starts[number] - base), int(self._ends[number] - base))


class _Shard:
    """A file of answers, opened when it is first needed; pages are read as they are touched."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors: tuple[torch.Tensor, ...] | None = None

    def read(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids `[n, k]`, log-probabilities `[n, k]` and those of all other tokens together `[n]`."""
        if self._tensors is None:
            self._tensors = self._open()
        ids, log_probs, rest = (tensor[start:stop] for tensor in self._tensors)
        return _unsigned(ids), log_probs, rest

    def _open(self) -> tuple[torch.Tensor, ...]:
        try:
            with safe_open(self._path, "pt") as file:
                return tuple(file.get_tensor(key) for key in ("ids", "log_probs", "log_rest"))
        except (OSError, SafetensorError) as error:
            raise ShrinkError(f"{self._path} is missing or damaged ({error}): delete it and begin again") from error


class _Writer:
    """Makes the content of shards."""

    def __init__(
        self, teacher: Teacher, rows: Rows, facts: dict[str, Any], batch_tokens: int, dtype: torch.dtype | None
    ) -> None:
        self._teacher, self._rows, self._facts = teacher, rows, facts
        self._batch_tokens, self._autocast_dtype = batch_tokens, dtype

    def shard(self, first: int, last: int) -> dict[str, torch.Tensor]:
        """What the teacher says about rows `first` to `last`, in their order."""
        lengths = [len(row) for row in self._rows]
        order = sorted(range(first, last), key=lengths.__getitem__)
        found: dict[int, tuple[torch.Tensor, ...]] = {}
        for numbers in grouped(order, lengths, self._batch_tokens):
            found.update(self._answers(numbers))
        parts = [found[number] for number in range(first, last)]
        ids, log_probs, rest = (torch.cat(part).contiguous() for part in zip(*parts, strict=True))
        return {"ids": ids, "log_probs": log_probs, "log_rest": rest}

    def _answers(self, numbers: tuple[int, ...]) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Of each of some rows."""
        batch = make_batch(self._rows, numbers)
        device = self._device()
        counts = [num_places(self._rows[number].weights) for number in numbers]
        with (
            torch.no_grad(),
            torch.autocast(device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None),
        ):
            targets = self._teacher.targets(batch.to(device))
            step = max(1, MAX_LOGITS // self._teacher.vocab_size)
            pieces = [
                self._top(targets, start, min(start + step, sum(counts))) for start in range(0, sum(counts), step)
            ]
        columns = [torch.split(torch.cat(column), counts) for column in zip(*pieces, strict=True)] if pieces else []
        return ((number, tuple(column[line] for column in columns)) for line, number in enumerate(numbers))

    def _device(self) -> torch.device:
        device: torch.device = self._teacher.models[0].device
        return device

    def _top(self, targets: Any, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        log_probs, _ = targets.compared(None, start, stop, self._facts["temperature"])
        top = log_probs.topk(self._facts["top_k"])
        rest = torch.logsumexp(log_probs.scatter(-1, top.indices, -torch.inf), -1)
        ids = top.indices.to(torch.int16 if self._teacher.vocab_size <= 1 << 16 else torch.int32)
        kept = (values.clamp(min=_LOWEST).half().cpu() for values in (top.values, rest))
        return (ids.cpu(), *kept)


def num_places(weights: np.ndarray) -> int:
    """How many tokens of a row count as targets."""
    return int(np.count_nonzero(weights[1:]))


def name(number: int) -> str:
    """Of a shard's file."""
    return f"teacher-{number:05}.safetensors"


def _ranges(places: np.ndarray) -> list[tuple[int, int]]:
    """First row and the one behind the last of each shard."""
    ranges: list[tuple[int, int]] = []
    first, held = 0, 0
    for number, count in enumerate(places.tolist()):
        held += count
        if held >= _SHARD_PLACES or number == len(places) - 1:
            ranges.append((first, number + 1))
            first, held = number + 1, 0
    return ranges


def _unsigned(ids: torch.Tensor) -> torch.Tensor:
    """Ids of 16 bits are written as they are, and read with a sign that they do not have."""
    return ids.int() & 0xFFFF if ids.dtype == torch.int16 else ids


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Says whose answers are in a folder, or finds that they are another one's."""
    path = folder / _INDEX
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _write(path, _text(facts).encode())
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ShrinkError(f"{path} is damaged ({error}): delete the folder {folder}") from error
    wrong = [key for key in facts if not isinstance(before, dict) or before.get(key) != facts[key]]
    if wrong:
        raise ShrinkError(
            f"the teacher's cache in {folder} is another one's ({', '.join(wrong)} differ): delete it, or "
            "use another folder"
        )


def _text(facts: dict[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True)


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
