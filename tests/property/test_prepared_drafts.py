"""What is put off and what is made beforehand changes no draft: each is the one that would be made there and then."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pia import DraftCache
from pia.drafting.shape import ancestors
from pia.drafting.tree import DraftTree

VOCAB = 12
STOP = 0
texts = st.lists(st.integers(1, 5), min_size=1, max_size=60)
budgets = st.integers(0, 12)
choices = st.lists(st.tuples(st.integers(0, 12), st.integers(0, VOCAB - 1)), min_size=1, max_size=25)


def equal(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("token_ids", "parents", "probs", "sources")
    )


def session_after(prompt, learned, predicted=()):
    cache = DraftCache()
    for text in learned:
        cache.insert(text)
    return cache.begin(prompt, stop_ids={STOP}, predicted_ids=predicted)


def emitted(tree, place, token):
    """The path to a node of the tree (or none), and a token behind it."""
    path = ancestors(tree.parents.tolist(), place - 1) if place <= len(tree) else []
    return [*tree.token_ids[path].tolist(), token]


@given(texts, st.lists(texts, max_size=3), st.lists(st.integers(1, 5), max_size=30), budgets, budgets, choices)
def test_a_prepared_draft_is_the_one_that_would_be_made(prompt, learned, predicted, budget, num_fed, steps):
    session = session_after(prompt, learned, predicted)
    for place, token in steps:
        tree = session.propose(budget, 6)
        if session.was_prepared:
            assert equal(tree, session.propose(budget, 6)) and not session.was_prepared
        fed = tree.prefix(num_fed)
        session.learn()
        now = session.propose(budget, 6)
        assert session.prepare(fed, budget, 6) <= 4
        assert equal(now, session.propose(budget, 6))  # which prepare has not touched
        session.advance(emitted(fed, place, token))


@given(texts, st.lists(texts, max_size=3), budgets, choices)
def test_preparing_changes_nothing(prompt, learned, budget, steps):
    ahead, plain = session_after(prompt, learned), session_after(prompt, learned)
    for place, token in steps:
        tree = ahead.propose(budget, 6)
        assert equal(tree, plain.propose(budget, 6))
        ahead.learn()
        plain.learn()
        ahead.prepare(tree, budget, 6)
        for session in (ahead, plain):
            session.advance(emitted(tree, place, token))


@given(texts, st.lists(texts, max_size=3), st.lists(st.integers(1, 5), max_size=30), budgets, choices)
def test_advance_and_learn_are_observe(prompt, learned, predicted, budget, steps):
    parted, whole = session_after(prompt, learned, predicted), session_after(prompt, learned, predicted)
    for place, token in steps:
        tree = whole.propose(budget, 6)
        assert equal(tree, parted.propose(budget, 6))
        whole.observe(emitted(tree, place, token))
        parted.advance(emitted(tree, place, token))
        parted.learn()
        assert parted.known_contexts() == whole.known_contexts()


def test_the_likeliest_outcome_is_prepared_for():
    """Of two continuations one is fed, so the other one is what to expect."""
    session = session_after([7, 8], [[7, 8, 1, 2, 3, 4], [7, 8, 1, 2, 3, 4], [7, 8, 5, 6, 9, 10]])
    tree = session.propose(1)
    assert tree.token_ids.tolist() == [1]
    assert session.prepare(tree, 4) >= 2
    session.advance([1, 2])
    assert session.propose(4).token_ids[:2].tolist() == [3, 4] and session.was_prepared
    session.learn()
    session.prepare(DraftTree.empty(), 4)
    session.advance([3])
    assert session.propose(5).token_ids[0] == 4 and not session.was_prepared  # another budget


def test_a_prepared_draft_is_dropped_once_it_is_old():
    session = session_after([7, 8], [[7, 8, 1, 2, 3, 4]] * 2)
    tree = session.propose(1)
    session.prepare(tree, 4)
    session.advance([1, 2])
    session.learn()  # the tables have changed
    session.propose(4)
    assert not session.was_prepared
    session.prepare(session.propose(0), 4)
    session.advance([3])
    session.advance([4])
    session.propose(4)
    assert not session.was_prepared


def test_nothing_is_prepared_behind_a_stop():
    session = session_after([7, 8], [[7, 8, 1, STOP]] * 2)
    assert session.prepare(session.propose(1), 4) == 0


def test_commit_learns_what_was_put_off():
    cache, other = DraftCache(), DraftCache()
    for learned, is_parted in ((cache, True), (other, False)):
        session = learned.begin([1, 2, 3])
        session.propose(4)
        (session.advance if is_parted else session.observe)([4, 5, 6, 4, 5])
        session.end(commit=True)
    assert cache.export_sequences()[0].tolist() == other.export_sequences()[0].tolist() == [4, 5, 6, 4, 5]
    assert cache.num_contexts == other.num_contexts
