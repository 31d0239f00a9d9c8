"""Paragraphs of a plain text, packed into rows of equal length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_PARAGRAPH = re.compile(r"(?<=\n)(?:[ \t]*\n)+")


def paragraphs(text: str) -> list[str]:
    """The text cut behind its blank lines; joined again it is what it was."""
    ends = [match.end() for match in _PARAGRAPH.finditer(text)]
    starts = [0, *ends]
    return [piece for piece in (text[a:b] for a, b in zip(starts, [*ends, len(text)], strict=True)) if piece.strip()]


def packed(pieces: Iterable[list[int]], size: int) -> Iterator[list[int]]:
    """Token ids of consecutive pieces in rows of at most `size` tokens; a piece that is longer is continued."""
    row: list[int] = []
    for piece in pieces:
        if row and len(row) + len(piece) > size:
            yield row
            row = []
        row = row + piece
        while len(row) > size:
            yield row[:size]
            row = row[size:]
    if row:
        yield row
