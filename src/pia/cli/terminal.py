"""What the terminal shows: drafted tokens made visible, prose wrapped as it streams, progress."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from pia.text import TextPiece

_DRAFTED, _DIM, _BOLD, _RESET = "\x1b[1;32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


def has_colour(stream: TextIO) -> bool:
    """Whether a stream shows colours: a terminal that can, unless NO_COLOR says no (or FORCE_COLOR yes)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") not in (None, "dumb")


class Painter:
    """Marks accepted drafted tokens: by colour where there is colour, else by brackets around each run of them.

    Args:
        colour: whether the output shows colour.
        encoding: of the output, which may lack the brackets we like best.
    """

    def __init__(self, *, colour: bool, encoding: str | None = "utf-8") -> None:
        self._colour = colour
        self._open, self._close = _brackets(encoding)
        self._is_open = False
        self._space = ""

    @property
    def legend(self) -> str:
        """How to read the marks."""
        if self._colour:
            return f"{_DRAFTED}green{_RESET}: drafted tokens that the model accepted; the rest it wrote one by one"
        return f"{self._open}...{self._close}: drafted tokens that the model accepted; the rest it wrote one by one"

    def paint(self, text: str, is_drafted: bool) -> str:
        """Marks the next piece of text."""
        if not text:
            return ""
        if self._colour:
            return f"{_DRAFTED}{text}{_RESET}" if is_drafted else text
        if not is_drafted:
            return self.end() + text
        start = "" if self._is_open else self._open
        inner = text.strip()
        if not inner:
            return self._hold(text)
        space, self._is_open = text[: text.index(inner)], True
        return f"{self._release()}{space}{start}{inner}{self._hold(text[len(space) + len(inner) :])}"

    def end(self) -> str:
        """Closes a run that is open."""
        mark = self._close if self._is_open else ""
        self._is_open = False
        return mark + self._release()

    def _hold(self, space: str) -> str:
        """Keeps space back while it may turn out to be the end of a run, for it looks better outside."""
        if not self._is_open:
            return space
        self._space += space
        return ""

    def _release(self) -> str:
        space, self._space = self._space, ""
        return space


class Prose:
    """Streams text into a column: words wrapped as they are complete, drafted tokens marked.

    Args:
        stream: where to.
        painter: marks drafted tokens; `None` marks nothing.
        indent: columns kept free on the left.
        width: columns in all.
        dim: show the text faintly, where there is colour.
    """

    def __init__(self, stream: TextIO, painter: Painter | None, *, indent: int, width: int, dim: bool = False) -> None:
        self._stream = stream
        self._painter = painter or Painter(colour=True)
        self._marks = painter is not None
        self._margin = "\n" + " " * indent
        self._room = max(20, width - indent)
        self._dim = dim
        self._column = 0
        self._space: tuple[str, bool] = ("", False)
        self._word: list[tuple[str, bool]] = []

    def write(self, pieces: Iterable[TextPiece]) -> None:
        """Takes the next pieces of text; a word is shown when it is complete."""
        for piece in pieces:
            for part in re.findall(r"\n|[^\S\n]+|\S+", piece.text):
                self._take(part, piece.is_drafted and self._marks)
        self._stream.flush()

    def end(self) -> None:
        """Shows what is left and ends the line."""
        self._flush_word()
        self._show(self._painter.end() + "\n")
        self._stream.flush()

    def _take(self, part: str, is_drafted: bool) -> None:
        if not part.isspace():
            self._word.append((part, is_drafted))
            if sum(len(part) for part, _ in self._word) > self._room:  # no word: do not hold it back
                self._flush_word()
            return
        self._flush_word()
        if part == "\n":
            self._break_line()
        else:
            self._space = (part, is_drafted)

    def _flush_word(self) -> None:
        length = sum(len(part) for part, _ in self._word)
        if not length:
            return
        space, is_drafted = self._space
        if self._column and self._column + len(space) + length > self._room:
            self._break_line()
        elif self._column:
            self._show(self._painter.paint(space, is_drafted))
            self._column += len(space)
        for part, is_drafted in self._word:
            self._show(self._painter.paint(part, is_drafted))
        self._column += length
        self._word, self._space = [], ("", False)

    def _break_line(self) -> None:
        self._show(self._painter.end() + self._margin)
        self._column, self._space = 0, ("", False)

    def _show(self, text: str) -> None:
        self._stream.write(f"{_DIM}{text}{_RESET}" if self._dim and text.strip() else text)


def dim(text: str, *, colour: bool) -> str:
    """Faint text, where there is colour."""
    return f"{_DIM}{text}{_RESET}" if colour else text


def bold(text: str, *, colour: bool) -> str:
    """Strong text, where there is colour."""
    return f"{_BOLD}{text}{_RESET}" if colour else text


def new_painter(stream: TextIO | None = None) -> Painter:
    """The painter that suits a stream, the standard output by default."""
    stream = stream or sys.stdout
    return Painter(colour=has_colour(stream), encoding=stream.encoding)


def note(message: str) -> None:
    """A remark for the person at the terminal; never part of the output."""
    print(dim(message, colour=has_colour(sys.stderr)), file=sys.stderr, flush=True)


def new_console() -> Console:
    """A rich console on the standard output; piped output has a width of its own."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would end the process itself
            raise BrokenPipeError

    return PipeConsole(width=None if sys.stdout.isatty() else 100, highlight=False)


def new_progress(*columns: str) -> Progress:
    """A progress bar on the standard error; silent where that is no terminal.

    Args:
        *columns: further columns, as rich's text templates.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    texts = [TextColumn(column) for column in columns]
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), *texts, TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def _brackets(encoding: str | None) -> tuple[str, str]:
    opening, closing = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
    try:
        (opening + closing).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "[", "]"
    return opening, closing


def width() -> int:
    """Columns for running text: those of the terminal within reason, 100 where the output is piped."""
    return min(shutil.get_terminal_size((100, 24)).columns, 100)
