"""The accept walk against its definition: the longest prefix of the model's own continuation that is a path of the
tree."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pia.decoding.accept import accept
from pia.decoding.request import Request, Stopping
from pia.drafting.shape import ancestors, best_chain, branches
from pia.drafting.tree import DraftTree


class PathChooser:
    """A model whose next token is a fixed function of the path so far, so that any walk can be predicted."""

    scores = None

    def __init__(self, num_tokens):
        self.num_tokens = num_tokens
        self.rows = []

    def next(self, ids):
        return (sum((i + 1) * t for i, t in enumerate(ids)) * 31 + len(ids)) % self.num_tokens

    def choose(self, row, request):
        self.rows.append(row)
        return self.next(request.token_ids)


@st.composite
def trees(draw):
    size = draw(st.integers(0, 25))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    seen, tokens = set(), []
    for parent in parents:  # siblings differ, as in any tree that a source proposes
        token = draw(
            st.integers(0, 3).filter(lambda t, p=parent: (p, t) not in seen or len([k for k in seen if k[0] == p]) > 3)
        )
        seen.add((parent, token))
        tokens.append(token)
    probs = np.linspace(1, 0.1, size, dtype=np.float32)
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32), probs, np.zeros(size, np.uint8))


def expected_tokens(tree, chooser, start, limit):
    """By definition: follow the model; stop when no path of the tree has these tokens, or at the limit."""
    paths = {tuple(tree.token_ids[ancestors(tree.parents.tolist(), n)].tolist()) for n in range(len(tree))}
    tokens = []
    while True:
        tokens.append(chooser.next([*start, *tokens]))
        if tuple(tokens) not in paths or len(tokens) == limit:
            return tokens


@given(
    trees(),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.integers(1, 8),
    st.sampled_from(["tree", "branches", "chain"]),
)
def test_walk_is_the_longest_agreeing_path(tree, start, limit, shape):
    tree = {"tree": lambda t: t, "branches": lambda t: branches(t, 40), "chain": best_chain}[shape](tree)
    stopping = Stopping([])
    stopping.max_length = len(start) + limit
    request = Request(torch.tensor([start]), stopping)
    chooser = PathChooser(4)
    walked = accept(tree, chooser, request)
    assert walked.token_ids == expected_tokens(tree, chooser, start, limit)
    assert request.output_ids == walked.token_ids
    # The rows kept are the fed tokens in front of the newest one.
    fed = [start[-1], *tree.token_ids.tolist()]
    assert [fed[row] for row in walked.rows] == [start[-1], *walked.token_ids[:-1]]
    assert walked.rows == sorted(walked.rows)
    # Each node's parent is the one before it, and each emitted draft names its source.
    assert [tree.parents[n] for n in walked.nodes] == [-1, *walked.nodes][: len(walked.nodes)]
    assert sum(source is not None for source in walked.sources) == len(walked.nodes)


@given(trees(), st.integers(1, 60))
def test_branches_hold_only_paths_of_the_tree(tree, budget):
    split = branches(tree, budget)
    assert len(split) <= budget
    paths = {tuple(tree.token_ids[ancestors(tree.parents.tolist(), n)].tolist()) for n in range(len(tree))}
    parents = split.parents.tolist()
    for node in range(len(split)):
        assert tuple(split.token_ids[ancestors(parents, node)].tolist()) in paths
        assert parents.count(node) <= 1  # nothing is shared but the root
