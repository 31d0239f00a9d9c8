"""The header of a corpus file. What lies behind it is written and read natively (csrc/src/corpus_format.h).

Layout, integers little-endian:

    header     one page of 4096 bytes:
                 magic        8 bytes   b"PIACORPS"
                 version      uint32
                 JSON size    uint32
                 JSON         the fields of `CorpusHeader`; checksums as 16 hexadecimal digits
                 zeros
                 digest       32 bytes  BLAKE2b of everything before
    directory  (num_buckets + 1) x uint64, filled up to whole pages: where each bucket begins, how many slots it has
    data       num_words x uint32, filled up likewise: the buckets

Header and directory are checked when a file is opened, the data when it is read, word by word, for what could do harm;
its checksum only when somebody asks, since that means to read all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any

from pia import _core
from pia.errors import CacheFileError

MAGIC = b"PIACORPS"
FORMAT_VERSION = 1
HEADER_BYTES: int = _core.CORPUS_PAGE_BYTES

_PREFIX = struct.Struct("<8sII")
_DIGEST_SIZE = 32
_MAX_JSON = HEADER_BYTES - _PREFIX.size - _DIGEST_SIZE


@dataclass(frozen=True)
class CorpusHeader:
    """What a corpus file says about itself."""

    vocab_size: int
    tokenizer_fingerprint: str | None
    num_tokens: int
    num_sequences: int
    num_contexts: int
    num_buckets: int
    num_words: int
    directory_checksum: int
    data_checksum: int
    shapes: tuple[tuple[int, int], ...]
    """Which contexts there are: how many tokens each leaves out, and how many it has before these."""
    hash_probe: int
    """Tells hashes of contexts made one way from those made another."""


def native_header(figures: _core.CorpusFigures, vocab_size: int, fingerprint: str | None) -> CorpusHeader:
    """The header for what a native builder has written."""
    counted = {name: getattr(figures, name) for name in _FIGURES}
    return CorpusHeader(
        vocab_size=vocab_size,
        tokenizer_fingerprint=fingerprint,
        shapes=tuple(_core.context_shapes()),
        hash_probe=_core.hash_probe(),
        **counted,
    )


def pack_header(header: CorpusHeader) -> bytes:
    """The first page of a file.

    Raises:
        ValueError: If the fingerprint is too long.
    """
    values = asdict(header)
    text = json.dumps({**values, **{name: f"{values[name]:016x}" for name in _HEXADECIMAL}}).encode()
    if len(text) > _MAX_JSON:
        raise ValueError(f"the tokenizer's fingerprint is too long: {len(header.tokenizer_fingerprint or '')} letters")
    page = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(text)) + text
    page += bytes(HEADER_BYTES - _DIGEST_SIZE - len(page))
    return page + hashlib.blake2b(page, digest_size=_DIGEST_SIZE).digest()


def is_corpus_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like a corpus. One that can't be read does not."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC
    return False


def unpack_header(page: bytes, path: str | os.PathLike[str]) -> CorpusHeader:
    """Reads the first page of a file, and checks everything about it.

    Raises:
        CacheFileError: If it is damaged, not of a corpus, of another format, or of other contexts than ours.
    """
    if page[: len(MAGIC)] != MAGIC:
        raise CacheFileError(f"{os.fspath(path)} is not a corpus (build one with pia cache build NAME.corpus)")
    if len(page) < HEADER_BYTES:
        raise damaged(path, "it is cut short")
    _, version, size = _PREFIX.unpack_from(page)
    if version != FORMAT_VERSION:
        raise CacheFileError(
            f"{os.fspath(path)} is a corpus of format {version}, but this PIA reads format {FORMAT_VERSION}; "
            "install a newer PIA, or build the corpus again"
        )
    if hashlib.blake2b(page[:-_DIGEST_SIZE], digest_size=_DIGEST_SIZE).digest() != page[-_DIGEST_SIZE:]:
        raise damaged(path, "the checksum of its header is wrong")
    try:
        header = _header_from(json.loads(page[_PREFIX.size : _PREFIX.size + size]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(path, f"its header can't be read: {error}") from error
    if header.shapes != tuple(_core.context_shapes()) or header.hash_probe != _core.hash_probe():
        raise CacheFileError(
            f"the corpus {os.fspath(path)} was built by a PIA that counts other contexts than this one; build it again"
        )
    return header


def _header_from(values: dict[str, Any]) -> CorpusHeader:
    numbers = {name: _size(values[name]) for name in ("vocab_size", *_FIGURES) if name not in _HEXADECIMAL}
    fingerprint = values["tokenizer_fingerprint"]
    if not (fingerprint is None or isinstance(fingerprint, str)):
        raise ValueError("the tokenizer fingerprint is not text")
    return CorpusHeader(
        tokenizer_fingerprint=fingerprint,
        shapes=tuple((_size(skip), _size(length)) for skip, length in values["shapes"]),
        **{name: int(values[name], 16) for name in _HEXADECIMAL},
        **numbers,
    )


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError(f"{value!r} is not a size")
    return value


_HEXADECIMAL = ("directory_checksum", "data_checksum", "hash_probe")
_FIGURES = tuple(
    field.name
    for field in fields(CorpusHeader)
    if field.name not in ("vocab_size", "tokenizer_fingerprint", "shapes", "hash_probe")
)


def damaged(path: str | os.PathLike[str], why: str) -> CacheFileError:
    """The error for a file that is not what it should be."""
    return CacheFileError(f"the corpus {os.fspath(path)} is damaged: {why}; restore it or build it again")
