"""Drafts from recycled logits: what the model found likely where it stood before."""

import numpy as np
import pytest

import pia
from pia.drafting.cache import DraftCache
from pia.drafting.top_tokens import TopTokens
from pia.drafting.tree import DraftTree
from pia.errors import UnsupportedOptionError

ALONE = ("recycled",)
ROOT = DraftTree.empty()


def likely(*rows, probs=(0.7, 0.2, 0.05)):
    """What a forward found likely: a row of tokens for each place."""
    return TopTokens(np.array(rows, np.int32), np.tile(np.float16(probs[: len(rows[0])]), (len(rows), 1)))


def paths(tree):
    """All paths of a tree, as tuples of tokens."""
    found = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return set(found)


def test_goes_on_from_what_was_likely_after_the_same_token():
    session = DraftCache().begin([1, 2, 3, 9], sources=ALONE)
    assert len(session.propose(8)) == 0
    session.recycle(DraftTree.chain([5, 3]), likely([5, 6, 7], [3, 8, 4], [10, 11, 12]))
    session.observe([5, 3])  # 3 was followed by a 10 in the model's mind
    tree = session.propose(3, max_depth=1)
    assert tree.token_ids.tolist() == [10, 11, 12]
    assert [pia.drafting.tree.SOURCE_NAMES[source] for source in tree.sources] == ["recycled"] * 3


def test_longer_contexts_have_more_to_say():
    session = DraftCache().begin([1, 2], sources=ALONE)
    for before, after in [(20, 30), (21, 31), (22, 32)]:
        session.recycle(DraftTree.chain([before, 9]), likely([before, 1, 4], [9, 1, 4], [after, 1, 4]))
        session.observe([before, 9, after])
    session.observe([20, 9])
    assert session.propose(1).token_ids.tolist() == [30]


def test_what_came_to_nothing_is_recycled_too():
    session = DraftCache().begin([1, 2], sources=ALONE)
    session.recycle(DraftTree.chain([5, 6]), likely([7, 5, 0], [6, 1, 0], [40, 41, 42]))
    session.observe([7])  # nobody took 5, 6
    session.observe([6])
    assert (40,) in paths(session.propose(8))


def test_probabilities_follow_what_comes_true():
    """Two words of the model, both called certain: one that comes true each time, and one that never does."""
    rng = np.random.default_rng(0)
    session = DraftCache().begin([1, 2], sources=ALONE)
    for _ in range(400):
        right, wrong = rng.integers(100, 200), rng.integers(200, 300)
        session.recycle(DraftTree.chain([50]), likely([50, 60], [right, wrong], probs=(0.6, 0.3)))
        session.observe([50])
        session.propose(8, max_depth=1)
        session.recycle(ROOT, likely([right, wrong], probs=(0.6, 0.3)))
        session.observe([int(right), 60])
        session.propose(8, max_depth=1)
        session.recycle(ROOT, likely([50, 60], probs=(0.6, 0.3)))
    session.recycle(DraftTree.chain([50]), likely([50, 60], [301, 302], probs=(0.6, 0.3)))
    session.observe([50])
    probs = dict(
        zip(*(part.tolist() for part in (lambda t: (t.token_ids, t.probs))(session.propose(2, 1))), strict=True)
    )
    assert probs[301] > 0.8
    assert probs.get(302, 0.0) < 0.15


def test_nothing_is_left_of_a_request_that_was_broken_off():
    cache = DraftCache()
    session = cache.begin([1, 2], sources=ALONE)
    session.recycle(DraftTree.chain([5]), likely([5, 6], [7, 8]))
    session.observe([5])
    session.end(commit=False)
    assert len(cache.begin([1, 5], sources=ALONE).propose(8)) == 0


@pytest.mark.parametrize(
    "forget",
    [
        lambda cache: cache.forget("a", namespace="us"),
        lambda cache: cache.forget_sequence([5], namespace="us"),
        lambda cache: cache.clear("us"),
        lambda cache: cache.clear(),
    ],
    ids=["request", "sequence", "namespace", "all"],
)
def test_others_go_on_from_it_until_it_is_forgotten(forget):
    cache = DraftCache()
    session = cache.begin([1, 2], sources=ALONE, namespace="us", request_id="a")
    session.recycle(DraftTree.chain([5]), likely([5, 6], [7, 8]))
    session.observe([5])
    session.end(commit=True)

    def drafts(space):
        return paths(cache.begin([9, 5], sources=ALONE, namespace=space).propose(2))

    assert drafts("us") == {(7,), (8,)}
    assert drafts("them") == set()
    forget(cache)
    assert drafts("us") == set()


def test_the_same_session_without_the_source_drafts_from_counts_alone():
    session = DraftCache().begin([1, 2, 1], sources=("cache",))
    assert session.num_top == 0
    session.recycle(ROOT, likely([40, 41]))
    assert paths(session.propose(8)) == {(2,), (2, 1), (2, 1, 2)} | {(2, 1) + (2, 1) * n for n in range(4)} | {
        (2, 1, 2) + (1, 2) * n for n in range(3)
    }


