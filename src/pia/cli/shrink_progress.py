"""What `pia shrink` shows: a line for each round, and a bar while it trains."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from pia.cli.terminal import new_progress, note
from pia.ipad.progress import Progress

if TYPE_CHECKING:
    from pia.ipad.distiller import StepInfo
    from pia.ipad.record import RoundRecord
    from pia.ipad.shape import Shape
    from pia.ipad.shrinking import Shrunk

_LINE = "{:>5}  {:<44}  {:>6}  {:>16}  {:>6}  {:>16}  {:>6}"


class ShrinkProgress(Progress):
    """Shows a shrink on the terminal; a context.

    Args:
        is_quiet: show nothing but notes.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._bars = new_progress("{task.fields[state]}")
        self._task = self._bars.add_task("", total=None, state="")
        self._original: RoundRecord | None = None
        self._loss: float | None = None
        self._first_step = 0

    def __enter__(self) -> ShrinkProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        """Says it beside the output."""
        with self._aside():
            note(f"Note: {text}.")

    def doing(self, text: str) -> None:
        """Names what takes a while."""
        self._bars.reset(self._task, total=None, description=text, state="")

    def begin(self, original: RoundRecord, shapes: Sequence[Shape], done: Sequence[RoundRecord]) -> None:
        """The head of the table, the original, and the rounds of an earlier run."""
        self._original = original
        num = len(shapes)
        self._print(f"{num} round{'s' * (num > 1)} from {original.shape} to {shapes[-1]}")
        self._print(_LINE.format("round", "shape", "kept", "perplexity", "agrees", "tokens/s", "loss"))
        for record in (original, *done):
            self.end_round(record)

    def begin_training(self, number: int, shape: Shape, first_step: int, num_steps: int) -> None:
        """A new bar."""
        self._loss, self._first_step = None, first_step
        self._bars.reset(self._task, total=num_steps, description=f"round {number}, {shape}", state="")

    def step(self, info: StepInfo) -> None:
        """Moves the bar; the loss is a running mean."""
        self._loss = info.loss if self._loss is None else 0.9 * self._loss + 0.1 * info.loss
        self._bars.update(self._task, completed=info.step + 1 - self._first_step, state=f"loss {self._loss:.3f}")

    def end_round(self, record: RoundRecord) -> None:
        """A line of the table."""
        self._print(_line(record, self._original or record))

    def _print(self, text: str) -> None:
        if not self._is_quiet:
            with self._aside():
                print(text, flush=True)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Takes the bar away while something is printed: its own way would send standard output to the bar's stream."""
        if not self._bars.disable:
            self._bars.stop()
        yield
        if not self._bars.disable:
            self._bars.start()


def _line(record: RoundRecord, original: RoundRecord) -> str:
    loss = f"{record.loss_curve[-1][1]:.3f}" if record.loss_curve else ""
    agreement = "" if record.agreement is None else f"{record.agreement:.1%}"
    return _LINE.format(
        record.number or "",
        str(record.shape),
        f"{record.non_embedding / original.non_embedding:.1%}",
        _beside(record.perplexity, original.perplexity, ".3f"),
        agreement,
        _beside(record.tokens_per_second, original.tokens_per_second, ".1f"),
        loss,
    ).rstrip()


def _beside(value: float | None, original: float | None, form: str) -> str:
    """A figure, and its ratio to the original's."""
    if value is None:
        return ""
    return f"{value:{form}} ({value / original:.2f} x)" if original else f"{value:{form}}"


def show_result(done: Shrunk, *, as_json: bool) -> None:
    """Where the model is, and what can be done with it; or one JSON object."""
    record = done.record
    first, last = record.original, record.last
    if as_json:
        figures = ("parameters", "non_embedding", "perplexity", "kl", "agreement", "tokens_per_second")
        sides = {"original": first, "shrunk": last}
        content = {side: {name: getattr(of, name) for name in figures} for side, of in sides.items()}
        print(json.dumps({"path": str(done.path), "shape": str(last.shape), "rounds": last.number, **content}))
        return
    print(f"{done.path}: {last.shape}, {last.parameters / 1e6:,.2f} M parameters of {first.parameters / 1e6:,.2f} M")
    print(f"{done.path / 'report.html'} shows how it went.")
    print(f'Try it: pia generate {done.path} --prompt "Hello"')
