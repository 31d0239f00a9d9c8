"""The slab: grows in chunks, keeps paths in place, moves no more than it must."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pia.models import kv
from pia.models.kv import SlabCache


def states(start, length, layer, heads=2, dim=3):
    """Recognisable states: the position is in every number."""
    positions = torch.arange(start, start + length, dtype=torch.float32)
    return (positions + 1000 * layer).view(1, 1, length, 1).expand(1, heads, length, dim)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2**12 - 1)), max_size=12))
def test_keeps_what_a_list_would_keep(prompt, steps):
    """Against a Python list of positions, through growth (chunks of 7) and compaction."""
    grow_by, kv._GROW_BY = kv._GROW_BY, 7
    try:
        cache, expected, position = SlabCache(2), list(range(prompt)), prompt
        for layer in range(2):
            cache.update(states(0, prompt, layer), -states(0, prompt, layer), layer)
        for num_nodes, bits in steps:
            start, size = len(expected), num_nodes + 1
            for layer in range(2):
                keys, values = cache.update(states(position, size, layer), -states(position, size, layer), layer)
                assert keys.shape[2] == values.shape[2] == start + size
            rows = [0, *(n for n in range(1, size) if bits >> n & 1)]
            cache.keep(start, rows)
            expected += [position + row for row in rows]
            position += size
        for layer in range(2):
            kept = cache.layers[layer]
            assert kept.keys[0, 0, :, 0].tolist() == [p + 1000 * layer for p in expected]
            assert torch.equal(kept.values, -kept.keys)
            assert kept.get_seq_length() == len(expected)
    finally:
        kv._GROW_BY = grow_by


def test_settled_slots_are_not_touched(monkeypatch):
    cache = SlabCache(1)
    cache.update(states(0, 10, 0), states(0, 10, 0), 0)
    moved = []
    monkeypatch.setattr(kv._Block, "move", lambda self, sources, start: moved.append((sources.tolist(), start)))
    cache.keep(5, [0, 1, 2])
    assert moved == [] and cache.length == 8
    cache.set_length(10)
    cache.keep(5, [0, 1, 4])
    assert moved == [([9], 7)] * 2  # keys and values: one slot each


def test_layers_of_other_shapes_live_apart():
    """Latent attention has keys and values of different widths; some models mix head counts."""
    cache = SlabCache(3)
    for layer, (heads, dim) in enumerate([(2, 3), (2, 3), (4, 5)]):
        keys, values = states(0, 4, layer, heads, dim), states(0, 4, layer, heads, dim + 1)
        cache.update(keys, values, layer)
    cache.keep(1, [0, 2])
    assert [layer.keys.shape for layer in cache.layers] == [(1, 2, 3, 3), (1, 2, 3, 3), (1, 4, 3, 5)]
    assert [layer.values[0, 0, :, 0].tolist() for layer in cache.layers] == [
        [0 + 1000 * n, 1 + 1000 * n, 3 + 1000 * n] for n in range(3)
    ]
    assert cache.memory_usage > 0


def test_growth_is_rare_and_bounded():
    cache = SlabCache(1, max_length=5000)
    cache.update(states(0, 100, 0), states(0, 100, 0), 0)
    slots = cache.memory_usage
    for position in range(100, 1000):
        cache.update(states(position, 1, 0), states(position, 1, 0), 0)
    assert cache.memory_usage == slots
    for position in range(1000, 4990):
        cache.update(states(position, 1, 0), states(position, 1, 0), 0)
    assert cache.memory_usage <= 5000 * 2 * 2 * 3 * 4
