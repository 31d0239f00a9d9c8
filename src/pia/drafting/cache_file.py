"""Saved draft caches: one versioned, checksummed file.

A file holds the learned token sequences, not the tables made from them: text is some thirty times smaller than its
contexts, compresses well, is trivially checked (every id must lie in the vocabulary), and outlives any change of the
tables' layout. Loading learns it again in the same order, at millions of tokens a second, and so drafts as before.
(Where memory was spent and contexts were evicted before saving, what is remembered as text is what comes back.)

Layout, integers little-endian:

    magic        8 bytes   b"PIACACHE"
    version      uint32
    header size  uint32
    header       JSON: vocab_size, tokenizer_fingerprint, num_tokens, token_bytes and, per namespace,
                 {"name", "num_sequences", "num_tokens", "num_bytes", "num_id_bytes"}; num_bytes is the packed size
    sections     one per namespace: zlib of all lengths (uint32), then all tokens (token_bytes each), then, if
                 num_id_bytes is not 0, the owner of each sequence (int32, index of a request id or -1) and the
                 request ids (a JSON list of num_id_bytes)
    digest       32 bytes  BLAKE2b of everything before

Format 1 is the same without request ids, and is still read.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pia.drafting.atomic_file import replacing
from pia.drafting.cache import DEFAULT_MAX_BYTES, DraftCache, LearnedSequences
from pia.errors import CacheFileError

MAGIC = b"PIACACHE"
FORMAT_VERSION = 2

_PREFIX = struct.Struct("<8sII")
_DIGEST_SIZE = 32
_COMPRESSION_LEVEL = 1  # text of 10 million tokens is a matter of a second; the next levels gain little

TokenArray = npt.NDArray[np.int32]


# --- Saving ----------------------------------------------------------------------------------------------------------


def save(cache: DraftCache, path: str | os.PathLike[str]) -> None:
    """Writes a cache to `path`, atomically: the file is either the old one or the whole new one, whatever happens.

    Raises:
        CacheFileError: If the file can't be written; an old file is left as it was.
    """
    target = Path(path)
    try:
        parts = _encode(cache)
        with replacing(target) as file:
            _write_with_digest(file, parts)
    except OSError as error:
        raise CacheFileError(
            f"can't save the draft cache to {target}: {error.strerror or error}; "
            "make sure that the folder exists, is writable and has room, or choose another path"
        ) from error


def _write_with_digest(file: BinaryIO, parts: Iterable[bytes]) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    for part in parts:
        digest.update(part)
        file.write(part)
    file.write(digest.digest())


def _encode(cache: DraftCache) -> list[bytes]:
    contents = {name: cache.export_log(name) for name in cache.namespaces}
    highest = max((int(log.tokens.max()) for log in contents.values() if len(log.tokens)), default=0)
    token_bytes = 2 if highest < 1 << 16 else 4
    sections, entries = [], []
    for name, log in contents.items():
        ids = json.dumps(log.request_ids).encode() if log.request_ids else b""
        sections.append(_pack(log, ids, token_bytes))
        sizes = {"num_sequences": len(log.lengths), "num_tokens": len(log.tokens), "num_bytes": len(sections[-1])}
        entries.append({"name": name, **sizes, "num_id_bytes": len(ids)})
    header = json.dumps(
        {
            "vocab_size": cache.vocab_size,
            "tokenizer_fingerprint": cache.tokenizer_fingerprint,
            "num_tokens": sum(len(log.tokens) for log in contents.values()),
            "token_bytes": token_bytes,
            "namespaces": entries,
        }
    ).encode()
    return [_PREFIX.pack(MAGIC, FORMAT_VERSION, len(header)), header, *sections]


def _pack(log: LearnedSequences, ids: bytes, token_bytes: int) -> bytes:
    packer = zlib.compressobj(_COMPRESSION_LEVEL)
    arrays = [log.lengths.astype("<u4"), log.tokens.astype(f"<u{token_bytes}")]
    if ids:
        arrays += [log.owners.astype("<i4"), np.frombuffer(ids, np.uint8)]
    return b"".join([*(packer.compress(array.data) for array in arrays), packer.flush()])


# --- Loading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Where a namespace's sequences lie in the file, and how many there are."""

    name: str
    num_sequences: int
    num_tokens: int
    num_bytes: int
    num_id_bytes: int


@dataclass(frozen=True)
class Header:
    """What a cache file says about itself."""

    version: int
    vocab_size: int | None
    tokenizer_fingerprint: str | None
    num_tokens: int
    token_bytes: int
    namespaces: list[Section]


