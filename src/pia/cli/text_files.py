"""Texts of files and folders for `pia cache build`, in pieces: a text may be larger than memory."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pia.cli.files import is_json, read_texts
from pia.errors import PromptError

_BLOCK = 1 << 18
_MAX_LINE = 4 << 20
_SNIFFED = 8192

OnBytes = Callable[[int], None]


class Piece(NamedTuple):
    """Some of a text, or all of it."""

    text: str
    is_last: bool


class TextSource(NamedTuple):
    """A file to read, and whether it was found in a folder rather than named."""

    path: str
    is_found: bool


def sources_of(paths: list[str]) -> list[TextSource]:
    """The files that are meant: those named, and in folders all text files, however deep, in order of their names.

    Raises:
        PromptError: a folder holds no text files.
    """
    sources: list[TextSource] = []
    for path in paths:
        if not os.path.isdir(path):
            sources.append(TextSource(path, False))
            continue
        found = [TextSource(file, True) for file in _files_in(path)]
        if not found:
            raise PromptError(f"the folder {path} holds no text files")
        sources += found
    return sources


def read_pieces(
    source: TextSource, *, field: str | None = None, whole: bool = False, limit: int | None = None, on_bytes: OnBytes
) -> Iterator[Piece]:
    """Texts of a file.

    Args:
        source: the file. One found in a folder is one text, whatever its name (code, a document); one that was named
            is JSON lines, one text a line, or with `whole` one text.
        field: see `pia.cli.files.read_texts`.
        whole: a text file is one long text.
        limit: at most so many texts.
        on_bytes: told how many bytes were read, as they are.

    Raises:
        PromptError: a named file is not what it should be.
        OSError: the file cannot be read.
    """
    if source.is_found or (whole and not is_json(source.path)):
        yield from _pieces_of_text(source, on_bytes)
    else:
        texts = read_texts(source.path, field=field, on_bytes=on_bytes)
        yield from (Piece(text, True) for text in islice(texts, limit))


def _files_in(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not name.startswith(".") and not os.path.islink(path) and _is_text(path):
                yield path


def _is_text(path: str) -> bool:
    """Whether a file begins like UTF-8 text. One that can't be read does not."""
    try:
        with open(path, "rb") as file:
            start = file.read(_SNIFFED)
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except (OSError, UnicodeDecodeError):
        return False
    return b"\0" not in start and bool(start.strip())


def _pieces_of_text(source: TextSource, on_bytes: OnBytes) -> Iterator[Piece]:
    """A text in pieces that end with a line, or at least a word."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held = ""
    with Path(source.path).open("rb") as file:
        while block := file.read(_BLOCK):
            on_bytes(len(block))
            try:
                held += decoder.decode(block)
            except UnicodeDecodeError as error:
                if source.is_found:  # a binary file after all: what was read of it does no harm
                    break
                raise PromptError(f"{source.path}: this is not UTF-8 text ({error.reason})") from None
            cut = _cut(held)
            if cut:
                yield Piece(held[:cut], False)
                held = held[cut:]
    if held:
        yield Piece(held, True)


def _cut(text: str) -> int:
    """Where a large text may be cut: behind a line, or where lines are endless behind a word; 0 for nowhere yet.

    Something is always left, so that the last piece is not empty.
    """
    if len(text) < _BLOCK:
        return 0
    most = len(text) - 1
    cut = text.rfind("\n", 0, most) + 1
    if cut or len(text) < _MAX_LINE:
        return cut
    return text.rfind(" ", 0, most) + 1 or most


def total_bytes(sources: list[TextSource]) -> int:
    """Size of all files.

    Raises:
        OSError: a file is missing.
    """
    return sum(Path(source.path).stat().st_size for source in sources)
