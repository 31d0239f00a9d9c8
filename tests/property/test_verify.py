"""Random trees on random texts: a tree's rows are its paths' own logits, and what is kept is what plain decoding
has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pia.drafting.shape import ancestors
from pia.drafting.tree import DraftTree
from pia.models.layout import layout
from pia.models.runner import SlabRunner
from toys import FAMILIES, VOCAB, tiny_model

MODELS = {name: tiny_model(name).double() for name in FAMILIES}
TOKENS = st.integers(0, VOCAB - 1)


@st.composite
def trees(draw, max_nodes=10):
    size = draw(st.integers(0, max_nodes))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    tokens = draw(st.lists(TOKENS, min_size=size, max_size=size))
    return DraftTree(
        np.array(tokens, np.int32),
        np.array(parents, np.int32),
        np.linspace(1, 0.1, size, dtype=np.float32),
        np.zeros(size, np.uint8),
    )


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(max_examples=25, deadline=None)
@given(
    prompt=st.lists(TOKENS, min_size=1, max_size=20),
    rounds=st.lists(st.tuples(trees(), st.integers(0, 99)), min_size=1, max_size=3),
)
def test_tree_rows_and_kept_kv(name, prompt, rounds):
    model = MODELS[name]
    runner = SlabRunner(model)
    runner.prefill([torch.tensor(prompt)])
    text, token = list(prompt), 3
    for tree, choice in rounds:
        logits = runner.forward([token], [tree])[0]
        parents = tree.parents.tolist()
        for node in range(-1, len(tree)):
            path = [*text, token, *tree.token_ids[ancestors(parents, node)].tolist()]
            torch.testing.assert_close(logits[node + 1], _last_logits(model, path), rtol=0, atol=1e-9)
        kept = ancestors(parents, choice % (len(tree) + 1) - 1)
        runner.keep([[0, *(node + 1 for node in kept)]])
        text += [token, *tree.token_ids[kept].tolist()]
        token = (token * 7 + choice) % VOCAB
        _assert_same_kv(runner, model, text)


def _last_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def _assert_same_kv(runner, model, text):
    with torch.no_grad():
        plain = model(torch.tensor([text]), use_cache=True).past_key_values
    assert runner.cache.get_seq_length() == len(text)
    for ours, theirs in zip(runner.cache.layers, plain.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=1e-9)


@given(trees(max_nodes=40))
def test_layout_is_the_paths(tree):
    depths, visible = layout(tree)
    parents = tree.parents.tolist()
    for node in range(len(tree)):
        path = [0, *(n + 1 for n in ancestors(parents, node))]
        assert depths[node + 1] == len(path) - 1
        assert np.flatnonzero(visible[node + 1]).tolist() == path
