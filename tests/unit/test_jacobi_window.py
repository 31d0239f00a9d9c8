"""The lookahead window, replayed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pia.config import JacobiConfig
from pia.drafting.jacobi_window import JacobiWindow
from pia.drafting.shape import ancestors
from pia.errors import UnsupportedOptionError
from pia.models.layout import batch_layout

_ALL = 10_000
_PROMPT = np.arange(1, 40, dtype=np.int32)


def window_of(w: int, n: int, prompt: np.ndarray = _PROMPT) -> JacobiWindow:
    return JacobiWindow(JacobiConfig(window_size=w, ngram_size=n), prompt)


def step(window: JacobiWindow, base: int, current: int = 0, max_nodes: int = _ALL) -> list[list[int]]:
    """Feeds the window; row r of the forward answers base + r, the root being row 0."""
    fed = window.nodes(max_nodes, _ALL)
    return window.update(current, base, [base + 1 + node for node in range(len(fed))])


def full(w: int, n: int) -> JacobiWindow:
    window = window_of(w, n)
    while not window.is_full:
        step(window, 1000)
    return window


def test_begins_with_one_level_drawn_from_the_prompt():
    window = window_of(4, 4)
    assert len(window.levels) == 1 and len(window.levels[0]) == 4 + 4 - 3
    assert set(window.levels[0]) <= set(_PROMPT.tolist())
    assert window.levels == window_of(4, 4).levels
    assert window.levels != window_of(4, 4, _PROMPT[::-1].copy()).levels
    tree = window.nodes(_ALL, _ALL)
    assert tree.token_ids.tolist() == window.levels[0] and tree.parents.tolist() == [-1, 0, 1, 2, 3]


def test_warm_up_by_hand():
    window = window_of(4, 4)
    a = window.levels[0]
    assert step(window, 100) == []
    assert window.levels == [a[1:], [101, 102, 103, 104, 105]]  # row 100 is the root's, and its answer is text
    tree = window.nodes(_ALL, _ALL)
    assert tree.token_ids.tolist() == [*a[1:], 101, 102, 103, 104, 105]
    assert tree.parents.tolist() == [-1, 0, 1, 2, -1, 0, 1, 2, 3]
    assert step(window, 200) == []  # rows 201 .. 204 belong to level 0, 205 .. 209 to level 1
    assert window.levels == [a[2:], [102, 103, 104, 105], [206, 207, 208, 209]]
    assert window.is_full and window.num_columns == 4


def test_full_window_by_hand():
    window = full(4, 4)
    (a1, a2, a3), b, d = window.levels
    tree = window.nodes(_ALL, _ALL)
    assert tree.token_ids.tolist() == [a1, a2, a3, *b, *d]
    #                                  a1  a2 a3 b0  b1 b2 b3 d0 d1 d2 d3
    assert tree.parents.tolist() == [-1, 0, 1, -1, 0, 1, 2, 3, 4, 5, 6]
    e = [308, 309, 310, 311]  # what rows d0 .. d3 answer
    ngrams = step(window, 300, current=7)
    assert ngrams == [[7, b[0], d[0], e[0]], [a1, b[1], d[1], e[1]], [a2, b[2], d[2], e[2]], [a3, b[3], d[3], e[3]]]
    assert window.levels == [b[1:], d, e]


def test_positions_and_mask_as_drawn():
    window = full(4, 4)
    _, depths, visible = batch_layout([7], [window.nodes(_ALL, _ALL)])
    names = ["c", "a1", "a2", "a3", "b0", "b1", "b2", "b3", "d0", "d1", "d2", "d3"]
    assert dict(zip(names, depths[0].tolist(), strict=True)) == dict(
        c=0, a1=1, a2=2, a3=3, b0=1, b1=2, b2=3, b3=4, d0=2, d1=3, d2=4, d3=5
    )
    sees = {row: {names[j] for j in np.flatnonzero(visible[0, i])} for i, row in enumerate(names)}
    assert sees["c"] == {"c"}
    assert sees["a2"] == {"c", "a1", "a2"}
    assert sees["b0"] == {"c", "b0"}
    assert sees["b2"] == {"c", "a1", "a2", "b2"}
    assert sees["d0"] == {"c", "b0", "d0"}
    assert sees["d3"] == {"c", "a1", "a2", "a3", "b3", "d3"}


def test_bigrams_have_no_levels_below():
    window = window_of(3, 2)
    assert window.is_full and len(window.levels[0]) == 2
    a1, a2 = window.levels[0]
    assert step(window, 100, current=7) == [[7, 100], [a1, 101], [a2, 102]]
    assert window.levels == [[101, 102]]


def test_fewer_columns_slide_and_the_others_stay():
    window = full(4, 4)
    (a1, a2, a3), b, d = window.levels
    ngrams = step(window, 300, current=7, max_nodes=6)  # two columns take 5 nodes, three 8
    # Fed: a1, b0, b1, d0, d1.
    assert ngrams == [[7, b[0], d[0], 304], [a1, b[1], d[1], 305]]
    assert window.levels == [[b[1], a2, a3], [d[0], d[1], b[2], b[3]], [304, 305, d[2], d[3]]]


def test_a_window_that_is_filling_grows_where_it_is_fed():
    window = window_of(4, 4)
    a = window.levels[0]
    assert step(window, 100, max_nodes=3) == []  # the root and a1 .. a3; one column more goes than in a full step
    assert window.levels == [a[1:], [101, 102, 103]]
    tree = window.nodes(5, _ALL)
    assert tree.token_ids.tolist() == [a[1], a[2], 101, 102, 103] and tree.parents.tolist() == [-1, 0, -1, 0, 1]
    assert step(window, 200, max_nodes=7) == []  # all: rows 201 .. 204 belong to level 0, 205 .. 207 to level 1
    assert window.levels == [a[2:], [102, 103, 203, 204], [206, 207]]
    assert not window.is_full
    assert len(step(window, 300)) == 2 and window.is_full


def test_nothing_is_fed_beyond_the_limits():
    window = window_of(4, 4)
    before = window.levels
    tree = window.nodes(_ALL, 3)
    assert tree.depth == 3 and len(window.nodes(5, 5)) == 5 and len(window.nodes(0, 5)) == 0
    assert window.levels == before


@given(
    w=st.integers(1, 7), n=st.integers(2, 6), sizes=st.lists(st.integers(0, 50), max_size=12), depth=st.integers(0, 14)
)
def test_keeps_its_form_whatever_is_fed(w, n, sizes, depth):
    window = window_of(w, n)
    for number, size in enumerate(sizes):
        tree = window.nodes(size, depth)
        assert len(tree) <= size and tree.depth <= depth
        assert all(parent < node for node, parent in enumerate(tree.parents))
        paths = [[5, *tree.token_ids[ancestors(tree.parents.tolist(), node)].tolist()] for node in range(len(tree))]
        answers = [1000 * number + node for node in range(len(tree))]
        ngrams = window.update(5, 999, answers) if window.is_fed else []
        for ngram in ngrams:  # a path to a node, behind the guess at the text before it, and the answer there
            at = answers.index(ngram[-1]) if ngram[-1] in answers else -1
            path = paths[at] if at >= 0 else [5]
            assert len(ngram) == n and path[-(n - 1) :] == ngram[:-1]
    lengths = [len(level) for level in window.levels]
    assert lengths[0] == window.num_columns - 1 and lengths[1:] == sorted(lengths[1:], reverse=True)
    assert w <= window.num_columns <= w + n - 2
    assert window.num_nodes <= JacobiConfig(window_size=w, ngram_size=n).num_nodes


@pytest.mark.parametrize(("w", "n"), [(15, 5), (7, 5), (5, 7), (1, 7), (4, 2), (1, 2)])
def test_the_most_nodes_are_those_of_the_largest_step(w, n):
    window = window_of(w, n)
    sizes = [window.num_nodes]
    while not window.is_full:
        step(window, 100)
        sizes.append(window.num_nodes)
    assert max(sizes) == JacobiConfig(window_size=w, ngram_size=n).num_nodes
    assert sizes[-1] == w * (n - 1) - 1


def test_published_sizes():
    sizes = [
        (c.window_size, c.ngram_size, c.max_ngrams)
        for c in map(JacobiConfig.for_model_size, (1e9, 7e9, 13e9, 33e9, 70e9))
    ]
    assert sizes == [(15, 5, 15), (15, 5, 15), (10, 5, 10), (7, 5, 7), (7, 5, 7)]
    assert JacobiConfig() == JacobiConfig.for_model_size(7e9)
    assert JacobiConfig.for_model_size(33e9, ngram_size=4).num_nodes == 7 * 3 - 1


@pytest.mark.parametrize(
    "options",
    [
        {"window_size": 0},
        {"ngram_size": 1},
        {"max_ngrams": 0},
        {"max_ngrams": 2.5},
        {"pool_from_prompt": 1},
        {"seed": -1},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(UnsupportedOptionError, match=next(iter(options))):
        JacobiConfig(**options)
