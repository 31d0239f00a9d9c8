"""Tree masks against the definition, entry by entry."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from pia.models import masks
from pia.models.adapters import adapter_of
from pia.models.capability import Mode, declared_capability
from pia.models.masks import TreeMasks, mask_reason, reach, slot_positions
from pia.models.self_check import proved_capability
from toys import tiny_model

_ROWS = dict(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
MODELS = {
    "full": transformers.LlamaForCausalLM(transformers.LlamaConfig(**_ROWS)),
    "window": transformers.MistralForCausalLM(transformers.MistralConfig(**_ROWS, sliding_window=5)),
    "by-type": transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **_ROWS, head_dim=4, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "chunks": transformers.Llama4ForCausalLM(
        transformers.Llama4TextConfig(
            **_ROWS,
            head_dim=4,
            attention_chunk_size=4,
            num_local_experts=2,
            layer_types=["chunked_attention", "full_attention"],
        )
    ),
}
SIGHTS = {
    "full_attention": lambda query, key: True,
    "sliding_attention": lambda query, key: key > query - 5,
    "chunked_attention": lambda query, key: key // 4 == query // 4,
}


@st.composite
def steps(draw):
    rows, q = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    parents = [[draw(st.integers(-1, node - 1)) for node in range(q - 1)] for _ in range(rows)]
    starts = [draw(st.integers(0, 12)) for _ in range(rows)]
    return starts, parents, max(starts) + q + draw(st.integers(0, 3))


def layouts(parents):
    """Depths `[rows, q]` and visibility `[rows, q, q]`."""
    q = len(parents[0]) + 1
    depths, visible = np.zeros((len(parents), q), np.int64), np.zeros((len(parents), q, q), bool)
    for row, row_parents in enumerate(parents):
        visible[row] = np.eye(q, dtype=bool)
        for node, parent in enumerate(row_parents, start=1):
            visible[row, node] |= visible[row, parent + 1]
            depths[row, node] = depths[row, parent + 1] + 1
    return torch.from_numpy(depths), torch.from_numpy(visible)


def expected(kind, starts, depths, visible, num_slots):
    """Who sees whom, written down in loops."""
    rows, q = depths.shape
    seen = torch.zeros((rows, 1, q, num_slots), dtype=torch.bool)
    for row, start in enumerate(starts):
        for query in range(q):
            position = start + int(depths[row, query])
            for slot in range(num_slots):
                node = slot - start
                key = slot if node < 0 else start + int(depths[row, node]) if node < q else None
                is_known = node < 0 or (node < q and bool(visible[row, query, node]))
                seen[row, 0, query, slot] = is_known and SIGHTS[kind](position, key)
    return seen


@settings(max_examples=60, deadline=None)
@given(step=steps())
@pytest.mark.parametrize("name", sorted(MODELS))
def test_masks_are_as_defined(name, step):
    starts, parents, num_slots = step
    depths, visible = layouts(parents)
    made = TreeMasks(MODELS[name])(torch.tensor(starts), depths, visible, num_slots)
    if name in ("full", "window"):
        made = {"full_attention" if name == "full" else "sliding_attention": made}
    made = {kind: mask for kind, mask in made.items() if mask is not None}
    assert len(made) == (1 if name in ("full", "window") else 2)
    for kind, mask in made.items():
        seen = expected(kind, starts, depths, visible, num_slots)
        assert mask.dtype == torch.float32
        assert torch.equal(mask == 0, seen)
        assert torch.equal(mask == torch.finfo(torch.float32).min, ~seen)


def test_padded_rows_see_themselves():
    visible = torch.zeros((2, 3, 3), dtype=torch.bool)
    for name in ("full", "window"):
        mask = TreeMasks(MODELS[name])(torch.tensor([0, 4]), torch.zeros((2, 3), dtype=torch.long), visible, 9)
        assert bool((mask == 0).any(dim=-1).all())


def test_what_cannot_be_masked_is_named():
    config = transformers.LlamaConfig(**_ROWS)
    assert mask_reason(config) is None and reach(config) is None
    assert reach(MODELS["window"].config) == 5 and reach(MODELS["chunks"].config) == 4
    config.layer_types = ["full_attention", "hybrid"]
    assert "hybrid" in mask_reason(config)
    config.layer_types = ["sliding_attention"]
    assert "sliding_window" in mask_reason(config)
    model = tiny_model("llama")
    model.config.layer_types = ["chunked_attention"]
    with pytest.raises(ValueError, match="attention_chunk_size"):
        TreeMasks(model)


def bloom():
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=11, hidden_size=12, n_layer=2, n_head=3)
    return transformers.BloomForCausalLM(config).eval()


def falcon():
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, alibi=True
    )
    return transformers.FalconForCausalLM(config).eval()


def gpt_neo():
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=11, hidden_size=12, num_layers=2, num_heads=3, attention_types=[[["global", "local"], 1]]
    )
    return transformers.GPTNeoForCausalLM(config).eval()


@pytest.mark.parametrize("make", [bloom, falcon, gpt_neo])
def test_adapters_leave_the_model_as_it_was(make):
    model = make()
    adapter = adapter_of(model)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    with torch.no_grad():
        before = model(ids).logits
        names = [(owner, name, vars(owner).get(name)) for owner, name in adapter._places]
        with adapter.arranged(torch.zeros((1, 8), dtype=torch.long)):  # everybody at position 0
            others: list[torch.Tensor] = []
            thread = threading.Thread(target=lambda: others.append(model(ids).logits.detach()))
            thread.start()
            thread.join()
            with adapter.arranged(torch.arange(8)[None]):
                pass
            changed = [vars(owner)[name] is not own for owner, name, own in names]
        assert all(changed)
        assert [vars(owner).get(name) is own for owner, name, own in names] == [True] * len(names)
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(others[0], before)  # another thread, at the same time


def test_slot_positions():
    got = slot_positions(torch.tensor([2, 4]), torch.tensor([[0, 1, 1], [0, 1, 2]]), 8)
    assert got.tolist() == [[0, 1, 2, 3, 3, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("window", [5, 200])
def test_a_window_cut_one_slot_too_wide_is_found_out(window, monkeypatch):
    """Also where the window is far longer than the text of the self-check."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(**_ROWS, intermediate_size=12, initializer_range=0.25, sliding_window=window)
    model = transformers.MistralForCausalLM(config).eval()
    declared = declared_capability(model)
    assert proved_capability(model, declared).mode == Mode.TREE
    monkeypatch.setattr(masks._Window, "__call__", lambda self, queries, slots: slots >= queries - self.size)
    proved = proved_capability(model, declared)
    assert proved.mode == Mode.CHAIN and not proved.can_batch
    assert "beyond its window" in proved.reason
