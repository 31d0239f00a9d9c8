"""Targets and schedules over random shapes: met, legal, monotone, and the last is what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from ipad_stand_in import LlamaMap
from pia.errors import ShrinkError
from pia.ipad.cost import cost_of
from pia.ipad.counts import ParameterCounter, meta_model
from pia.ipad.damage import Damage
from pia.ipad.latency_model import LatencyModel
from pia.ipad.limits import Limits, default_multiple
from pia.ipad.scores import Scores
from pia.ipad.shape import Shape
from pia.ipad.shape_schedule import schedule
from pia.ipad.target import Target, final_shape

QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make_map(layers=6, groups=4, queries=2, ffn=96, hidden=3, tie=False):
    """24 divides by any number of heads that there may be, as this family's hidden size must."""
    return LlamaMap(LlamaConfig(
        vocab_size=50, num_hidden_layers=layers, num_key_value_heads=groups, num_attention_heads=groups * queries,
        head_dim=4, intermediate_size=ffn, hidden_size=24 * hidden, tie_word_embeddings=tie,
    ))  # fmt: skip


maps = st.builds(
    make_map, st.integers(1, 9), st.integers(1, 4), st.integers(1, 2), st.integers(17, 200), st.integers(1, 4),
    st.booleans(),
)  # fmt: skip