def test_one_tree_holds_both():
    session = DraftCache().begin([1, 2, 3, 1, 2, 3, 1], sources=("cache", "recycled"))
    session.recycle(DraftTree.chain([1]), likely([30, 2], [30, 2], probs=(0.6, 0.3)))
    tree = session.propose(16, max_depth=3)
    assert (2,) in paths(tree)
    assert (30,) in paths(tree)
    assert {pia.drafting.tree.SOURCE_NAMES[source] for source in tree.sources} == {"own", "recycled"}


def test_memory_stays_within_the_bound():
    cache = DraftCache(max_bytes=1 << 18)
    rng = np.random.default_rng(1)
    for _ in range(30):
        session = cache.begin(rng.integers(0, 5000, 20), sources=("cache", "recycled"))
        for _ in range(40):
            nodes = rng.integers(0, 5000, 30)
            session.recycle(DraftTree.chain(nodes.tolist()), likely(*rng.integers(0, 5000, (31, 3)).tolist()))
            session.observe(nodes[:2].tolist())
        assert cache.request_memory_usage > 0
        session.end(commit=True)
        assert cache.memory_usage <= cache.max_bytes
    assert cache.request_memory_usage == 0
    cache.check_integrity()
    cache.clear()
    assert cache.memory_usage < 1 << 14


def test_ids_beyond_the_vocabulary_are_left_out():
    session = DraftCache(vocab_size=50).begin([1, 2], sources=ALONE)
    session.recycle(ROOT, likely([99, 7, 8]))
    session.observe([1])
    session.observe([2])
    assert paths(session.propose(2, max_depth=1)) == {(7,), (8,)}


def test_what_makes_no_sense_is_refused():
    session = DraftCache().begin([1, 2], sources=ALONE)
    with pytest.raises(ValueError, match="for the text and each node"):
        session.recycle(DraftTree.chain([5]), likely([5, 6]))
    bad = DraftTree(*(np.array([3], kind) for kind in (np.int32, np.int32, np.float32, np.uint8)))
    with pytest.raises(ValueError, match="come before their children"):
        session.recycle(bad, likely([5, 6], [5, 6]))
    session.end(commit=False)
    with pytest.raises(ValueError, match="has ended"):
        session.recycle(ROOT, likely([5, 6]))


def test_others_learn_nothing_of_a_prompt():
    """Drafts made of the prompt are recycled for the request itself, and for nobody else."""
    cache = DraftCache()
    session = cache.begin([1, 60, 61, 62], sources=ALONE)
    session.recycle(DraftTree.chain([60]), likely([60, 5], [61, 6]))  # what the model says behind the prompt's words
    session.observe([7])
    session.recycle(ROOT, likely([8, 9]))
    session.observe([8])
    session.end(commit=True)
    assert paths(cache.begin([60], sources=ALONE).propose(8)) == set()
    assert paths(cache.begin([62], sources=ALONE).propose(8)) == set()
    assert (8,) in paths(cache.begin([7], sources=ALONE).propose(8))


def test_what_was_forgotten_does_not_come_back_by_way_of_a_request_under_way():
    cache = DraftCache()
    under_way = cache.begin([1], sources=ALONE)
    under_way.observe([5])
    under_way.recycle(ROOT, likely([40, 41]))
    under_way.observe([40])
    cache.clear()
    under_way.end(commit=True)
    assert paths(cache.begin([5], sources=ALONE).propose(8)) == set()


def test_namespaces_share_one_bound_fairly():
    cache = DraftCache(max_bytes=1 << 20)
    rng = np.random.default_rng(2)
    for number in range(12):
        for _ in range(4):
            session = cache.begin([1], sources=ALONE, namespace=f"tenant {number}")
            for token in rng.integers(0, 30_000, 300).tolist():
                session.recycle(ROOT, likely([token, token + 1]))
                session.observe([token])
            session.end(commit=True)
        assert cache.memory_usage <= cache.max_bytes
    session = cache.begin([1], sources=("cache", "recycled"), namespace="late")
    for token in [50, 51, 52] * 3:
        session.recycle(ROOT, likely([token, 99]))
        session.observe([token])
    session.end(commit=True)
    for source, continuation in (("cache", 51), ("recycled", 99)):
        tree = cache.begin([50], sources=[source], namespace="late").propose(8, max_depth=1)
        assert (continuation,) in paths(tree), source
    cache.check_integrity()


def test_tables_are_filled_before_they_grow():
    session = DraftCache().begin([1], sources=ALONE)
    rng = np.random.default_rng(3)
    for _ in range(200):
        nodes = rng.integers(0, 5000, 16).tolist()
        session.recycle(DraftTree.chain(nodes), likely(*rng.integers(0, 5000, (17, 3)).tolist()))
        session.observe(nodes[:1])
    # some 9,000 contexts of 48 bytes, and no more than three times the room for them
    assert session._core.num_bytes < 3 * 9000 * 48


@pytest.mark.parametrize("sources", [(), ("trie",), ("cache", "recyled"), "none"])
def test_unknown_sources_are_refused(sources):
    with pytest.raises(UnsupportedOptionError, match="sources must be one or more of cache, recycled"):
        pia.Lookahead(sources=sources)


def test_one_source_may_be_given_by_its_name():
    assert pia.Lookahead(sources="recycled").config.sources == ("recycled",)
