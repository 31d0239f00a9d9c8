"""Drafts from attached corpora: they reach the tree, several add up, and calls that don't name them don't see them."""

from pathlib import Path

import numpy as np
import pytest

from pia.drafting.cache import DraftCache
from pia.drafting.corpus import build_corpus
from pia.drafting.tree import SOURCE_NAMES


@pytest.fixture
def cache(tmp_path: Path) -> DraftCache:
    cache = DraftCache(vocab_size=1000)
    for name, text in {"docs": [1, 2, 3, 4, 5], "code": [1, 2, 3, 9, 8]}.items():
        build_corpus(tmp_path / f"{name}.corpus", [np.array(text, np.int32)], vocab_size=1000)
        cache.attach(name, tmp_path / f"{name}.corpus")
    return cache


def test_a_corpus_drafts_for_calls_that_name_it(cache: DraftCache):
    tree = cache.begin([1, 2, 3], corpora=["docs"]).propose(2)
    assert tree.token_ids.tolist() == [4, 5]
    assert {SOURCE_NAMES[source] for source in tree.sources} == {"corpus"}
    assert len(cache.begin([1, 2, 3]).propose(2)) == 0


def test_corpora_add_up(cache: DraftCache):
    session = cache.begin([1, 2, 3], corpora=["docs", "code"])
    assert set(session.propose(8, 1).token_ids.tolist()) == {4, 9}
    contexts = [context for context in session.known_contexts() if context.num_skipped == 0 and context.num_tokens == 1]
    assert [context.counts for context in contexts] == [{4: 1}, {9: 1}]


def test_corpora_stand_beside_what_was_learned(cache: DraftCache):
    cache.insert([1, 2, 3, 7])
    tree = cache.begin([1, 2, 3], corpora=["docs"]).propose(8, 1)
    assert set(tree.token_ids.tolist()) == {4, 7}
    assert {SOURCE_NAMES[source] for source in tree.sources} == {"corpus", "shared"}
