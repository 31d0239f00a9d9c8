"""Where training rows come from: a text file, JSON lines, or a dataset."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pia.errors import ShrinkError
from pia.ipad.data.encoder import RowEncoder
from pia.ipad.data.hub import hub_records, parquet_records
from pia.ipad.data.records import Record, record_of
from pia.ipad.data.rows import Rows

_JSON = (".jsonl", ".ndjson", ".json")
_TEXT = (".txt", ".md", ".text")
_GZIP_MAGIC = b"\x1f\x8b"


def read_rows(source: str | Path, tokenizer: Any, *, max_length: int, prompt_weight: float = 0.2) -> Rows:
    """Rows of a file or a dataset.

    Args:
        source: a text file (.txt, .md: paragraphs packed into rows), JSON lines or a JSON list (.jsonl, .ndjson, .json:
            see `pia.ipad.data.records`), each packed with gzip or not, a .parquet file, or the name of a dataset on the
            hub (`name`, `name:split`).
        tokenizer: of the model.
        max_length: tokens of the longest row; `Rows.num_cut` tells how many were longer.
        prompt_weight: how much tokens count that are given rather than learnt.

    Raises:
        ShrinkError: there is no such file, it is empty or not what its name says (with the line), or a package that is
            needed is missing.
        OSError: it cannot be read.
    """
    encoder = RowEncoder(tokenizer, max_length, prompt_weight)
    name = str(source)
    rows = _rows(name, encoder)
    if not len(rows):
        raise ShrinkError(f"{name} holds nothing to train on: no text of at least two tokens")
    return rows


def _rows(name: str, encoder: RowEncoder) -> Rows:
    kind = name.lower().removesuffix(".gz")
    path = Path(name)
    if path.is_dir():
        raise ShrinkError(f"{name} is a folder; name a file in it")
    if not path.exists():
        return encoder.rows(hub_records(name))
    if kind.endswith(".parquet"):
        return encoder.rows(parquet_records(name))
    text = _text(path)
    if not text.strip():
        raise ShrinkError(f"{name} is empty: there is nothing to train on")
    if kind.endswith(_JSON):
        return encoder.rows(_json_records(name, text))
    if kind.endswith(_TEXT):
        return encoder.packed(text)
    raise ShrinkError(f"{name}: what it holds cannot be told from its name; call it .txt, .jsonl, .json or .parquet")


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        unpacked = gzip.decompress(raw) if raw[:2] == _GZIP_MAGIC else raw
        text = unpacked.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ShrinkError(f"{path}: this is no whole gzip file ({error})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ShrinkError(f"{path}, line {line}: this is not UTF-8 text ({error.reason})") from None
    if "\0" in text:
        raise ShrinkError(f"{path} is no text file: it holds zero bytes")
    return text


def _json_records(name: str, text: str) -> Iterator[tuple[str, Record]]:
    if text.lstrip().startswith("["):
        for number, fields in enumerate(_json(text, name), 1):
            where = f"{name}, record {number}"
            yield where, record_of(fields, where)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name}, line {number}"
            yield where, record_of(_json(line, where), where)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise ShrinkError(f"{where}: this is not JSON ({error.msg} at {place})") from None
