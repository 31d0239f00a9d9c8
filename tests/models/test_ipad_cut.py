"""Cut models: the same function as the big one, masked."""

from __future__ import annotations

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


def some(num: int, size: int | None = None) -> st.SearchStrategy:
    """Ascending indices below `num`, `size` of them."""
    sizes = st.integers(1, num) if size is None else st.just(size)
    return sizes.flatmap(lambda k: st.permutations(range(num)).map(lambda order: tuple(sorted(order[:k]))))


@st.composite
def selections(draw, model) -> Selection:
    """Any units of a model that its configuration can hold."""
    shape = structure_of(model).shape
    layers = draw(some(shape.num_layers))
    num_kv_heads = draw(st.integers(1, shape.num_kv_heads))
    ffn = draw(st.integers(1, shape.ffn_size))
    hidden = draw(st.sampled_from(hidden_sizes(model, num_kv_heads)))
    rows = [(draw(some(shape.num_kv_heads, num_kv_heads)), draw(some(shape.ffn_size, ffn))) for _ in layers]
    return Selection(
        layers, tuple(r[0] for r in rows), tuple(r[1] for r in rows), draw(some(shape.hidden_size, hidden))
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_cut_model_is_the_masked_one(name):
    model = shrinkable(name)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}

    @settings(max_examples=5, deadline=None, derandomize=True, database=None)
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
