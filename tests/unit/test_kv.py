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


def filled(cache, *lengths, layers=1, heads=2, dim=3):
    """Fills each row with recognisable states, as a prefill does."""
    for row, length in enumerate(lengths):
        with cache.filling(slice(row, row + 1)):
            for layer in range(layers):
                cache.update(states(0, length, layer, heads, dim), -states(0, length, layer, heads, dim), layer)
    cache.set_lengths(lengths)
    return cache


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2**12 - 1), st.integers(0, 9)), max_size=12),
)
def test_keeps_what_lists_would_keep(prompts, steps):
    """Against Python lists of positions, through growth (chunks of 7), compaction, and rows that leave."""
    grow_by, kv._GROW_BY = kv._GROW_BY, 7
    try:
        cache = filled(SlabCache(2, num_rows=len(prompts)), *prompts, layers=2)
        expected, position = [list(range(prompt)) for prompt in prompts], 100
        for num_nodes, bits, leaving in steps:
            size, num_rows = num_nodes + 1, len(expected)
            cache.begin_step()
            for layer in range(2):
                fed = torch.cat([states(position + 50 * row, size, layer) for row in range(num_rows)])
                keys, values = cache.update(fed, -fed, layer)
                assert keys.shape == values.shape == (num_rows, 2, max(map(len, expected)) + size, 3)
            kept = [[0, *(n for n in range(1, size) if bits >> (n + row) & 1)] for row in range(num_rows)]
            cache.keep(kept)
            for row, nodes in enumerate(kept):
                expected[row] += [position + 50 * row + node for node in nodes]
            position += 1000 // 4
            if num_rows > 1 and leaving < num_rows:
                cache.retire(leaving)
                expected[leaving] = expected[-1]
                expected.pop()
            for layer in range(2):
                _assert_holds(cache.layers[layer], expected, layer)
    finally:
        kv._GROW_BY = grow_by


def _assert_holds(layer, expected, number):
    keys, values = layer.keys, layer.values
    assert keys.shape[0] == len(expected) and layer.get_seq_length() == max(map(len, expected))
    for row, positions in enumerate(expected):
        assert keys[row, 0, : len(positions), 0].tolist() == [p + 1000 * number for p in positions]
        assert torch.equal(values[row, :, : len(positions)], -keys[row, :, : len(positions)])


def test_settled_slots_are_not_touched(monkeypatch):
    cache = filled(SlabCache(1), 10)
    moved = []
    monkeypatch.setattr(
        kv._Block, "move", lambda self, row, sources, start: moved.append((row, sources.tolist(), start))
    )
    cache.set_lengths([5])
    cache.keep([[0, 1, 2]])
    assert moved == [] and cache.length == 8
    cache.set_lengths([5])
    cache.keep([[0, 1, 4]])
    assert moved == [(0, [9], 7)] * 2  # keys and values: one slot each


def test_rows_with_the_same_text_share_its_prefill():
    cache = SlabCache(1, num_rows=5)
    for row, length in enumerate([3, 6]):
        with cache.filling(slice(row, row + 1)):
            cache.update(states(0, length, 0), states(0, length, 0), 0)
    cache.spread([3, 6], [0, 0, 1, 1, 0])
    assert cache.lengths == [3, 3, 6, 6, 3]
    for row, length in enumerate(cache.lengths):
        assert cache.layers[0].keys[row, 0, :length, 0].tolist() == list(range(length))


def test_slots_that_nobody_wrote_are_finite():
    """A masked slot still takes part in 0 * value, which must not be NaN."""
    cache = filled(SlabCache(1, num_rows=2), 2, 9)
    assert torch.isfinite(cache.layers[0].values).all()


def test_layers_of_other_shapes_live_apart():
    """Latent attention has keys and values of different widths; some models mix head counts."""
    cache = SlabCache(3)
    with cache.filling(slice(0, 1)):
        for layer, (heads, dim) in enumerate([(2, 3), (2, 3), (4, 5)]):
            keys, values = states(0, 4, layer, heads, dim), states(0, 4, layer, heads, dim + 1)
            cache.update(keys, values, layer)
    cache.set_lengths([1])
    cache.keep([[0, 2]])
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
