"""The follower of a predicted output, through the draft cache: it never fails, and it finds its way back."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from edits import PROMPT, blocks, moved, replay_edl, scattered
from pia.drafting.cache import DraftCache

tokens = st.lists(st.integers(0, 9), max_size=60)
distinct = st.integers(0, 2**31).map(lambda seed: random.Random(seed).sample(range(10_000), 600))


@settings(max_examples=150, deadline=None)
@given(predicted=tokens, output=tokens, budget=st.integers(1, 70), depth=st.integers(1, 70))
def test_anything_goes(predicted, output, budget, depth):
    """Few different tokens: everything is found everywhere."""
    replay_edl(output, predicted, budget=budget, max_depth=depth)


@settings(max_examples=60, deadline=None)
@given(predicted=tokens, output=tokens)
def test_drafts_are_trees_with_falling_probabilities(predicted, output):
    cache = DraftCache()
    session = cache.begin(PROMPT, predicted_ids=predicted)
    for token in output:
        tree = session.propose(24, 24)
        assert (tree.parents < range(len(tree))).all()
        assert all(0 < prob <= 1 for prob in tree.probs)
        assert all(first >= second for first, second in zip(tree.probs, tree.probs[1:], strict=False))
        children = list(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))
        assert len(children) == len(set(children))
        session.observe([token])
    session.end(commit=True)
    cache.check_integrity()
    assert cache.request_memory_usage == 0


@settings(max_examples=40, deadline=None)
@given(text=distinct, at=st.integers(1, 500), length=st.integers(1, 80), seed=st.integers(0, 99))
def test_one_edit_costs_a_few_forwards(text, at, length, seed):
    """Of 600 tokens at 17 a forward; those put in, which nothing could know, cost one each."""
    new = [10_000 + random.Random(seed + i).randrange(100) for i in range(length)]
    assert num_forwards(text[:at] + new + text[at:], text) <= 36 + 4 + length
    assert num_forwards(text[:at] + new + text[at + length :], text) <= 36 + 4 + length
    assert num_forwards(text[:at] + text[at + length :], text) <= 36 + 4


@settings(max_examples=20, deadline=None)
@given(text=distinct, seed=st.integers(0, 999))
def test_many_edits(text, seed):
    assert replay_edl(scattered(text, 0.05, seed), text) > 6
    assert replay_edl(blocks(text, 3, 10, seed), text) > 8
    assert replay_edl(moved(text, 4, 60, seed), text) > 10


def num_forwards(output, predicted):
    return round((len(output) - 1) / replay_edl(output, predicted))
