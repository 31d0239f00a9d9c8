"""The Triton kernels in Triton's interpreter, on the CPU: run by `test_attention_triton.py` in a process of its own.

The interpreter is chosen when Triton is imported, and a process that has compiled with it cannot go back.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import Case, expected
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pia.models.attention.triton_attention import Tiles, tiles_of, triton_attention

SMALL = Tiles(m=16, n=16, dim=16, value_dim=16, num_splits=3, num_warps=4, num_stages=2)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
LENGTHS = st.sampled_from([0, 1, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 96, 100])
CASES = st.builds(
    Case,
    starts=st.lists(LENGTHS, min_size=1, max_size=2).map(tuple),
    q=st.sampled_from([1, 2, 5, 17]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    dim=st.sampled_from([16, 12]),
    value_dim=st.sampled_from([16, 8]),
    dtype=st.sampled_from(list(TOLERANCE)),
    window=st.sampled_from([None, None, 1, 9, 40]),
    softcap=st.sampled_from([None, 2.0]),
    has_sinks=st.booleans(),
    seed=st.integers(0, 99),
)


def error_of(case: Case, tiles: Tiles | None = SMALL) -> float:
    inputs, options = case.inputs()
    attended = triton_attention(*inputs, **options, tiles=tiles)
    return float((attended.double() - expected(inputs, options)).abs().max())


@given(CASES, st.integers(1, 5))
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_kernel_equals_reference(case, num_splits):
    assert error_of(case, replace(SMALL, num_splits=num_splits)) <= TOLERANCE[case.dtype]


@pytest.mark.parametrize("n", [16, 64])
def test_trees_of_more_nodes_than_a_word_has_bits(n):
    assert error_of(Case((20,), q=70, group=1), replace(SMALL, m=64, n=n)) <= 2e-6


def test_tiles_chosen_for_a_device():
    assert error_of(Case((70, 3), q=5, kv_heads=2, group=2), tiles=None) <= 2e-6


def test_a_length_is_read_on_the_device():
    """One call, captured, has to serve other lengths: only `starts` may say where a row ends."""
    inputs, options = Case((40,), q=4).inputs()
    query, keys, values, starts, bits = inputs
    keys, values = keys.nan_to_num(), values.nan_to_num()
    for start in (0, 5, 33):
        starts.fill_(start)
        attended = triton_attention(query, keys, values, starts, bits, **options, tiles=SMALL)
        want = expected((query, keys, values, starts, bits), options)
        assert torch.allclose(attended.double(), want, atol=2e-6)


def test_keys_of_another_layout():
    inputs, options = Case((20,), q=4, kv_heads=2).inputs()
    query, keys, values, *trees = inputs
    keys, values = (states.transpose(1, 2).contiguous().transpose(1, 2) for states in (keys, values))
    attended = triton_attention(query, keys, values, *trees, **options, tiles=SMALL)
    assert torch.allclose(attended.double(), expected(inputs, options), atol=2e-6)


def test_float64_is_refused():
    inputs, options = Case((4,), q=2, dtype=torch.float64).inputs()
    with pytest.raises(TypeError, match="float64"):
        triton_attention(*inputs, **options)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "q"), [(32, 32, 128, 1), (32, 32, 128, 64), (32, 8, 128, 16), (14, 2, 64, 128)]
)
def test_programs_of_common_models_fit_at_once(heads, kv_heads, dim, q):
    states = torch.empty(1, 1, 1, 1, dtype=torch.bfloat16, device="meta")
    tiles = tiles_of(states.expand(1, heads, q, dim), *[states.expand(1, kv_heads, 8192, dim)] * 2, num_sms=132)
    num_tiles = -(-heads // kv_heads * q // tiles.m) * kv_heads
    assert num_tiles * (tiles.num_splits + 1) <= 264
    assert tiles.n <= 64 and 64 % tiles.n == 0
