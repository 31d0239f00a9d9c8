#!/usr/bin/env python3
"""Fuzzes the loaders of cache files and corpus files; run by tools/fuzz.sh.

    python tools/fuzz_files.py [-max_total_time=SECONDS] [-artifact_prefix=PATH] [input file ...]

An input says how to change a good file: fields of its header, what its sections hold, bytes anywhere. Sizes and
checksums are mostly made right afterwards, so that what lies behind them is reached. Whatever comes of it, a loader
either returns something whole and usable or raises CacheFileError. With atheris installed, coverage chooses the inputs,
else chance.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import random
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pia import _core
from pia.drafting import cache_file, corpus_file
from pia.drafting.cache import DraftCache
from pia.drafting.corpus import Corpus, build_corpus
from pia.errors import CacheFileError

try:
    import atheris
except ImportError:
    atheris = None

FOLDER = tempfile.TemporaryDirectory()
CACHE_PATH = Path(FOLDER.name, "cache.pia")
AGAIN_PATH = Path(FOLDER.name, "again.pia")
CORPUS_PATH = Path(FOLDER.name, "some.corpus")

MAX_BYTES = 64 << 10
LARGE_BYTES = 8 << 20

DEEP = "as deep as JSON goes"  # stands for lists in lists in lists, which Python itself can't take apart

# What a field may be replaced by.
ODD_NUMBERS = "-1 0 1 2 3 4 10 255 256 65536 0.0 1.0 2.0 4.0 1e300 Infinity NaN"
ODD_VALUES: list[Any] = [
    *map(json.loads, ODD_NUMBERS.split()),
    *(2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**47, 2**48, 2**64, None, True, False),
    *("", "a", "0", "-1", "f" * 16, "f" * 17, "Köln", "\ud800", "\0", "x" * 300),
    *([], [1], [1, 2], [[]], [[0, 1]], [""], ["r"], ["\ud800"], ["r"] * 300, {}, {"a": 1}),
    DEEP,
]


class Choices:
    """Reads an input byte by byte; behind its end there are only zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, limit: int) -> int:
        return (self.byte() << 8 | self.byte()) % max(limit, 1)

    def times(self) -> range:
        return range(self.byte() % 4)

    def usually(self) -> bool:
        return self.byte() % 8 != 7


# --- Good files ------------------------------------------------------------------------------------------------------


def example(num_namespaces: int) -> DraftCache:
    cache = DraftCache(max_bytes=LARGE_BYTES, vocab_size=70000, tokenizer_fingerprint="abc")
    numbers = np.random.default_rng(0)
    for i in range(num_namespaces):
        for j in range(4):
            text = numbers.integers(0, 70000 if i == 1 else 40, 12)
            request_id = f"request {j}" if i % 2 and j % 2 else None
            cache.insert(text, namespace=f"space {i}", request_id=request_id)
    return cache


