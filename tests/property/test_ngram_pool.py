"""The native pool of n-grams against one made of dictionaries that keep the order of use."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pia import _core

_TOKENS = st.integers(0, 3)


class SlowPool:
    """As published: an ordered list per first token, and one of all, so that the least recently used goes."""

    def __init__(self, ngram_size: int, max_per_first: int, capacity: int) -> None:
        self.ngram_size, self.max_per_first, self.capacity = ngram_size, max_per_first, capacity
        self.used: OrderedDict[tuple[int, ...], None] = OrderedDict()  # oldest first

    def add(self, ngram: list[int]) -> None:
        new = tuple(ngram)
        if new not in self.used:
            same_first = [old for old in self.used if old[0] == new[0]]
            if self.max_per_first and len(same_first) == self.max_per_first:
                del self.used[same_first[0]]
            elif len(self.used) == self.capacity:
                self.used.popitem(last=False)
        self.used[new] = None
        self.used.move_to_end(new)

    def ngrams(self, first: int) -> list[list[int]]:
        return [list(ngram[1:]) for ngram in reversed(self.used) if ngram[0] == first]

    def next_tokens(self, recent: list[int]) -> tuple[int, list[int]]:
        for length in range(min(self.ngram_size - 1, len(recent)), 0, -1):
            context = recent[-length:]
            matches = [ngram for ngram in reversed(self.used) if list(ngram[:length]) == context]
            if matches:
                return length, list(dict.fromkeys(ngram[length] for ngram in matches))[:32]
        return 0, []


@settings(max_examples=150, deadline=None)
@given(
    ngram_size=st.integers(2, 4),
    max_per_first=st.integers(0, 4),
    capacity=st.integers(1, 12),
    data=st.data(),
)
def test_equals_dictionaries_in_order_of_use(ngram_size, max_per_first, capacity, data):
    pool = _core.NgramPool.create(ngram_size, max_per_first, capacity)
    slow = SlowPool(ngram_size, max_per_first, capacity)
    ngrams = data.draw(st.lists(st.lists(_TOKENS, min_size=ngram_size, max_size=ngram_size), max_size=40))
    for ngram in ngrams:
        pool.add([ngram])
        slow.add(ngram)
        assert len(pool) == len(slow.used) <= capacity
    for first in range(5):
        assert pool.ngrams(first) == slow.ngrams(first)
    recent = data.draw(st.lists(_TOKENS, max_size=6))
    assert pool.next_tokens(recent) == slow.next_tokens(recent)


@settings(max_examples=50, deadline=None)
@given(st.lists(_TOKENS, max_size=12), st.integers(2, 4))
def test_text_is_all_its_ngrams_in_order(text, ngram_size):
    pool, slow = _core.NgramPool.create(ngram_size, 3, 100), SlowPool(ngram_size, 3, 100)
    pool.add_text(np.array(text, np.int32))
    for at in range(len(text) - ngram_size + 1):
        slow.add(text[at : at + ngram_size])
    assert [pool.ngrams(first) for first in range(4)] == [slow.ngrams(first) for first in range(4)]


def test_memory_is_bounded_however_many_first_tokens_there_are():
    pool = _core.NgramPool.create(3, 2, 100)
    for first in range(100):
        pool.add([[first, 1, 2]])
    full = pool.num_bytes
    for first in range(100, 20_000):
        pool.add([[first, 1, 2]])
    assert len(pool) == 100
    assert pool.num_bytes <= 4 * full
    assert pool.ngrams(19_999) == [[1, 2]] and pool.ngrams(19_899) == []


def test_no_more_than_32_continuations_are_given():
    pool = _core.NgramPool.create(2, 0, 100)
    pool.add([[7, token] for token in range(50)])
    assert pool.next_tokens([7]) == (1, list(range(49, 17, -1)))
    assert len(pool.ngrams(7)) == 50


@pytest.mark.parametrize(
    ("sizes", "name"), [((1, 1, 1), "ngram_size"), ((2, -1, 1), "max_per_first"), ((2, 1, 0), "capacity")]
)
def test_sizes_are_checked(sizes, name):
    with pytest.raises(ValueError, match=name):
        _core.NgramPool.create(*sizes)


def test_ngrams_are_checked():
    pool = _core.NgramPool.create(3, 1, 1)
    with pytest.raises(ValueError, match="n-grams of 3 tokens, not of 2"):
        pool.add([[1, 2]])
    with pytest.raises(ValueError, match="token id -1"):
        pool.add([[1, 2, -1]])
