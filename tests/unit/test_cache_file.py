"""Saved draft caches: round trips, damage of every kind, disks that are full."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from pia.drafting import cache_file
from pia.drafting.cache import DraftCache
from pia.drafting.fingerprint import tokenizer_fingerprint
from pia.errors import CacheFileError, CacheMismatchError


def example() -> DraftCache:
    cache = DraftCache(vocab_size=1000, tokenizer_fingerprint="abc")
    random = np.random.default_rng(0)
    for _ in range(20):
        cache.insert(random.integers(0, 40, 30), stop_ids={7})
        cache.insert(random.integers(0, 1000, 30), namespace="Köln")
    return cache


def drafts(cache: DraftCache) -> list[list[float]]:
    found = []
    for namespace in ("", "Köln"):
        for token in range(40):
            tree = cache.begin([token], namespace=namespace).propose(16)
            found += [tree.token_ids.tolist(), tree.parents.tolist(), tree.probs.tolist()]
    return found


def with_digest(data: bytes) -> bytes:
    return data + hashlib.blake2b(data, digest_size=32).digest()


def crafted(fields: object, *sections: bytes, version: int = 2) -> bytes:
    """A file of our own making, with a right checksum."""
    header = json.dumps(fields).encode()
    return with_digest(struct.pack("<8sII", b"PIACACHE", version, len(header)) + header + b"".join(sections))


# --- Round trips -----------------------------------------------------------------------------------------------------


def test_a_loaded_cache_drafts_as_the_saved_one(tmp_path):
    cache = example()
    cache.save(tmp_path / "cache.pia")
    loaded = DraftCache.load(tmp_path / "cache.pia")
    loaded.check_integrity()
    assert drafts(loaded) == drafts(cache)
    assert loaded.namespaces == cache.namespaces == ["", "Köln"]
    assert (loaded.vocab_size, loaded.tokenizer_fingerprint) == (1000, "abc")
    assert (loaded.num_tokens, loaded.num_contexts) == (cache.num_tokens, cache.num_contexts)
    loaded.save(tmp_path / "again.pia")
    assert (tmp_path / "again.pia").read_bytes() == (tmp_path / "cache.pia").read_bytes()


def test_request_ids_survive(tmp_path):
    cache = example()
    cache.insert([1, 2, 3, 4], request_id="Grüße", namespace="Köln")
    cache.insert([5, 6], request_id="two")
    cache.insert([6, 7], request_id="two")
    cache.save(tmp_path / "cache.pia")
    loaded = DraftCache.load(tmp_path / "cache.pia")
    assert drafts(loaded) == drafts(cache)
    assert (loaded.forget("two"), loaded.forget("Grüße", namespace="Köln")) == (4, 4)
    assert drafts(loaded) == drafts(example())


def test_a_large_cache_comes_back_whole(tmp_path):
    random = np.random.default_rng(0)
    cache = DraftCache(max_bytes=1 << 28)
    cache.import_sequences((random.zipf(1.2, 300_000) % 70_000).astype(np.int32), np.full(1000, 300, np.int32))
    cache.save(tmp_path / "cache.pia")
    loaded = DraftCache.load(tmp_path / "cache.pia", max_bytes=1 << 28)
    loaded.check_integrity()
    assert loaded.num_contexts == cache.num_contexts
    assert drafts(loaded) == drafts(cache)


def test_files_of_the_first_format_are_read(tmp_path):
    (tmp_path / "cache.pia").write_bytes(crafted(fields(), SECTION, version=1))
    assert DraftCache.load(tmp_path / "cache.pia").num_tokens == 3
    assert cache_file.read_header(tmp_path / "cache.pia").version == 1


def test_an_empty_cache_and_large_ids_survive(tmp_path):
    DraftCache().save(tmp_path / "empty.pia")
    assert DraftCache.load(tmp_path / "empty.pia").num_tokens == 0
    cache = DraftCache()
    cache.insert([2**31 - 1, 0, 70_000])
    cache.save(tmp_path / "cache.pia")
    assert DraftCache.load(tmp_path / "cache.pia").export_sequences()[0].tolist() == [2**31 - 1, 0, 70_000]


def test_a_file_is_compact(tmp_path):
    cache = DraftCache(vocab_size=2048)
    words = np.random.default_rng(0).zipf(1.3, 100_000) % 2048
    cache.insert(words)
    cache.save(tmp_path / "cache.pia")
    assert (tmp_path / "cache.pia").stat().st_size < 2 * len(words) < cache.memory_usage / 10


def test_a_cache_may_be_loaded_into_less_memory(tmp_path):
    cache = DraftCache()
    cache.insert(np.random.default_rng(0).integers(0, 5000, 20_000))
    cache.save(tmp_path / "cache.pia")
    small = DraftCache.load(tmp_path / "cache.pia", max_bytes=1 << 17)
    small.check_integrity()
    assert 0 < small.memory_usage <= 1 << 17


def test_too_little_memory_for_all_the_names_says_so(tmp_path):
    cache = DraftCache()
    for i in range(300):
        cache.insert([1, 2, 3], namespace=f"tenant {i}")
    cache.save(tmp_path / "cache.pia")
    with pytest.raises(CacheFileError, match="300 namespaces, too many for 65536 bytes; load it with a larger"):
        DraftCache.load(tmp_path / "cache.pia", max_bytes=64 << 10)


def test_the_header_tells_what_is_inside(tmp_path):
    example().save(tmp_path / "cache.pia")
    header = cache_file.read_header(tmp_path / "cache.pia")
    assert (header.version, header.vocab_size, header.tokenizer_fingerprint) == (2, 1000, "abc")
    assert header.num_tokens == 1200
    assert [section.name for section in header.namespaces] == ["", "Köln"]
    assert [section.num_tokens for section in header.namespaces] == [600, 600]


def test_another_tokenizers_cache_is_refused(tmp_path):
    example().save(tmp_path / "cache.pia")
    loaded = DraftCache.load(tmp_path / "cache.pia")
    loaded.bind(1000, "abc")
    with pytest.raises(CacheMismatchError):
        loaded.bind(1000, "xyz")
    with pytest.raises(CacheMismatchError):
        loaded.bind(2000, "abc")


def test_saving_while_others_learn_gives_a_whole_file(tmp_path):
    cache = DraftCache(vocab_size=100, max_bytes=1 << 18)
    is_over = threading.Event()

    def learn() -> None:
        while not is_over.is_set():
            cache.insert(list(range(50)))

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        for _ in range(20):
            cache.save(tmp_path / "cache.pia")
            lengths = DraftCache.load(tmp_path / "cache.pia").export_sequences()[1]
            assert set(lengths.tolist()) <= {50}
    finally:
        is_over.set()
        thread.join()


# --- Damage ----------------------------------------------------------------------------------------------------------


def test_any_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "cache.pia"
    example().save(path)
    good = path.read_bytes()
    for at in range(0, len(good), 1 if len(good) < 3000 else 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])
        with pytest.raises(CacheFileError, match=r"cache\.pia"):
            DraftCache.load(path)


def test_any_cut_is_noticed(tmp_path):
    path = tmp_path / "cache.pia"
    example().save(path)
    good = path.read_bytes()
    for size in [*range(64), *range(64, len(good), 17), len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(CacheFileError, match=r"cache\.pia"):
            DraftCache.load(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(CacheFileError, match="damaged"):
        DraftCache.load(path)


def test_foreign_missing_and_newer_files_are_named(tmp_path):
    path = tmp_path / "cache.pia"
    with pytest.raises(CacheFileError, match="No such file"):
        DraftCache.load(path)
    with pytest.raises(CacheFileError, match="directory"):
        DraftCache.load(tmp_path)
    path.write_bytes(b"{}")
    with pytest.raises(CacheFileError, match="is not a draft cache"):
        DraftCache.load(path)
    path.write_bytes(crafted({}, version=3))
    with pytest.raises(CacheFileError, match="format 3, but this PIA reads up to 2; install a newer PIA"):
        DraftCache.load(path)


def fields(**changes: object) -> dict[str, object]:
    """A header for one namespace with the two sequences [1, 2] and [3]."""
    section = {"name": "", "num_sequences": 2, "num_tokens": 3, "num_bytes": len(SECTION), "num_id_bytes": 0}
    section |= {key: changes.pop(key) for key in [*changes] if key in section}
    whole = {"vocab_size": 10, "tokenizer_fingerprint": None, "num_tokens": 3, "token_bytes": 2}
    return whole | {"namespaces": [section]} | changes


def packed(lengths: list[int], tokens: list[int], dtype: str = "<u2") -> bytes:
    return zlib.compress(np.array(lengths, "<u4").tobytes() + np.array(tokens, dtype).tobytes())


SECTION = packed([2, 1], [1, 2, 3])
BAD_SECTIONS = {
    "an id outside the vocabulary": packed([2, 1], [1, 2, 10]),
    "lengths that are too short": packed([1, 1], [1, 2, 3]),
    "lengths that are too long": packed([2, 2**31], [1, 2, 3]),
    "too few tokens": packed([2, 1], [1, 2]),
    "too many tokens": packed([2, 1], [1, 2, 3, 4]),
    "not zlib": b"\1\2\3\4",
    "a cut stream": SECTION[:-3],
    "something behind the stream": SECTION + b"..",
    "far more than announced": zlib.compress(bytes(10_000_000)),
}


def test_the_crafted_file_is_fine_as_it_stands(tmp_path):
    (tmp_path / "cache.pia").write_bytes(crafted(fields(), SECTION))
    cache = DraftCache.load(tmp_path / "cache.pia")
    assert cache.export_sequences()[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("section", BAD_SECTIONS.values(), ids=BAD_SECTIONS.keys())
def test_crafted_sections_are_refused(tmp_path, section):
    (tmp_path / "cache.pia").write_bytes(crafted(fields(num_bytes=len(section)), section))
    with pytest.raises(CacheFileError, match="damaged"):
        DraftCache.load(tmp_path / "cache.pia")


def test_ids_of_more_than_31_bits_are_refused(tmp_path):
    section = packed([1], [2**32 - 1], "<u4")
    header = fields(num_sequences=1, num_tokens=1, num_bytes=len(section), vocab_size=None, token_bytes=4)
    (tmp_path / "cache.pia").write_bytes(crafted(header, section))
    with pytest.raises(CacheFileError, match="out of range"):
        DraftCache.load(tmp_path / "cache.pia")


def with_ids(owners: list[int], ids: bytes) -> bytes:
    """The section of `fields` with owners and request ids behind it."""
    raw = np.array([2, 1], "<u4").tobytes() + np.array([1, 2, 3], "<u2").tobytes()
    return zlib.compress(raw + np.array(owners, "<i4").tobytes() + ids)


def load_with_ids(folder: Path, owners: list[int], ids: bytes) -> DraftCache:
    section = with_ids(owners, ids)
    (folder / "cache.pia").write_bytes(
        crafted(fields(num_bytes=len(section), num_id_bytes=len(ids)), section),
    )
    return DraftCache.load(folder / "cache.pia")


def test_the_crafted_ids_are_fine_as_they_stand(tmp_path):
    assert load_with_ids(tmp_path, [-1, 0], b'["r"]').forget("r") == 1


@pytest.mark.parametrize("ids", [b"[1]", b"{}", b"[", b'[""]', b'["\\ud800"]', b'["\xff"]', b"[" * 100_000])
def test_crafted_request_ids_are_refused(tmp_path, ids):
    with pytest.raises(CacheFileError, match="damaged"):
        load_with_ids(tmp_path, [0, 0], ids)


@pytest.mark.parametrize("owners", [[0], [0, 1], [0, 0, 0]])
def test_crafted_owners_are_refused(tmp_path, owners):
    with pytest.raises(CacheFileError, match="damaged"):
        load_with_ids(tmp_path, owners, b'["r"]')


BAD_HEADERS = [
    [],
    {},
    None,
    fields(vocab_size=-1),
    fields(vocab_size="many"),
    fields(vocab_size=2**40),
    fields(tokenizer_fingerprint=5),
    fields(token_bytes=3),
    fields(token_bytes=2.0),
    fields(num_bytes=-5),
    fields(num_tokens=-3),
    fields(num_tokens=2**47),
    fields(num_sequences=1.5),
    fields(num_sequences=2**63),
    fields(num_bytes=10**9),
    fields(namespaces=[1]),
    fields(name=None),
    fields(name="\ud800"),
    fields(namespaces={"a": 1}),
    fields(namespaces=None),
]


@pytest.mark.parametrize("header", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_crafted_headers_are_refused(tmp_path, header):
    (tmp_path / "cache.pia").write_bytes(crafted(header, SECTION))
    with pytest.raises(CacheFileError, match="damaged"):
        DraftCache.load(tmp_path / "cache.pia")


def test_crafted_prefixes_are_refused(tmp_path):
    path = tmp_path / "cache.pia"
    for data in (
        struct.pack("<8sII", b"PIACACHE", 2, 2**32 - 1),
        struct.pack("<8sII", b"PIACACHE", 2, 3) + b"\xff\xfe{",
    ):
        path.write_bytes(with_digest(data))
        with pytest.raises(CacheFileError, match="damaged"):
            DraftCache.load(path)


# --- Saving where it can't be ----------------------------------------------------------------------------------------


def test_saving_to_nowhere_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "cache.pia", tmp_path / "file" / "cache.pia", tmp_path):
        with pytest.raises(CacheFileError, match="choose another path"):
            example().save(path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CacheFileError, match="Permission denied"):
        example().save(tmp_path / "cache.pia")


FULL_DISK = """
import resource, signal, sys
from pia.drafting.cache import DraftCache
from pia.errors import CacheFileError
cache = DraftCache()
cache.insert(list(range(20_000)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    cache.save(sys.argv[1])
except CacheFileError as error:
    assert sys.argv[1] in str(error) and "room" in str(error), error
else:
    raise SystemExit("saved, against all odds")
"""


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "cache.pia"
    example().save(path)
    before = path.read_bytes()
    subprocess.run([sys.executable, "-c", FULL_DISK, path], check=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["cache.pia"]


ENDLESS_SAVING = """
import sys
from pia.drafting.cache import DraftCache
caches = []
for size in (300, 60_000):
    caches.append(DraftCache())
    caches[-1].insert(list(range(size)))
while True:
    for cache in caches:
        cache.save(sys.argv[1])
        print(flush=True)
"""


def test_killing_it_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "cache.pia"
    random = np.random.default_rng(0)
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", ENDLESS_SAVING, path], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # the first file is there
        time.sleep(random.uniform(0, 0.05))
        child.kill()
        child.wait()
        child.stdout.close()
        assert DraftCache.load(path).num_tokens in (300, 60_000)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_at_any_stage_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "cache.pia"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CacheFileError, match="No space left on device"):
        example().save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["cache.pia"]


def test_saving_keeps_links_and_permissions(tmp_path):
    real, link = tmp_path / "real.pia", tmp_path / "link.pia"
    example().save(real)
    umask = os.umask(0)
    os.umask(umask)
    assert real.stat().st_mode & 0o777 == 0o666 & ~umask
    real.chmod(0o640)
    link.symlink_to(real)
    example().save(link)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert DraftCache.load(Path(link)).num_tokens == 1200


# --- Fingerprints ----------------------------------------------------------------------------------------------------


class Tokenizer:
    def __init__(self, vocab: dict[str, int], added: dict[int, str] | None = None) -> None:
        self.vocab = vocab
        self.added_tokens_decoder = added or {}

    def get_vocab(self) -> dict[str, int]:
        return self.vocab


def test_fingerprints_tell_vocabularies_apart():
    base = tokenizer_fingerprint(Tokenizer({"a": 0, "b": 1}))
    assert base == tokenizer_fingerprint(Tokenizer({"b": 1, "a": 0}))
    assert base == tokenizer_fingerprint(Tokenizer({"a": 0, "b": 1}, {1: "b"}))
    others = [Tokenizer({"a": 1, "b": 0}), Tokenizer({"a": 0}), Tokenizer({"a": 0, "b": 1}, {2: "<eos>"})]
    assert len({base, *map(tokenizer_fingerprint, others)}) == 4
    assert base == "3aa397edaaf4ad2a024ad5da4b93b8b7"  # the same in every process and version
