"""Replay of recorded outputs."""

from __future__ import annotations

import numpy as np
import pytest

from pia.bench.replay import Trace, count_accepted, replay, warm
from pia.drafting.cache import DraftCache
from pia.drafting.source import NoDrafts
from pia.drafting.tree import DraftTree


def trace() -> Trace:
    outputs = [np.arange(10, 40, dtype=np.int32) for _ in range(3)]
    return Trace("count", [np.arange(5, dtype=np.int32) for _ in outputs], outputs)


def test_without_drafts_every_forward_yields_one_token():
    result = replay(NoDrafts(), trace(), budget=16)
    assert (result.num_steps, result.num_tokens, result.edl) == (87, 87, 1.0)
    assert result.as_dict()["drafted"] == 0


def test_a_warm_cache_yields_the_whole_output():
    cache = DraftCache()
    for _ in range(10):
        warm(cache, trace())
    result = replay(cache, trace(), budget=32)
    assert result.num_tokens == 87
    assert result.num_steps == 3
    assert result.edl == 29
    assert result.as_dict()["p99_us"] > 0


def test_later_requests_learn_from_earlier_ones():
    assert replay(DraftCache(), trace(), budget=32).edl > 2


def test_accepted_tokens_follow_a_path_of_the_tree():
    ints = np.array([7, 8, 9, 8], np.int32), np.array([-1, -1, 0, 2], np.int32)
    tree = DraftTree(*ints, np.ones(4, np.float32), np.zeros(4, np.uint8))
    assert [count_accepted(tree, truth) for truth in ([7, 9, 8, 1], [8, 9], [9], [])] == [3, 1, 0, 0]
    assert count_accepted(DraftTree.empty(), [1]) == 0


def test_traces_are_read_and_others_refused(tmp_path):
    arrays = {
        "prompt_tokens": [1, 2, 3],
        "prompt_offsets": [0, 2, 3],
        "output_tokens": [4, 5],
        "output_offsets": [0, 0, 2],
    }
    np.savez(
        tmp_path / "toy.npz", **{name: np.array(values) for name, values in arrays.items()}, meta='{"source": "toy"}'
    )
    loaded = Trace.load(tmp_path / "toy.npz")
    assert [(prompt.tolist(), output.tolist()) for prompt, output in loaded] == [([1, 2], []), ([3], [4, 5])]
    assert (loaded.name, len(loaded), loaded.meta, len(loaded.part(1, 2))) == ("toy", 2, {"source": "toy"}, 1)
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match="is not a trace"):
        Trace.load(tmp_path / "other.npz")