def draw_shape(data, base: Shape) -> Shape:
    sizes = (base.num_layers, base.num_kv_heads, base.ffn_size, base.hidden_size // 24)
    *inner, hidden = (data.draw(st.integers(1, size)) for size in sizes)
    return Shape(*inner, 24 * hidden)


def random_scores(shape: Shape, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    num = shape.num_layers
    rows = (rng.exponential(size=(num, size)) for size in (shape.num_kv_heads, shape.ffn_size))
    return Scores(rng.exponential(size=num), *rows, rng.exponential(size=shape.hidden_size))


@QUICK
@given(maps, st.data())
def test_counts_are_those_of_the_model(structure, data):
    base = structure.shape
    shape = draw_shape(data, base)
    counter = ParameterCounter(structure)
    model = meta_model(structure, shape)
    total = sum(p.numel() for p in model.parameters())
    assert counter.total(shape) == total == cost_of(structure, shape, counter=counter).parameters
    outside = sum(p.numel() for p in {model.lm_head.weight, model.model.embed_tokens.weight})
    assert counter.non_embedding(shape) == total - outside == cost_of(structure, shape, counter=counter).non_embedding


@QUICK
@given(maps, st.floats(0.05, 0.95), st.integers(0, 99), st.sampled_from([1, 2]), st.booleans())
def test_targets_are_met_or_refused(structure, share, seed, tensor_parallel, hidden):
    base, counter = structure.shape, ParameterCounter(structure)
    axes = ("layers", "kv_heads", "ffn") + (("hidden",) if hidden else ())
    limits = Limits(axes, tensor_parallel, hidden_multiple=24)
    scores = random_scores(base, seed)
    try:
        shape = final_shape(structure, scores, Target(share), limits)
    except ShrinkError:
        smallest = Shape(1, tensor_parallel, default_multiple(base.ffn_size), 24 if hidden else base.hidden_size)
        can_be_split = base.num_kv_heads >= tensor_parallel
        assert not can_be_split or counter.non_embedding(smallest) > share * counter.non_embedding(base)
        return
    assert shape == final_shape(structure, scores, Target(share), limits)
    assert shape.fits_in(base) and shape != base
    assert counter.non_embedding(shape) <= share * counter.non_embedding(base)
    assert shape.num_kv_heads % tensor_parallel == 0 and shape.ffn_size % tensor_parallel == 0
    assert shape.ffn_size % default_multiple(base.ffn_size) == 0 or shape.ffn_size == base.ffn_size
    assert hidden or shape.hidden_size == base.hidden_size
    rounds = schedule(structure, base, shape, limits=limits, counter=counter)
    check_schedule(structure, counter, base, shape, rounds)


def check_schedule(structure, counter, start, final, rounds, step=0.08):
    whole = counter.non_embedding(structure.shape)
    assert rounds[-1] == final
    for before, after in zip([start, *rounds], rounds, strict=False):
        structure.check(after)
        assert after.fits_in(before) and after != before
        removed = (counter.non_embedding(before) - counter.non_embedding(after)) / whole
        if removed > 1.25 * step + 1e-9:  # then it was a unit alone
            changed = [name for name in vars(after) if getattr(after, name) != getattr(before, name)]
            assert len(changed) == 1


@QUICK
@given(maps, st.data(), st.floats(0.02, 0.3))
def test_any_explicit_shape_is_reached(structure, data, step):
    base = structure.shape
    final = draw_shape(data, base)
    if final == base:
        return
    assert final_shape(structure, None, Target(shape=final)) == final
    counter = ParameterCounter(structure)
    rounds = schedule(structure, base, final, step=step, counter=counter)
    check_schedule(structure, counter, base, final, rounds, step)
    # what is left after an interruption is what would have come
    middle = len(rounds) // 2
    resumed = schedule(structure, rounds[middle], final, step=step, counter=counter)
    assert resumed[-1:] == ([final] if middle < len(rounds) - 1 else [])


def test_rounds_remove_five_to_ten_percent_where_units_allow_it():
    structure = make_map(layers=40, groups=8, ffn=512, hidden=6)
    counter = ParameterCounter(structure)
    final = final_shape(structure, random_scores(structure.shape, 3), Target(0.5))
    rounds = schedule(structure, structure.shape, final, counter=counter)
    counts = [counter.non_embedding(shape) for shape in (structure.shape, *rounds)]
    removed = -np.diff(counts) / counts[0]
    assert (removed <= 0.1).all() and (removed[:-1] >= 0.05).all()


def test_layers_go_before_widths():
    structure = make_map(layers=8, groups=2, ffn=512)
    base = structure.shape
    rounds = schedule(structure, base, Shape(5, 2, 256, base.hidden_size))
    depths = [shape.num_layers for shape in rounds]
    assert depths == sorted(depths, reverse=True) and rounds[-1].ffn_size == 256
    assert all(shape.ffn_size == base.ffn_size for shape in rounds if shape.num_layers > 5)
    whole = schedule(structure, base, Shape(5, 2, 256, base.hidden_size), step=1.0)
    assert whole == [Shape(5, 2, 256, base.hidden_size)]


def test_a_large_layer_goes_alone():
    structure = make_map(layers=4, groups=2)
    base = structure.shape
    rounds = schedule(structure, base, Shape(2, 2, base.ffn_size, base.hidden_size))
    assert [shape.num_layers for shape in rounds] == [3, 2]


def test_damage_prefers_what_matters_least():
    structure = make_map(layers=8, groups=4, ffn=128)
    base = structure.shape
    even = Scores(np.ones(8), np.ones((8, 4)), np.ones((8, 128)), np.ones(72))
    idle_ffn = np.ones((8, 128))
    idle_ffn[:, 40:] = 1e-6
    shape = final_shape(structure, Scores(even.layers, even.kv_groups, idle_ffn, even.hidden), Target(0.6))
    assert shape.num_layers == 8 and shape.ffn_size < 80
    idle_layers = np.array([1, 1e-6, 1e-6, 1e-6, 1e-6, 1, 1, 1])
    shape = final_shape(structure, Scores(idle_layers, even.kv_groups, even.ffn, even.hidden), Target(0.6))
    assert shape.num_layers == 4 and shape.ffn_size == 128
    damage = Damage(even, base)
    assert damage.of(base) == 0 < damage.of(Shape(8, 4, 64, 72)) < damage.of(Shape(4, 4, 64, 72))


def test_latency_targets():
    structure = make_map(layers=10, groups=4, ffn=128)
    base = structure.shape
    latency = LatencyModel(forward=1e-3, layer=1e-3, attention=0.0, ffn=1e-9, head=0.0)
    shape = final_shape(structure, None, Target(latency=0.5), latency=latency)
    assert latency.seconds(shape) <= 0.5 * latency.seconds(base) and shape.num_layers == 4
    both = final_shape(structure, None, Target(0.2, 0.5), latency=latency)
    counter = ParameterCounter(structure)
    assert latency.seconds(both) <= 0.5 * latency.seconds(base)
    assert counter.non_embedding(both) <= 0.2 * counter.non_embedding(base)
    with pytest.raises(ShrinkError, match="closest"):
        final_shape(structure, None, Target(latency=0.1), latency=latency)
    with pytest.raises(ShrinkError, match="latency model"):
        final_shape(structure, None, Target(latency=0.5))


@QUICK
@given(st.lists(st.floats(0, 1e-3), min_size=3, max_size=3), st.integers(0, 99))
def test_a_latency_model_finds_the_rates_it_was_made_of(rates, seed):
    truth = LatencyModel(1e-3 + rates[0], rates[1], rates[2] / 1e4, rates[0] / 1e5, 0.0)
    rng = np.random.default_rng(seed)
    shapes = [Shape(*(int(size) for size in rng.integers(1, 40, 4))) for _ in range(12)]
    fitted = LatencyModel.fit({shape: truth.seconds(shape) for shape in shapes})
    for shape in shapes:
        assert fitted.seconds(shape) == pytest.approx(truth.seconds(shape), rel=1e-3)


def test_bad_targets_are_named():
    structure = make_map(groups=3)
    for target, words in (
        (Target(), "nothing to aim at"),
        (Target(1.5), "share to keep"),
        (Target(0.5, shape=structure.shape), "not both"),
        (Target(shape=structure.shape), "does not cut"),
        (Target(1e-6), "closest is layers=1,kv_heads=1"),
    ):
        with pytest.raises(ShrinkError, match=words):
            final_shape(structure, None, target)
    with pytest.raises(ShrinkError, match="divisible by 4"):
        final_shape(structure, None, Target(0.5), Limits(tensor_parallel=4))
    with pytest.raises(ShrinkError, match="no axis 'depth'"):
        final_shape(structure, None, Target(0.5), Limits(axes=("depth",)))
    with pytest.raises(ShrinkError, match="not a multiple"):
        final_shape(structure, None, Target(shape=Shape(3, 3, 50, 72)), Limits(ffn_multiple=32))
    with pytest.raises(ShrinkError, match="not inside"):
        schedule(structure, Shape(3, 3, 96, 72), Shape(4, 3, 96, 72))
