"""A snapshot holds what may be written in place, and no more."""

from __future__ import annotations

import torch
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from pia.models.snapshot import StateSnapshot


def some(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


def feed(cache: Cache, size: int) -> None:
    for layer in cache.layers:
        if hasattr(layer, "conv_states"):
            layer.update_conv_state(some(1, 6, size), conv_kernel_size=4)
            layer.update_recurrent_state(some(1, 2, 5))
        if isinstance(layer, DynamicLayer):
            layer.update(some(1, 2, size, 3), some(1, 2, size, 3))


def contents(cache: Cache) -> list[torch.Tensor]:
    found = []
    for layer in cache.layers:
        if hasattr(layer, "conv_states"):
            found += [layer.conv_states[0], layer.recurrent_states[0]]
        if isinstance(layer, DynamicLayer):
            found += [layer.keys, layer.values]
    return [tensor.clone() for tensor in found]


def test_every_kind_of_layer_is_put_back_again_and_again():
    layers = [
        LinearAttentionLayer(),
        DynamicLayer(),
        DynamicSlidingWindowLayer(sliding_window=5),
        LinearAttentionAndFullAttentionLayer(),
    ]
    cache, snapshot = Cache(layers=layers), StateSnapshot()
    feed(cache, 7)
    for size in (1, 4, 2, 9):
        before, length = contents(cache), layers[2].get_seq_length()
        snapshot.take(cache)
        feed(cache, size)
        assert not all(torch.equal(a[..., :1, :], b[..., :1, :]) for a, b in zip(before, contents(cache), strict=True))
        snapshot.restore()
        assert all(torch.equal(a, b) for a, b in zip(before, contents(cache), strict=True))
        assert layers[2].get_seq_length() == length
        feed(cache, 3)


def test_the_first_state_is_that_of_an_empty_cache():
    cache, snapshot = Cache(layers=[LinearAttentionLayer()]), StateSnapshot()
    snapshot.take(cache)
    feed(cache, 2)
    snapshot.restore()
    assert cache.layers[0].has_previous_state[0] is False and cache.layers[0].conv_states[0] is None


def test_buffers_are_used_again():
    cache, snapshot = Cache(layers=[LinearAttentionLayer(), DynamicLayer()]), StateSnapshot()
    feed(cache, 3)
    seen = set()
    for _ in range(6):
        snapshot.take(cache)
        feed(cache, 2)
        seen.add(cache.layers[0].recurrent_states[0].data_ptr())
        snapshot.restore()
    assert len(seen) == 2  # the live one and its copy take turns


def test_a_state_that_is_a_list_of_tensors():
    state, snapshot = [some(2, 3), some(4)], StateSnapshot()
    before = [tensor.clone() for tensor in state]
    for _ in range(3):
        snapshot.take(state)
        state[0] += 1
        state[1] = some(4)
        snapshot.restore()
        assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