def load(path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_MAX_BYTES) -> DraftCache:
    """Reads a cache that `save` wrote.

    Raises:
        CacheFileError: If the file is missing, damaged, not a draft cache, or of a newer format.
    """
    data = _read(path)
    header, start = _parse(data, path)
    cache = DraftCache(
        max_bytes=max_bytes, vocab_size=header.vocab_size, tokenizer_fingerprint=header.tokenizer_fingerprint
    )
    for section in header.namespaces:
        packed = memoryview(data)[start : start + section.num_bytes]
        start += section.num_bytes
        try:
            cache.import_log(_unpack(packed, section, header.token_bytes), namespace=section.name)
        except (ValueError, RecursionError, zlib.error) as error:
            raise _damaged(path, str(error)) from error
        except MemoryError as error:
            raise CacheFileError(
                f"the draft cache {os.fspath(path)} has {len(header.namespaces)} namespaces, too many for {max_bytes} "
                "bytes; load it with a larger max_bytes"
            ) from error
    return cache


def read_header(path: str | os.PathLike[str]) -> Header:
    """What a cache file says about itself, after its checksum was verified.

    Raises:
        CacheFileError: If the file is missing, damaged, not a draft cache, or of a newer format.
    """
    return _parse(_read(path), path)[0]


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CacheFileError(f"can't read the draft cache {os.fspath(path)}: {error.strerror or error}") from error


def _parse(data: bytes, path: str | os.PathLike[str]) -> tuple[Header, int]:
    """Checks everything up to the sections; returns the header and where the first section begins."""
    if data[: len(MAGIC)] != MAGIC:
        raise CacheFileError(f"{os.fspath(path)} is not a draft cache (save one with DraftCache.save)")
    if len(data) < _PREFIX.size + _DIGEST_SIZE:
        raise _damaged(path, "it is cut short")
    _, version, header_size = _PREFIX.unpack_from(data)
    if not 1 <= version <= FORMAT_VERSION:
        raise CacheFileError(
            f"{os.fspath(path)} is a draft cache of format {version}, but this PIA reads up to {FORMAT_VERSION}; "
            "install a newer PIA, or build the cache again"
        )
    if hashlib.blake2b(data[:-_DIGEST_SIZE], digest_size=_DIGEST_SIZE).digest() != data[-_DIGEST_SIZE:]:
        raise _damaged(path, "its checksum is wrong")
    start = _PREFIX.size + header_size
    try:
        header = _header_from(version, json.loads(data[_PREFIX.size : start]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"its header can't be read: {error}") from error
    if start + sum(section.num_bytes for section in header.namespaces) != len(data) - _DIGEST_SIZE:
        raise _damaged(path, "its sections do not add up to its size")
    return header, start


def _header_from(version: int, fields: dict[str, Any]) -> Header:
    sizes = ("num_sequences", "num_tokens", "num_bytes", *(("num_id_bytes",) if version > 1 else ()))
    no_ids = () if version > 1 else (0,)
    sections = [
        Section(_name(entry["name"]), *(_size(entry[key]) for key in sizes), *no_ids) for entry in fields["namespaces"]
    ]
    vocab_size, fingerprint = fields["vocab_size"], fields["tokenizer_fingerprint"]
    if vocab_size is not None and not 0 < _size(vocab_size) <= 1 << 31:
        raise ValueError(f"vocab_size is {vocab_size}")
    if not (fingerprint is None or isinstance(fingerprint, str)):
        raise ValueError("the tokenizer fingerprint is not text")
    if _size(fields["token_bytes"]) not in (2, 4):
        raise ValueError(f"token_bytes is {fields['token_bytes']}")
    return Header(version, vocab_size, fingerprint, _size(fields["num_tokens"]), fields["token_bytes"], sections)


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a name")
    value.encode()  # JSON can say what is no Unicode, half a surrogate pair
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise ValueError(f"{value!r} is not a size")
    return value


def _unpack(packed: memoryview, section: Section, token_bytes: int) -> LearnedSequences:
    num_owners = section.num_sequences if section.num_id_bytes else 0
    size = 4 * section.num_sequences + token_bytes * section.num_tokens + 4 * num_owners + section.num_id_bytes
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(packed, size + 1)  # never more than was announced, whatever the file claims
    if len(raw) != size or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"namespace {section.name!r} does not have the size it claims")
    lengths = np.frombuffer(raw, "<u4", section.num_sequences)
    tokens = np.frombuffer(raw, f"<u{token_bytes}", section.num_tokens, offset=lengths.nbytes)
    owners = np.frombuffer(raw, "<i4", num_owners, offset=lengths.nbytes + tokens.nbytes)
    for values in (lengths, tokens):
        if len(values) and int(values.max()) >= 1 << 31:
            raise ValueError(f"namespace {section.name!r} holds {int(values.max())}, which is out of range")
    ids = _request_ids(raw[size - section.num_id_bytes :]) if section.num_id_bytes else []
    return LearnedSequences(tokens.astype(np.int32), lengths.astype(np.int32), owners.astype(np.int32), ids)


def _request_ids(packed: bytes) -> list[str]:
    ids = json.loads(packed)
    if not isinstance(ids, list) or not all(isinstance(one, str) and one for one in ids):
        raise ValueError("the request ids are not a list of names")
    return ids


def _damaged(path: str | os.PathLike[str], why: str) -> CacheFileError:
    return CacheFileError(f"the draft cache {os.fspath(path)} is damaged: {why}; restore it or build it again")
