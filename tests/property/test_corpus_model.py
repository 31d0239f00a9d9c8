"""Corpora against a dictionary of counts, and against files that chance has damaged."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pia.drafting.corpus import Corpus, CorpusBuilder, build_corpus
from pia.errors import CacheFileError

VOCAB_SIZE = 12
MOST = 64
SEQUENCES = st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40), max_size=12)


class SlowCorpus:
    """What a corpus shall say: plain dictionaries of counts."""

    def __init__(self, shapes: tuple[tuple[int, int], ...]) -> None:
        self.shapes = shapes
        self.tables: dict[tuple[int, tuple[int, ...]], Counter[int]] = defaultdict(Counter)

    def add(self, text: list[int]) -> None:
        for at, token in enumerate(text):
            for number, (skip, length) in enumerate(self.shapes):
                if skip + length <= at:
                    self.tables[number, tuple(text[at - skip - length : at - skip])][token] += 1

    def counts(self, number: int, context: tuple[int, ...]) -> list[tuple[int, int]]:
        table = self.tables.get((number, context), Counter())
        return sorted(table.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST]


def assert_same(corpus: Corpus, model: SlowCorpus) -> None:
    assert corpus.num_contexts == len(model.tables)
    for (number, context), table in model.tables.items():
        skip = model.shapes[number][0]
        tokens = [*context, *[0] * skip]  # what is skipped does not matter
        assert list(corpus.counts(tokens, number).items()) == model.counts(number, context)
        assert corpus.total(tokens, number) == table.total()
    corpus.verify()


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_a_corpus_is_a_dictionary_of_counts(sequences):
    with tempfile.TemporaryDirectory() as folder:
        corpus = build_corpus(Path(folder) / "x.corpus", sequences, vocab_size=VOCAB_SIZE)
        model = SlowCorpus(corpus.header.shapes)
        for sequence in sequences:
            model.add(sequence)
        assert_same(corpus, model)
        assert corpus.num_tokens == sum(map(len, sequences))
        assert corpus.num_sequences == sum(map(bool, sequences))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 400), st.integers(1, 30))
def test_memory_and_pieces_make_no_difference(seed, vocab_size, num_pieces):
    """Up to some fifty runs, merged, make the file that one run makes."""
    random = np.random.default_rng(seed)
    sequences = [random.zipf(1.3, size) % vocab_size for size in random.integers(0, 60_000, 5)]
    with tempfile.TemporaryDirectory() as folder:
        build_corpus(Path(folder) / "much", sequences, vocab_size=vocab_size)
        with CorpusBuilder(Path(folder) / "little", vocab_size=vocab_size, max_memory=1 << 20) as builder:
            for sequence in sequences:
                for piece in np.array_split(sequence, num_pieces):
                    builder.extend(piece)
                builder.end_sequence()
            builder.finish()
        assert (Path(folder) / "much").read_bytes() == (Path(folder) / "little").read_bytes()


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "intact.corpus"
    random = np.random.default_rng(0)
    build_corpus(path, [random.zipf(1.5, 200) % 300 for _ in range(30)], vocab_size=300)
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    size=st.one_of(st.none(), st.floats(0, 1.2)),
    seed=st.integers(0, 2**32),
)
def test_damage_is_refused_or_harmless(intact, tmp_path_factory, edits, size, seed):
    """No file makes the reader crash; one that opens speaks of tokens in the vocabulary only."""
    data = bytearray(intact)
    for place, value in edits:
        data[int(place * len(data))] = value
    if size is not None:
        data = data.ljust(int(size * len(data)), b"\x55")[: int(size * len(data))]
    path = tmp_path_factory.getbasetemp() / "damaged.corpus"
    path.unlink(missing_ok=True)  # never write into a file that is mapped
    path.write_bytes(data)
    try:
        corpus = Corpus.open(path)
    except CacheFileError:
        return
    text = np.random.default_rng(seed).zipf(1.5, 60) % 300
    corpus.core.probe(text.astype(np.int32))
    for end in range(20, 60):
        for shape in range(len(corpus.header.shapes)):
            counts = corpus.counts(text[:end], shape)
            assert all(token < 300 and count > 0 for token, count in counts.items())
    if data != intact:
        with pytest.raises(CacheFileError):
            corpus.verify()