def take_apart(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """A cache file's header and its sections, unpacked."""
    _, _, header_size = struct.unpack_from("<8sII", data)
    header = json.loads(data[16 : 16 + header_size])
    sections, at = [], 16 + header_size
    for entry in header["namespaces"]:
        sections.append(zlib.decompress(data[at : at + entry["num_bytes"]]))
        at += entry["num_bytes"]
    return header, sections


def good_caches() -> list[tuple[dict[str, Any], list[bytes]]]:
    found = []
    for num_namespaces in (0, 1, 2, 4, 200):
        example(num_namespaces).save(CACHE_PATH)
        found.append(take_apart(CACHE_PATH.read_bytes()))
    return found


def good_corpora() -> list[bytes]:
    found = []
    for num_tokens, vocab_size in ((0, 10), (300, 50), (4000, 1000)):
        numbers = np.random.default_rng(num_tokens)
        texts = [numbers.geometric(0.1, 100) % vocab_size for _ in range(num_tokens // 100)]
        build_corpus(CORPUS_PATH, texts, vocab_size=vocab_size, tokenizer_fingerprint="abc", max_memory=1 << 20).close()
        found.append(CORPUS_PATH.read_bytes())
    return found


# --- Changes ---------------------------------------------------------------------------------------------------------


def change_json(value: Any, choices: Choices) -> Any:
    """The same with one part replaced, left out or repeated, at any depth."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    action = choices.byte() % 8
    if not keys or action == 0:
        return copy.deepcopy(ODD_VALUES[choices.below(len(ODD_VALUES))])
    key = keys[choices.below(len(keys))]
    if action == 1:
        del value[key]
    elif action == 2 and isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    elif action == 3 and type(value[key]) is int:
        value[key] += choices.byte() - 128
    else:
        value[key] = change_json(value[key], choices)
    return value


def change_bytes(data: bytes, choices: Choices) -> bytes:
    changed = bytearray(data)
    for _ in choices.times():
        at = choices.below(len(changed))
        action = choices.byte() % 4
        if action == 0:
            del changed[at : at + choices.byte() % 16]
        elif action == 1:
            changed[at:at] = bytes(choices.byte() for _ in range(choices.byte() % 16))
        elif changed:
            changed[at] = choices.byte()
    return bytes(changed)


def sealed(data: bytes, choices: Choices) -> bytes:
    digest = hashlib.blake2b(data, digest_size=32).digest()
    return data + (digest if choices.usually() else change_bytes(digest, choices))


def as_json(header: Any) -> bytes:
    return json.dumps(header).replace(f'"{DEEP}"', "[" * 1500 + "]" * 1500).encode()


def changed_cache(choices: Choices) -> bytes:
    header, sections = copy.deepcopy(CACHES[choices.byte() % len(CACHES)])
    version = 2 if choices.usually() else choices.byte() % 4
    packed = []
    for section, entry in zip(sections, header["namespaces"], strict=True):
        raw = change_bytes(section, choices) if choices.byte() % 4 == 1 else section
        packed.append(zlib.compress(raw, 1))
        if choices.byte() % 8 == 1:
            packed[-1] = change_bytes(packed[-1], choices)
        entry["num_bytes"] = len(packed[-1])
    for _ in choices.times():
        header = change_json(header, choices)
    text = as_json(header)
    if choices.byte() % 8 == 1:
        text = change_bytes(text, choices)
    prefix = struct.pack("<8sII", b"PIACACHE", version, len(text))
    data = b"".join([prefix, text, *packed])
    return sealed(change_bytes(data, choices) if choices.byte() % 16 == 1 else data, choices)


def changed_corpus(choices: Choices) -> bytes:
    data = CORPORA[choices.byte() % len(CORPORA)]
    page, rest = data[: corpus_file.HEADER_BYTES], data[corpus_file.HEADER_BYTES :]
    _, version, size = struct.unpack_from("<8sII", page)
    header: Any = json.loads(page[16 : 16 + size])
    for _ in choices.times():
        header = change_json(header, choices)
    if choices.byte() % 4 == 1:
        rest = with_damage(rest, header, choices)
    text = as_json(header)
    if choices.byte() % 8 == 1:
        text = change_bytes(text, choices)
    page = (struct.pack("<8sII", b"PIACORPS", version, len(text)) + text)[: corpus_file.HEADER_BYTES - 32]
    page = page.ljust(corpus_file.HEADER_BYTES - 32, b"\0")
    page = change_bytes(page, choices) if choices.byte() % 16 == 1 else page
    return sealed(page, choices) + rest


def with_damage(rest: bytes, header: Any, choices: Choices) -> bytes:
    """Overwrites words of directory and data; the directory's checksum is made right where it still has one."""
    changed = bytearray(rest)
    for _ in range(choices.byte() % 32):
        at = choices.below(len(changed) // 4) * 4
        changed[at : at + 4] = struct.pack("<I", choices.below(1 << 16) << (16 * (choices.byte() & 1)))
    if choices.byte() % 8 == 1:
        return change_bytes(changed, choices)
    if isinstance(header, dict) and header.get("num_buckets") in (1, 2, 4, 8, 16):
        directory = bytes(changed[: -(-(int(header["num_buckets"]) + 1) * 8 // 4096) * 4096])
        header["directory_checksum"] = f"{checksum(directory):016x}"
    return bytes(changed)


def checksum(data: bytes) -> int:
    """See csrc/src/checksum.h."""
    mask, factor = 2**64 - 1, 0x9E3779B97F4A7C15
    chains = [1, 2, 3, 4]
    for i, (word,) in enumerate(struct.iter_unpack("<Q", data)):
        mixed = (chains[i % 4] ^ word) * factor & mask
        chains[i % 4] = (mixed << 29 | mixed >> 35) & mask
    total = len(data)
    for chain in chains:
        total = mix(total ^ chain) * factor & mask
    return total


def mix(x: int) -> int:
    mask = 2**64 - 1
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & mask
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & mask
    return x ^ x >> 33


# --- What must hold --------------------------------------------------------------------------------------------------


def logs(cache: DraftCache) -> dict[str, Any]:
    whole = {name: cache.export_log(name) for name in cache.namespaces}
    return {
        name: (log.tokens.tolist(), log.lengths.tolist(), log.owners.tolist(), log.request_ids)
        for name, log in whole.items()
    }


def check_cache(data: bytes) -> bool:
    """Whether it was loaded."""
    CACHE_PATH.write_bytes(data)
    try:
        cache = DraftCache.load(CACHE_PATH, max_bytes=LARGE_BYTES)
    except CacheFileError:
        return False
    cache_file.read_header(CACHE_PATH)
    cache.check_integrity()
    cache.save(AGAIN_PATH)
    assert logs(DraftCache.load(AGAIN_PATH, max_bytes=LARGE_BYTES)) == logs(cache)
    for namespace in cache.namespaces[:4]:
        draft(cache, namespace, ())
    try:
        small = DraftCache.load(CACHE_PATH, max_bytes=MAX_BYTES)
    except CacheFileError:
        return True
    small.check_integrity()
    assert small.memory_usage <= MAX_BYTES
    return True


def check_corpus(data: bytes) -> bool:
    CORPUS_PATH.unlink(missing_ok=True)  # others may have it open
    CORPUS_PATH.write_bytes(data)
    try:
        corpus = Corpus.open(CORPUS_PATH, preload=len(data) % 2 == 0)
        repr(corpus)
    except CacheFileError:
        return False
    for token in range(30):
        for shape in range(len(_core.context_shapes())):
            counts = corpus.counts([token] * 16, shape)
            assert all(0 <= t < corpus.vocab_size and count > 0 for t, count in counts.items())
            assert corpus.total([token] * 16, shape) >= 0
    cache = DraftCache(max_bytes=MAX_BYTES)
    cache.attach("some", corpus)
    draft(cache, "", ("some",))
    try:
        corpus.verify()
    except CacheFileError:
        return True
    return True


def draft(cache: DraftCache, namespace: str, corpora: tuple[str, ...]) -> None:
    vocab_size = cache.vocab_size or 100
    session = cache.begin([1 % vocab_size, 0], namespace=namespace, corpora=corpora)
    for token in range(5):
        tree = session.propose(8)
        assert all(-1 <= parent < i for i, parent in enumerate(tree.parents.tolist()))
        session.observe([token % vocab_size])
    session.end(commit=False)


def test_one_input(data: bytes) -> None:
    choices = Choices(data)
    is_cache = choices.byte() % 2 == 0
    accepted = check_cache(changed_cache(choices)) if is_cache else check_corpus(changed_corpus(choices))
    TALLY[is_cache, accepted] = TALLY.get((is_cache, accepted), 0) + 1


CACHES = good_caches()
CORPORA = good_corpora()
TALLY: dict[tuple[bool, bool], int] = {}


# --- Running ---------------------------------------------------------------------------------------------------------


def run_by_chance(seconds: float, artifact: str) -> None:
    """Stands in for atheris."""
    begin, num_runs = time.monotonic(), 0
    seed = random.randrange(2**32)
    numbers = random.Random(seed)
    while time.monotonic() - begin < seconds:
        data = numbers.randbytes(numbers.randrange(300))
        num_runs += 1
        try:
            test_one_input(data)
        except BaseException:
            Path(f"{artifact}crash-input").write_bytes(data)
            raise
    print(f"Done {num_runs} runs in {time.monotonic() - begin:.0f} second(s)")


def instrument() -> None:
    """Lets atheris see which lines of the loaders run."""
    for module in (cache_file, corpus_file):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(function))


def main() -> None:
    options = dict(part[1:].split("=", 1) for part in sys.argv[1:] if part.startswith("-") and "=" in part)
    files = [part for part in sys.argv[1:] if not part.startswith("-")]
    if files:
        for path in files:
            test_one_input(Path(path).read_bytes())
    elif atheris is None:
        run_by_chance(float(options.get("max_total_time", 60)), options.get("artifact_prefix", ""))
    else:
        instrument()
        atheris.Setup([*sys.argv, "-max_len=300", "-len_control=0"], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
