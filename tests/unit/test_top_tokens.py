"""The likeliest tokens of a row of logits, as the native scan finds them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pia import _core
from pia.decoding.by_products import TopTokensOfStep, top_of_rows


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 8), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3.0, 30.0]))
def test_equals_a_sort(vocab, count, seed, scale):
    count = min(count, vocab)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (3, vocab)).astype(np.float32))
    logits[0, : vocab // 2] = -torch.inf if vocab > 1 else 0.0
    logits[1] = logits[1].round()  # ties, of which the smaller ids come first
    top = top_of_rows(logits, count)
    order = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :count]
    probs = torch.softmax(logits, dim=-1).numpy()
    for row in range(3):
        finite = np.isfinite(logits[row, order[row]].numpy())
        assert top.ids[row][finite].tolist() == order[row][finite].tolist()
        assert np.allclose(top.probs[row][finite], probs[row, order[row]][finite], rtol=0.012, atol=1e-4)
        assert (top.probs[row][~finite] == 0).all()


def test_a_large_vocabulary_leaves_little_out():
    logits = torch.randn(2, 150_000, generator=torch.Generator().manual_seed(0)) * 2
    top = top_of_rows(logits, 8)
    expected = torch.softmax(logits, dim=-1).topk(8)
    assert top.ids.tolist() == expected.indices.tolist()
    assert np.allclose(top.probs, expected.values.numpy(), rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_and_any_strides(dtype):
    logits = torch.randn(2, 5, 60, generator=torch.Generator().manual_seed(1)).to(dtype)
    for step in (logits, logits[:, ::2], logits.transpose(0, 1)):
        for row, top in zip(step, TopTokensOfStep(step, 3).fetch(), strict=True):
            assert top.ids.shape == (step.shape[1], 3)
            best = row.float().max(dim=-1).values
            assert torch.equal(row.float().gather(1, torch.from_numpy(top.ids[:, :1]).long())[:, 0], best)


def test_a_small_vocabulary_has_fewer():
    assert TopTokensOfStep(torch.randn(1, 2, 5), 8).fetch()[0].ids.shape == (2, 5)


def test_what_another_device_would_pack_is_the_same():
    from pia.decoding.by_products import _packed

    logits = torch.randn(1, 6, 300, generator=torch.Generator().manual_seed(2)) * 3
    packed = _packed(logits, 8).numpy()[0]
    top = top_of_rows(logits[0], 8)
    assert packed[:, :8].tolist() == top.ids.tolist()
    assert np.allclose(packed[:, 8:].copy().view(np.float32), top.probs, rtol=0.012, atol=1e-4)


def test_wrong_shapes_are_refused():
    logits, ids, halves = np.zeros((2, 9), np.float32), np.zeros((2, 4), np.int32), np.zeros((2, 4), np.uint16)
    with pytest.raises(ValueError, match="vocabulary's size"):
        _core.top_tokens(logits, 10, ids, halves)
    with pytest.raises(ValueError, match="columns"):
        _core.top_tokens(logits, 3, ids, halves)
