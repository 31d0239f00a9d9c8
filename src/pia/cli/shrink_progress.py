"""What `pia shrink` shows: what it works on, a line for each round, and a bar while it trains."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pia.cli.shrink_table import RoundsTable
from pia.cli.terminal import note
from pia.ipad.progress import Progress

if TYPE_CHECKING:
    from pia.ipad.data import Rows, Split
    from pia.ipad.distiller import StepInfo
    from pia.ipad.record import RoundRecord
    from pia.ipad.shape import Shape
    from pia.ipad.shrinking import Shrunk


class ShrinkProgress(Progress):
    """Shows a shrink on the terminal; a context.

    Args:
        is_quiet: show nothing but notes.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._bars = _new_bars()
        self._task = self._bars.add_task("", total=None, state="")
        self._table: RoundsTable | None = None
        self._num_rounds = 0
        self._loss: float | None = None
        self._first_step = 0
        self._tokens = 0
        self._started = 0.0

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
        self._show(text, None)

    def begin_with(self, model: str, family: str, original: RoundRecord, data: Split) -> None:
        """What is shrunk, and on what."""
        training, held_out = data
        self._print(f"Model     {model}: {family}, {original.shape}")
        self._print(
            f"          {original.parameters / 1e6:,.2f} M parameters, {original.non_embedding / 1e6:,.2f} M without "
            "embeddings"
        )
        cut = f"; {training.num_cut:,} lost what was too long" if training.num_cut else ""
        self._print(f"Training  {_counted(training)}{cut}")
        self._print(f"Held out  {_counted(held_out)}")

    def begin(self, original: RoundRecord, shapes: Sequence[Shape], done: Sequence[RoundRecord]) -> None:
        """The head of the table, the original, and the rounds of an earlier run."""
        self._table = RoundsTable(original, shapes)
        self._num_rounds = len(shapes)
        self._print(f"Aim       {shapes[-1]} in {self._num_rounds} round{'s' * (self._num_rounds > 1)}\n")
        self._print(self._table.head)
        for record in (original, *done):
            self._print(self._table.line(record))
        if done and len(done) < len(shapes):
            self._print(f"These rounds were done before; going on with round {len(done) + 1}.")
        elif done:
            self._print("All rounds were done before.")

    def begin_training(self, number: int, shape: Shape, first_step: int, num_steps: int) -> None:
        """A new bar."""
        self._loss, self._first_step, self._tokens, self._started = None, first_step, 0, time.monotonic()
        self._show(f"round {number} of {self._num_rounds}", num_steps)

    def step(self, info: StepInfo) -> None:
        """Moves the bar; the loss is a running mean."""
        self._loss = info.loss if self._loss is None else 0.9 * self._loss + 0.1 * info.loss
        self._tokens += info.tokens
        speed = self._tokens / max(time.monotonic() - self._started, 1e-9)
        texts = [f"loss {self._loss:.3f}", f"{speed:,.0f} tokens/s"][: 2 if info.tokens else 1]
        self._bars.update(self._task, completed=info.step + 1 - self._first_step, state=", ".join(texts))

    def end_round(self, record: RoundRecord) -> None:
        """A line of the table."""
        if self._table is not None:
            self._print(self._table.line(record))

    def _show(self, text: str, total: int | None) -> None:
        """Another bar in place of the last one; a reset would keep its end."""
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task(text, total=total, state="")

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


def _counted(rows: Rows) -> str:
    return f"{len(rows):,} rows of {rows.num_tokens:,} tokens"


def _new_bars() -> Any:
    """A bar on the standard error that fits 80 columns; where there is no end in sight it shows the time so far."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Time(ProgressColumn):
        """Of what is under way: steps and the time left, or the time that it has taken."""

        def __init__(self) -> None:
            super().__init__()
            self._so_far, self._left = TimeElapsedColumn(), TimeRemainingColumn(compact=True)

        def render(self, task: Task) -> Text:
            if task.total is None:
                return self._so_far.render(task)
            return Text(f"step {int(task.completed)}/{int(task.total)}, ") + self._left.render(task) + Text(" left")

    console = Console(stderr=True)
    return Bars(
        TextColumn("{task.description}"), BarColumn(bar_width=16), Time(), TextColumn("{task.fields[state]}"),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def show_result(done: Shrunk, *, as_json: bool) -> None:
    """Where the model is, and what can be done with it; or one JSON object."""
    record = done.record
    first, last = record.original, record.last
    if as_json:
        figures = ("parameters", "non_embedding", "perplexity", "kl", "agreement", "tokens_per_second")
        sides = {"original": first, "shrunk": last}
        content = {side: {name: getattr(of, name) for name in figures} for side, of in sides.items()}
        head = {"path": str(done.path), "shape": str(last.shape), "rounds": last.number, "notes": record.notes}
        print(json.dumps({**head, **content}))
        return
    print(f"\n{done.path}: {last.shape}, {last.parameters / 1e6:,.2f} M parameters of {first.parameters / 1e6:,.2f} M")
    print(f"{done.path / 'report.html'} shows how it went.")
    print(f'Try it: pia generate {done.path} --prompt "Hello"')
