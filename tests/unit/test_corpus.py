"""Corpora: what they count, how they are built in little memory, attached, and found to be damaged."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import pia
from pia.drafting import corpus_file
from pia.drafting.cache import DraftCache
from pia.drafting.corpus import Corpus, CorpusBuilder, build_corpus
from pia.errors import CacheFileError, CacheMismatchError, UnsupportedOptionError

PAGE = corpus_file.HEADER_BYTES


def texts(count: int = 200, vocab_size: int = 200, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [(random.zipf(1.4, random.integers(0, 300)) % vocab_size).astype(np.int32) for _ in range(count)]


def shape_of(corpus: Corpus, skip: int, length: int) -> int:
    return corpus.header.shapes.index((skip, length))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "docs.corpus"


@pytest.fixture
def corpus(path):
    return build_corpus(path, texts(), vocab_size=200, tokenizer_fingerprint="abc")


# --- What it says ----------------------------------------------------------------------------------------------------


def test_continuations_are_counted_most_frequent_first(path):
    corpus = build_corpus(path, [[1, 2, 3], [1, 2, 4], [9, 2, 4]], vocab_size=10)
    one, two = shape_of(corpus, 0, 1), shape_of(corpus, 0, 2)
    assert list(corpus.counts([2], one).items()) == [(4, 2), (3, 1)]
    assert corpus.total([2], one) == 3
    assert corpus.counts([1, 2], two) == {3: 1, 4: 1}
    assert list(corpus.counts([1, 2], two)) == [3, 4]
    assert corpus.counts([1, 0], shape_of(corpus, 1, 1)) == {3: 1, 4: 1}  # the last token is left out
    assert corpus.counts([4], one) == {} and corpus.total([4], one) == 0  # nothing follows the end of a sequence
    assert (corpus.num_tokens, corpus.num_sequences, corpus.vocab_size) == (9, 3, 10)


def test_counts_that_fit_no_small_field(path):
    often = [1] * 300_000
    for vocab_size in (3, 70_000, 1 << 31):  # 2, 17 and 31 bits a token
        corpus = build_corpus(path, [often, [2, 1, 2]], vocab_size=vocab_size)
        one = shape_of(corpus, 0, 1)
        assert list(corpus.counts([1], one).items()) == [(1, 299_999), (2, 1)]
        assert corpus.counts([2], one) == {1: 1}
        assert corpus.counts([1, 1], shape_of(corpus, 0, 2)) == {1: 299_998}
        corpus.verify()


def test_the_64_most_frequent_continuations_are_kept(path):
    sequences = [[0, 1 + token] for token in range(500) for _ in range(1 + token // 100)]
    corpus = build_corpus(path, sequences, vocab_size=1000)
    counts = corpus.counts([0], shape_of(corpus, 0, 1))
    assert list(counts.items()) == [(401 + i, 5) for i in range(64)]
    assert corpus.total([0], shape_of(corpus, 0, 1)) == len(sequences)


def test_an_empty_corpus(path):
    corpus = build_corpus(path, [[], [5]], vocab_size=10)
    assert (corpus.num_tokens, corpus.num_sequences, corpus.num_contexts) == (1, 1, 0)
    assert corpus.counts([5], 0) == {}
    corpus.verify()


def test_pieces_of_a_sequence_count_as_one(tmp_path):
    whole = np.concatenate(texts(20))
    build_corpus(tmp_path / "whole.corpus", [whole], vocab_size=200)
    with CorpusBuilder(tmp_path / "pieces.corpus", vocab_size=200) as builder:
        for piece in np.array_split(whole, 333):
            builder.extend(piece)
        builder.finish()
    assert (tmp_path / "whole.corpus").read_bytes() == (tmp_path / "pieces.corpus").read_bytes()


def test_little_memory_gives_the_same_file(tmp_path):
    sequences = texts(2000)
    build_corpus(tmp_path / "much.corpus", sequences, vocab_size=200)
    with CorpusBuilder(tmp_path / "little.corpus", vocab_size=200, max_memory=1 << 20) as builder:
        for sequence in sequences:
            builder.add(sequence)
        assert builder.num_runs >= 10
        builder.finish()
    assert (tmp_path / "little.corpus").read_bytes() == (tmp_path / "much.corpus").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["little.corpus", "much.corpus"]


def test_it_looks_like_something(corpus, path):
    assert repr(corpus).startswith(f"Corpus({str(path)!r}, {corpus.num_tokens:,} tokens")
    assert corpus.nbytes == path.stat().st_size
    corpus.close()
    corpus.close()
    assert "closed" in repr(corpus)
    with pytest.raises(ValueError, match="closed"):
        corpus.counts([1], 0)
    with pytest.raises(ValueError, match="too short"):
        Corpus.open(path, preload=True).counts([1], 1)


# --- Building that fails ---------------------------------------------------------------------------------------------


def test_bad_arguments(path):
    for kwargs in ({"vocab_size": 0}, {"vocab_size": 1 << 32}, {"vocab_size": 5, "max_memory": 1000}):
        with pytest.raises(ValueError, match="must"):
            CorpusBuilder(path, **kwargs)
    with pytest.raises(CacheFileError, match=r"can't save the corpus to .*nowhere.*folder exists"):
        CorpusBuilder(path.parent / "nowhere" / "x.corpus", vocab_size=5)
    assert os.listdir(path.parent) == []


def test_a_build_that_fails_leaves_nothing(path):
    def sequences():
        yield from texts(500)
        yield [1, 200]

    path.write_text("precious")
    with pytest.raises(ValueError, match="token id 200 lies outside the vocabulary of 200"):
        build_corpus(path, sequences(), vocab_size=200, max_memory=1 << 20)
    assert os.listdir(path.parent) == [path.name] and path.read_text() == "precious"


def test_ctrl_c_while_merging_leaves_nothing(path):
    def interrupt(share):
        raise KeyboardInterrupt

    many = np.random.default_rng(0).integers(0, 1000, 400_000)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(path, [many], vocab_size=1000, max_memory=1 << 20, progress=interrupt)
    assert os.listdir(path.parent) == []


def test_a_builder_is_used_up(path):
    with CorpusBuilder(path, vocab_size=5) as builder:
        builder.add([1, 2])
        builder.finish()
        with pytest.raises(ValueError, match="closed"):
            builder.add([1])
    builder.close()
    assert Corpus.open(path).num_tokens == 2


def test_progress_rises(path):
    seen: list[float] = []
    many = np.random.default_rng(0).integers(0, 1000, 800_000)
    build_corpus(path, [many], vocab_size=1000, progress=seen.append)
    assert len(seen) > 2 and seen == sorted(seen) and seen[0] > 0 and seen[-1] <= 1


@pytest.mark.skipif(os.name != "posix", reason="needs kill")
def test_killed_builds_leave_the_old_file(path):
    build_corpus(path, texts(10), vocab_size=200)
    before = path.read_bytes()
    code = (
        "import numpy as np, sys\n"
        "from pia.drafting.corpus import build_corpus\n"
        "print('go', flush=True)\n"
        "many = [np.random.default_rng(i).integers(0, 200, 20_000) for i in range(100)]\n"
        "while True: build_corpus(sys.argv[1], many, vocab_size=200, max_memory=1 << 20)\n"
    )
    for delay in (0.05, 0.4, 0.9):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert path.read_bytes() == before or Corpus.open(path).num_tokens == 2_000_000
        Corpus.open(path).verify()
    assert not [name for name in os.listdir(path.parent) if name.endswith(".runs")]


# --- Damage ----------------------------------------------------------------------------------------------------------


def with_header(path, **changes):
    """Rewrites the header, with a right digest."""
    header = corpus_file.unpack_header(path.read_bytes()[:PAGE], path)
    path.write_bytes(corpus_file.pack_header(replace(header, **changes)) + path.read_bytes()[PAGE:])


def test_files_that_are_no_corpora(path, tmp_path):
    with pytest.raises(CacheFileError, match=r"can't read the corpus .*No such file"):
        Corpus.open(path)
    with pytest.raises(CacheFileError, match="can't read the corpus"):
        Corpus.open(tmp_path)
    for content in (b"", b"hello", b"PIACACHE" + bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(CacheFileError, match="not a corpus"):
            Corpus.open(path)


def test_cut_off_anywhere(corpus, path):
    data = path.read_bytes()
    for size in (20, PAGE - 1, PAGE, PAGE + 1, len(data) // 2, len(data) - PAGE, len(data) - 1):
        path.with_name("cut").write_bytes(data[:size])
        with pytest.raises(CacheFileError, match="damaged"):
            Corpus.open(path.with_name("cut"))
    path.with_name("long").write_bytes(data + b"\0")
    with pytest.raises(CacheFileError, match="damaged"):
        Corpus.open(path.with_name("long"))


def test_newer_formats_and_other_contexts(corpus, path):
    data = bytearray(path.read_bytes())
    data[8] = 99
    path.with_name("newer").write_bytes(data)
    with pytest.raises(CacheFileError, match=r"format 99.*newer PIA"):
        Corpus.open(path.with_name("newer"))
    with_header(path, hash_probe=1)
    with pytest.raises(CacheFileError, match="other contexts"):
        Corpus.open(path)


def test_headers_that_lie(corpus, path):
    original = path.read_bytes()
    header = corpus.header
    lies = [
        {"num_words": header.num_words + PAGE},
        {"num_words": 1 << 47},
        {"num_words": header.num_words // 2},
        {"num_buckets": header.num_buckets * 1024},
        {"num_buckets": 3},
        {"num_buckets": 0},
        {"vocab_size": 0},
        {"vocab_size": (1 << 31) + 1},
        {"directory_checksum": header.directory_checksum ^ 1},
    ]
    for lie in lies:
        path.write_bytes(original)
        with_header(path, **lie)
        with pytest.raises(CacheFileError, match="damaged"):
            Corpus.open(path)


@pytest.mark.parametrize("text", [b"[]", b"{}", b"\xff", b"{" * 2000, b"[" * 2000])
def test_headers_that_are_not_json(path, text):
    page = struct.pack("<8sII", b"PIACORPS", 1, len(text)) + text
    page += bytes(PAGE - 32 - len(page))
    path.write_bytes(page + hashlib.blake2b(page, digest_size=32).digest())
    with pytest.raises(CacheFileError, match="damaged: its header"):
        Corpus.open(path)


def test_a_flipped_bit_in_the_data_is_found_by_verify(corpus, path):
    original = path.read_bytes()
    start = PAGE + -(-(corpus.header.num_buckets + 1) * 8 // PAGE) * PAGE
    for place in np.random.default_rng(0).integers(start, len(original), 20):
        data = bytearray(original)
        data[place] ^= 1 << (place % 8)
        path.with_name("flipped").write_bytes(data)
        damaged = Corpus.open(path.with_name("flipped"))
        with pytest.raises(CacheFileError, match="damaged: the checksum of its data"):
            damaged.verify()


def test_wild_data_never_leads_outside(corpus, path):
    """Whatever lies in the buckets, a look-up ends, and hands on nothing but tokens of the vocabulary."""
    original = path.read_bytes()
    start = PAGE + -(-(corpus.header.num_buckets + 1) * 8 // PAGE) * PAGE
    random = np.random.default_rng(1)
    probes = texts(20, seed=2)
    for fill in (b"\xff", b"\x80", b"\0", None):
        noise = random.bytes(len(original) - start) if fill is None else fill * (len(original) - start)
        path.with_name("wild").write_bytes(original[:start] + noise)
        wild = Corpus.open(path.with_name("wild"))
        for text in probes:
            wild.core.probe(text)
            for end in range(20, len(text)):
                for shape in range(len(wild.header.shapes)):
                    counts = wild.counts(text[:end], shape)
                    assert all(token < 200 and count > 0 for token, count in counts.items())
                    assert sum(counts.values()) <= wild.total(text[:end], shape)


# --- Attaching -------------------------------------------------------------------------------------------------------


def test_attach_by_name_and_begin(corpus, path):
    cache = DraftCache()
    assert cache.corpora == []
    cache.attach("docs", corpus)
    cache.attach("code", path)
    cache.attach("code", str(path))  # takes the place of the other
    assert cache.corpora == ["code", "docs"]
    assert (cache.vocab_size, cache.tokenizer_fingerprint) == (200, "abc")
    for names in ((), ["docs"], ("code", "docs", "docs"), "docs"):
        session = cache.begin([1, 2, 3], corpora=names)
        session.propose(8)
        session.observe([4])
        session.end(commit=True)
    cache.detach("docs")
    assert cache.corpora == ["code"]
    with pytest.raises(UnsupportedOptionError, match=r"no corpus named 'docs'.*attached: code"):
        cache.begin([1], corpora=["docs"])
    with pytest.raises(UnsupportedOptionError, match="no corpus named 'x'"):
        cache.detach("x")
    with pytest.raises(UnsupportedOptionError, match=r"no corpus named 'd'.*attached: none"):
        DraftCache().begin([1], corpora=["d"])
    for name in ("", 7):
        with pytest.raises(UnsupportedOptionError, match="by a name"):
            cache.attach(name, corpus)
    with pytest.raises(CacheFileError, match="No such file"):
        cache.attach("new", path.with_name("missing"))


def test_a_corpus_of_another_tokenizer(corpus, tmp_path):
    cache = DraftCache(tokenizer_fingerprint="xyz")
    with pytest.raises(CacheMismatchError, match="'docs' was built with another tokenizer"):
        cache.attach("docs", corpus)
    with pytest.raises(CacheMismatchError, match="vocabulary of 200 tokens, not 300"):
        DraftCache(vocab_size=300).attach("docs", corpus)
    bound = DraftCache()
    bound.attach("docs", corpus)
    with pytest.raises(CacheMismatchError):
        bound.bind(fingerprint="xyz")
    plain = build_corpus(tmp_path / "plain.corpus", [[1, 2]], vocab_size=200)
    bound.attach("plain", plain)
    padded = DraftCache(vocab_size=256, tokenizer_fingerprint="abc")  # ids of a model whose vocabulary is rounded up
    padded.attach("docs", corpus)
    assert padded.corpora == ["docs"] and cache.corpora == []


def test_sessions_outlive_what_they_read(path):
    cache = DraftCache()
    cache.attach("docs", build_corpus(path, texts(), vocab_size=200))
    session = cache.begin([1, 2, 3], corpora=["docs"])
    cache.detach("docs")
    path.unlink()
    gc.collect()
    session.propose(16)
    session.observe([5])
    session.propose(16)
    session.end(commit=False)


def test_a_corpus_is_replaced_under_its_readers(path):
    old = build_corpus(path, [[1, 2, 3]], vocab_size=10)
    new = build_corpus(path, [[1, 2, 4], [1, 2, 4]], vocab_size=10)
    assert old.counts([1, 2], 1) == {3: 1}
    assert new.counts([1, 2], 1) == {4: 2}


def test_many_threads_read_attach_and_detach(corpus, path):
    cache = DraftCache()
    cache.attach("docs", corpus)
    faults: list[BaseException] = []
    sample = texts(30, seed=5)
    expected = [corpus.core.probe(text) for text in sample]

    def read():
        for _ in range(20):
            assert [corpus.core.probe(text) for text in sample] == expected
            session = cache.begin([1, 2, 3], corpora=["docs"])
            session.propose(16)
            session.end(commit=True)

    def change():
        for _ in range(50):
            cache.attach("more", path)
            cache.begin([1, 2], corpora=["more", "docs"]).propose(4)
            cache.detach("more")

    def guarded(work):
        try:
            work()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (read, read, change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert cache.corpora == ["docs"]


def test_options(corpus, llama):
    assert pia.LookaheadConfig(corpora=["a", "b"]).corpora == ("a", "b")
    assert pia.LookaheadConfig(corpora="docs").corpora == ("docs",)
    assert pia.Lookahead(corpora={"docs": corpus, "code": corpus.path}).cache.corpora == ["code", "docs"]
    for wrong in (7, [7], None):
        with pytest.raises(UnsupportedOptionError, match="must be names"):
            pia.LookaheadConfig(corpora=wrong)


def test_generate_with_corpora(llama, tmp_path):
    """Attached corpora change nothing about the output; unknown ones are refused."""
    import torch

    size = llama.config.vocab_size
    random = np.random.default_rng(0)
    corpus = build_corpus(tmp_path / "a.corpus", random.integers(0, size, (50, 40)), vocab_size=size)
    lookahead = pia.Lookahead(corpora=["docs"], budget=8)
    prompt = torch.tensor([[1, 2, 3, 4]])
    with pytest.raises(UnsupportedOptionError, match="no corpus named 'docs'"):
        llama.generate(prompt, custom_generate=lookahead, max_new_tokens=4, do_sample=False)
    lookahead.cache.attach("docs", corpus)
    plain = llama.generate(prompt, max_new_tokens=12, do_sample=False)
    for decoding_kwargs in (None, {"corpora": ["docs"]}, {"corpora": []}):
        drafted = llama.generate(
            prompt,
            custom_generate=lookahead,
            decoding_kwargs=decoding_kwargs,
            max_new_tokens=12,
            do_sample=False,
        )
        assert drafted.tolist() == plain.tolist()
    with pytest.raises(UnsupportedOptionError, match="no corpus named 'x'"):
        llama.generate(
            prompt, custom_generate=lookahead, decoding_kwargs={"corpora": "x"}, max_new_tokens=4, do_sample=False
        )


def test_the_header_is_json_that_anybody_can_read(corpus, path):
    page = path.read_bytes()[:PAGE]
    fields = json.loads(page[16 : 16 + struct.unpack_from("<I", page, 12)[0]])
    assert fields["num_tokens"] == corpus.num_tokens and fields["tokenizer_fingerprint"] == "abc"
    with pytest.raises(ValueError, match="too long"):
        corpus_file.pack_header(replace(corpus.header, tokenizer_fingerprint="x" * 5000))
