"""Records what is generated, so that it can be replayed: `pia replay` says what drafts would have saved."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pia.drafting.top_tokens import TopTokens
from pia.errors import TraceError, UnsupportedOptionError

if TYPE_CHECKING:
    import torch

    from pia.decoding.request import Request
    from pia.decoding.stats import Step

logger = logging.getLogger("pia")

_HEAD = b'{"prompt_ids":'
"""How every line begins."""


class TraceRecorder:
    """Appends finished requests to a file, as token ids; for any number of threads, and of processes with JSON lines.

    Give it to `Lookahead(recorder=...)`, or call `record` from wherever requests end. With JSON lines (.jsonl) a
    request is one line, written at once, so a crash loses at most the one being written: the format for production.
    An .npz file is compact and is rewritten (atomically) at each request: for a few.

    Prompts and answers are what users wrote and read: treat the file accordingly.

    Args:
        path: .jsonl or .npz; an existing trace is continued.
        top_k: with each output token keep so many of the likeliest tokens there and their probabilities (those of the
            model's raw logits at temperature 1), so that a replay can draft from them; 0 for none.

    Raises:
        TraceError: the name says neither, the file holds something else, or it cannot be written.
        UnsupportedOptionError: `top_k` is no number of tokens.
    """

    def __init__(self, path: str | os.PathLike[str], *, top_k: int = 0) -> None:
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 0:
            raise UnsupportedOptionError(f"top_k must be a whole number of at least 0, got {top_k!r}")
        self.path = Path(path)
        self.top_k = top_k
        self.num_recorded = 0
        self.num_failed = 0
        """Requests that could not be written; the first is reported in the log."""
        self._lock = threading.Lock()
        suffix = self.path.suffix.lower()
        if suffix not in (".jsonl", ".npz"):
            raise TraceError(f"{path} is no name for a recording; end it with .jsonl (or .npz for a few requests)")
        self._is_lines = suffix == ".jsonl"
        try:
            self._mend() if self._is_lines else self._load()
        except OSError as error:
            raise TraceError(
                f"cannot record to {path}: {error.strerror or error}; "
                "make sure that the folder exists and is writable, or choose another path"
            ) from error

    def record(
        self, prompt_ids: Sequence[int], output_ids: Sequence[int], *, top: TopTokens | None = None, **facts: Any
    ) -> None:
        """Appends a finished request.

        What cannot be written is counted and logged, not raised: the answer is worth more than its record.

        Args:
            prompt_ids: the prompt, `[n]`.
            output_ids: what the model wrote, `[m]`, without the end-of-text token.
            top: the likeliest tokens at the places that they come from, `[m, k]`.
            **facts: `model`, `tokenizer` (its fingerprint), and whatever else a line shall carry.

        Raises:
            ValueError: `top` does not fit the output.
        """
        from pia.bench.trace_top import as_lists, checked

        prompt, output = [int(token) for token in prompt_ids], [int(token) for token in output_ids]
        facts = {name: value for name, value in facts.items() if value is not None}
        top = None if top is None else checked(*top, len(output))
        with self._lock:
            try:
                if self._is_lines:
                    extra = {} if top is None else as_lists(top)
                    self._append({"prompt_ids": prompt, "output_ids": output, **facts, **extra})
                else:
                    self._rewrite(prompt, output, top, facts)
            except OSError as error:
                self.num_failed += 1
                if self.num_failed == 1:
                    logger.warning("PIA cannot record to %s: %s", self.path, error.strerror or error)
            else:
                self.num_recorded += 1

    def _append(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        with self._opened() as handle:
            end = os.fstat(handle).st_size
            if os.write(handle, line) < len(line):  # no room: half a line would spoil the next
                os.ftruncate(handle, end)
                raise OSError("the disk is full")

    def _mend(self) -> None:
        """Creates the file, or cuts off a last line that a crash left unfinished."""
        with self._opened() as handle:
            size = os.fstat(handle).st_size
            end = _line_start(handle, size)  # just behind the last whole line
            if size and not self._is_ours(handle, end):
                raise TraceError(f"{self.path} holds something else than a recording; choose another path")
            if end < size:
                logger.warning("PIA cuts an unfinished last line off %s", self.path)
                os.ftruncate(handle, end)

    def _is_ours(self, handle: int, end: int) -> bool:
        """Whether the last whole line is a recorded request; without one, whether the file begins as a line does."""
        if end == 0:
            return _HEAD.startswith(os.pread(handle, len(_HEAD), 0))
        start = _line_start(handle, max(0, end - 1))
        try:
            fields = json.loads(os.pread(handle, end - start, start))
        except ValueError:
            return False
        return isinstance(fields, dict) and {"prompt_ids", "output_ids"} <= fields.keys()

    @contextlib.contextmanager
    def _opened(self) -> Any:
        """The file for appending, locked against other processes where the system can."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def _load(self) -> None:
        from pia.bench.trace import Trace

        exists = self.path.exists()
        self._trace = Trace.load(self.path) if exists else Trace(self.path.stem, [], [])
        self._trace.save(self.path)  # so that what cannot be written shows now

    def _rewrite(self, prompt: list[int], output: list[int], top: TopTokens | None, facts: dict[str, Any]) -> None:
        trace = replace(self._trace.with_request(prompt, output, top), meta={**self._trace.meta, **facts})
        trace.save(self.path)
        self._trace = trace

    def __repr__(self) -> str:
        return f"TraceRecorder({self.path}, {self.num_recorded} recorded)"


def _line_start(handle: int, end: int) -> int:
    """Where the line begins that goes on to `end`: behind the newline before it, or at 0."""
    while end:
        start = max(0, end - 65536)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def recorded(
    steps: Generator[Step, None, None], requests: Sequence[Request], recorder: TraceRecorder | None, **facts: Any
) -> Generator[Step, None, None]:
    """Passes steps on and records each request as it finishes; one that is broken off is not recorded."""
    tops: list[list[TopTokens]] = [[] for _ in requests]
    with closing(steps):
        for step in steps:
            if step.top is not None:
                tops[step.row].append(step.top)
            if recorder is not None and step.finish_reason is not None:
                request = requests[step.row]
                output = until_stop(request.output_ids, request.stopping.eos_ids)
                top = _joined(tops[step.row], len(output))
                recorder.record(request.prompt_ids[0].tolist(), output, top=top, **facts)
            yield step


def _joined(parts: Sequence[TopTokens], length: int) -> TopTokens | None:
    """The likeliest tokens of an output's first `length` places, from those of its steps.

    None where logits were broken, or fewer tokens than that were possible at all.
    """
    if not parts:
        return None
    ids, probs = (np.concatenate(arrays)[:length] for arrays in zip(*parts, strict=True))
    return TopTokens(ids, probs) if (ids >= 0).all() and np.isfinite(probs).all() else None


def record_rows(
    recorder: TraceRecorder,
    prompts: torch.Tensor,
    mask: torch.Tensor | None,
    sequences: torch.Tensor,
    stop_ids: Collection[int],
    **facts: Any,
) -> None:
    """Records what Transformers' own loop generated for a batch.

    Args:
        recorder: where to.
        prompts: `[rows, length]`, padded on the left.
        mask: likewise, 0 at the padding.
        sequences: prompts and outputs, `[rows, longer]`.
        stop_ids: tokens that end an output.
        **facts: as for `TraceRecorder.record`.
    """
    for row in range(len(prompts)):
        prompt = prompts[row] if mask is None else prompts[row][mask[row] != 0]
        output = sequences[row, prompts.shape[1] :].tolist()
        recorder.record(prompt.tolist(), until_stop(output, stop_ids), **facts)


def until_stop(token_ids: list[int], stop_ids: Collection[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return token_ids[: next((place for place, token in enumerate(token_ids) if token in stop_ids), None)]


def model_name(model: Any) -> str:
    """What a recording says of a model: its name on the Hub, or its folder's; never where that folder is."""
    name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
    return name if name.count("/") == 1 and not Path(name).is_absolute() else Path(name).name
