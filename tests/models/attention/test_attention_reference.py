"""The reference against PyTorch's own attention under PIA's masks, and visibility as bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_cases import Case, random_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from pia.models.attention.bits import pack, unpack
from pia.models.attention.reference import reference_attention
from pia.models.layout import batch_layout


@given(st.integers(1, 3), st.integers(1, 140), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_bits_keep_visibility(rows, q, seed):
    rng = np.random.default_rng(seed)
    visible = batch_layout([0] * rows, [random_tree(rng, q - 1) for _ in range(rows)])[2]
    bits = torch.from_numpy(pack(visible))
    assert bits.shape == (rows, q, -(-q // 64)) and bits.dtype == torch.int64
    assert torch.equal(unpack(bits, q), torch.from_numpy(visible))


def test_a_node_always_sees_itself():
    assert unpack(torch.zeros(1, 3, 1, dtype=torch.int64), 3)[0].tolist() == np.eye(3, dtype=bool).tolist()


def seen_slot_by_slot(case: Case, row: int, visible: torch.Tensor, depths: torch.Tensor, slots: int) -> torch.Tensor:
    """Bool `[q, slots]`, spelled out."""
    start = case.starts[row]
    seen = torch.zeros(case.q, slots, dtype=torch.bool)
    for node in range(case.q):
        for slot in range(start + case.q):
            position = slot if slot < start else start + int(depths[row, slot - start])
            is_near = case.window is None or start + int(depths[row, node]) - position < case.window
            seen[node, slot] = is_near and (slot < start or bool(visible[row, node, slot - start]))
    return seen


@pytest.mark.parametrize("window", [None, 1, 4, 30])
@pytest.mark.parametrize("starts", [(0,), (9, 0, 4)])
def test_equals_scaled_dot_product_attention(starts, window):
    case = Case(starts, q=7, kv_heads=2, group=3, dim=8, value_dim=6, dtype=torch.float64, window=window)
    inputs, options = case.inputs()
    query, keys, values, _, bits = inputs
    attended = reference_attention(*inputs, **options)
    assert attended.shape == (len(starts), 6, 7, 6)
    for row in range(len(starts)):
        seen = seen_slot_by_slot(case, row, unpack(bits, 7), options["depths"], keys.shape[2])
        own = torch.nn.functional.scaled_dot_product_attention(
            query[row], *(states[row].nan_to_num().repeat_interleave(3, 0) for states in (keys, values)), attn_mask=seen
        )
        assert torch.allclose(attended[row], own, atol=1e-12)


def test_sinks_take_their_share():
    case = Case((6,), q=3, kv_heads=2, dim=8, dtype=torch.float64)
    inputs, options = case.inputs()
    plain = reference_attention(*inputs, **options)
    assert torch.allclose(reference_attention(*inputs, **{**options, "sinks": torch.full((2,), -1e9)}), plain)
    sinks = torch.tensor([float("-inf"), 50.0], dtype=torch.float64)
    shared = reference_attention(*inputs, **{**options, "sinks": sinks})
    assert torch.allclose(shared[:, 0], plain[:, 0]) and float(shared[:, 1].abs().max()) < 1e-12


def test_softcap_bounds_scores():
    """With scores bound to next to nothing every slot in sight counts alike."""
    inputs, options = Case((6,), q=1, dtype=torch.float64).inputs()
    attended = reference_attention(*inputs, **{**options, "softcap": 1e-9})
    assert torch.allclose(attended[0, 0, 0], inputs[2][0, 0, :7].mean(dim=0))
