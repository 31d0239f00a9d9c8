"""Cut models: the same function as the big one, masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shrink_models import MODELS, hidden_sizes, shrinkable, token_ids

from pia.ipad.cut import cut
from pia.ipad.equality import check_cut
from pia.ipad.gates import masked
from pia.ipad.selection import Selection
from pia.ipad.structure import structure_of


@st.composite
def selections(draw, model) -> Selection:
    """Any units of a model that its configuration can hold; sizes are what shrinks to a simple failure."""
    shape = structure_of(model).shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def some(num: int, size: int) -> tuple[int, ...]:
        return tuple(sorted(rng.permutation(num)[:size].tolist()))

    layers = some(shape.num_layers, draw(st.integers(1, shape.num_layers)))
    num_kv_heads = draw(st.integers(1, shape.num_kv_heads))
    ffn = draw(st.integers(1, shape.ffn_size))
    return Selection(
        layers,
        tuple(some(shape.num_kv_heads, num_kv_heads) for _ in layers),
        tuple(some(shape.ffn_size, ffn) for _ in layers),
        some(shape.hidden_size, draw(st.sampled_from(hidden_sizes(model, num_kv_heads)))),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_examples", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_the_cut_model_is_the_masked_one(name, num_examples):
    model = shrinkable(name)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}

    @settings(max_examples=num_examples, deadline=None, derandomize=True, database=None)
    @given(selections(model))
    def check(selection):
        small = cut(model, selection)
        assert structure_of(small).shape == selection.shape
        ids = token_ids(2, 12)
        with torch.no_grad(), masked(model, selection):
            expected = model(ids, use_cache=False).logits
        tolerance = 1e-6 if structure_of(model).rescales(selection.shape) else 1e-9
        torch.testing.assert_close(small(ids).logits, expected, rtol=0, atol=tolerance)
        assert check_cut(model, small, selection, ids) <= tolerance

    check()
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())
