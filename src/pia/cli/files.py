"""Reading prompts and texts from files: plain text, one a line, or JSON lines, packed with gzip or not.

Nothing is read before it is needed.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any

from pia.errors import PromptError

TEXT_FIELDS = ("text", "answer", "output", "completion", "response", "content")
"""Fields of a JSON line that may hold a text to learn, the first that is there counts."""

_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_CHUNK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"


def read_prompts(path: str, limit: int | None = None) -> list[Any]:
    """Prompts of a file: text, one prompt a line, or JSON lines with `prompt`, `question` or `messages`.

    Args:
        path: the file; JSON lines if its name ends in .jsonl, .ndjson or .json, with or without .gz behind it.
        limit: at most so many.

    Returns:
        texts to be continued as they are, and lists of chat messages.

    Raises:
        PromptError: the file holds no prompts, or a line is not what it should be; the message names the line.
        OSError: the file cannot be read.
    """
    prompts = list(islice((_prompt_of(path, number, line) for number, line in _lines(path)), limit))
    if not prompts:
        raise PromptError(f"{path} holds no prompts; give one a line, or JSON lines with prompt, question or messages")
    return prompts


def read_texts(
    path: str, *, field: str | None = None, whole: bool = False, on_bytes: Callable[[int], None] | None = None
) -> Iterator[str]:
    """Texts of a file: one a line, or of JSON lines.

    Args:
        path: the file; JSON lines if its name ends in .jsonl, .ndjson or .json, with or without .gz behind it.
        field: the field of a JSON line that holds the text; by default the first of `TEXT_FIELDS`, or what the
            assistant says in `messages`.
        whole: a text file is one long text (code, a book), not one a line.
        on_bytes: told how many bytes of the file were read, as they are.

    Raises:
        PromptError: a line is not what it should be; the message names the line.
        OSError: the file cannot be read.
    """
    if is_json(path):
        for number, line in _lines(path, on_bytes):
            yield from _texts_of(path, number, _json_object(path, number, line), field)
    elif whole:
        yield from _chunks(path, on_bytes)
    else:
        yield from (line for _, line in _lines(path, on_bytes))


def read_text(path: str) -> str:
    """The text of a file, line ends as they are.

    Raises:
        PromptError: the file is not text.
        OSError: the file cannot be read.
    """
    text = "".join(_chunks(path, None))
    if "\0" in text:
        raise PromptError(f"{path} is no text file: it holds zero bytes")
    return text


def is_json(path: str) -> bool:
    """Whether a file is read as JSON lines."""
    return path.lower().removesuffix(".gz").endswith(_JSON_SUFFIXES)


def _lines(path: str, on_bytes: Callable[[int], None] | None = None) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    for number, raw in _raw_lines(path, on_bytes):
        line = _decoded(path, number, raw).strip("\r\n")
        if line.strip():
            yield number, line


def _chunks(path: str, on_bytes: Callable[[int], None] | None) -> Iterator[str]:
    """A text in large pieces that end with a line."""
    lines: list[str] = []
    size = 0
    for number, raw in _raw_lines(path, on_bytes):
        lines.append(_decoded(path, number, raw))
        size += len(raw)
        if size >= _CHUNK:
            yield "".join(lines)
            lines, size = [], 0
    if size:
        yield "".join(lines)


def _raw_lines(path: str, on_bytes: Callable[[int], None] | None) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, unpacked where the file is packed, whatever its name."""
    with Path(path).open("rb") as file:
        if file.peek(2)[:2] == _GZIP_MAGIC:
            yield from _unpacked_lines(path, file, on_bytes)
            return
        for number, raw in enumerate(file, 1):
            if on_bytes is not None:
                on_bytes(len(raw))
            yield number, raw


def _unpacked_lines(
    path: str, file: BufferedReader, on_bytes: Callable[[int], None] | None
) -> Iterator[tuple[int, bytes]]:
    """Lines of a gzip file; what is counted are the bytes of the file as it is packed."""
    can_tell = on_bytes is not None and file.seekable()
    seen = 0
    number = 0
    try:
        for number, raw in enumerate(gzip.GzipFile(fileobj=file), 1):
            if on_bytes is not None and can_tell:
                on_bytes(file.tell() - seen)
                seen = file.tell()
            yield number, raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise PromptError(f"{path}, behind line {number}: this is no whole gzip file ({error})") from None


def _decoded(path: str, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}, line {number}: this is not UTF-8 text ({error.reason})") from None


def _prompt_of(path: str, number: int, line: str) -> Any:
    if not is_json(path):
        return line
    fields = _json_object(path, number, line)
    if "messages" in fields:
        return _messages(path, number, fields["messages"])
    for name in ("prompt", "question"):
        if name in fields:
            text = _text(path, number, name, fields[name])
            return text if name == "prompt" else [{"role": "user", "content": text}]
    raise PromptError(f"{path}, line {number}: none of prompt, question or messages is there, only {_names(fields)}")


def _texts_of(path: str, number: int, fields: dict[str, Any], field: str | None) -> Iterator[str]:
    names = [field] if field else [name for name in TEXT_FIELDS if name in fields][:1]
    if not names and "messages" in fields:
        messages = _messages(path, number, fields["messages"])
        yield from (message["content"] for message in messages if message["role"] == "assistant")
        return
    if not names or names[0] not in fields:
        missing = f"{field} is not there" if field else f"none of {', '.join(TEXT_FIELDS)} is there"
        raise PromptError(f"{path}, line {number}: {missing}, only {_names(fields)}; name a field with --field")
    yield _text(path, number, names[0], fields[names[0]])


def _json_object(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(f"{path}, line {number}: this is not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise PromptError(f"{path}, line {number}: a JSON object is needed, not {type(value).__name__}")
    return value


def _text(path: str, number: int, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{path}, line {number}: {name} must be text, not {json.dumps(value)[:60]}")
    return value


def _messages(path: str, number: int, value: Any) -> list[dict[str, str]]:
    is_right = (
        isinstance(value, list)
        and value
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )
    if not is_right:
        raise PromptError(f'{path}, line {number}: messages must be a list of {{"role": ..., "content": ...}}')
    return value  # type: ignore[no-any-return]


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(fields) or "nothing"
