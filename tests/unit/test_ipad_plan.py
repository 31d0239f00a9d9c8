"""Plans, costs and speeds, on the real structure maps of several families."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pia.cli.shrink_plan import bar_of, memory, millions, print_plan
from pia.errors import ShrinkError
from pia.ipad.cost import cost_of
from pia.ipad.counts import ParameterCounter, meta_model
from pia.ipad.cut import cut
from pia.ipad.damage import Damage
from pia.ipad.importance import measure_importance
from pia.ipad.latency_model import LatencyModel, probe_shapes
from pia.ipad.limits import Limits, axes_of, sizes_of
from pia.ipad.plan import make_plan
from pia.ipad.sensitivity import measure_weights
from pia.ipad.shape import Shape
from pia.ipad.speed import measure_shapes, measure_speeds, random_model
from pia.ipad.structure import structure_of
from pia.ipad.target import Target
from toys import FAMILIES, tiny_model

QUICK = dict(rounds=2, new_tokens=3, prompt_tokens=4)


def batches(num=2):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 97, (2, 10), generator=generator)} for _ in range(num)]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_counts_of_a_family_are_those_of_its_cut_models(name):
    model = tiny_model(name)
    structure = structure_of(model)
    scores = measure_importance(model, structure, batches())
    ties = structure.ties_hidden_to_heads
    base = structure.shape
    shapes = [replace(base, num_layers=1), replace(base, ffn_size=base.ffn_size - 16)]
    shapes.append(replace(base, num_kv_heads=1, hidden_size=structure.queries_per_group * structure.head_dim)
                  if ties else replace(base, num_kv_heads=1, hidden_size=24))  # fmt: skip
    counter = ParameterCounter(structure)
    for shape in (base, *shapes):
        small = model if shape == base else cut(model, scores.select(shape))
        cost = cost_of(structure, shape, context=7, dtype=torch.float32)
        assert cost.parameters == counter.total(shape) == sum(p.numel() for p in small.parameters())
        assert cost.embedding == counter.embedding(shape) and cost.weight_bytes == 4 * cost.parameters
        assert cost.parameters == cost.embedding + cost.non_embedding
        cache = small(torch.arange(5)[None], use_cache=True).past_key_values
        stored = sum(part.numel() * 4 for layer in cache.layers for part in (layer.keys, layer.values))
        assert cost.kv_bytes_per_token * 5 == stored


def test_arithmetic_is_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    structure = structure_of(model)
    cache = model(torch.arange(8)[None]).past_key_values
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(torch.tensor([[3]]), past_key_values=cache)
    rotary = 2 * structure.head_dim // 2  # positions times frequencies: a product too, and none of the model's weights
    assert counted.get_total_flops() - cost_of(structure, structure.shape, context=9).flops_per_token in (0, rotary)


def test_plans_of_families_where_heads_and_hidden_hang_together():
    structure = structure_of(tiny_model("gpt2"))
    assert axes_of(structure, Limits()) == ("layers", "ffn")
    with pytest.raises(ShrinkError, match="shrink together"):
        axes_of(structure, Limits(axes=("hidden",)))
    assert sizes_of(structure, Limits(axes=("kv_heads", "hidden")))["hidden"] == [32, 24, 16, 8]
    plan = make_plan(
        tiny_model("gpt2"), structure, Target(0.4), limits=Limits(axes=("kv_heads", "hidden")), measures_speed=False
    )
    assert plan.final.shape.hidden_size == 8 * plan.final.shape.num_kv_heads
    assert plan.final.cost.non_embedding <= 0.4 * plan.original.cost.non_embedding


def test_a_plan_and_its_screen(capsys):
    model = tiny_model("llama")
    structure = structure_of(model)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    scores = measure_importance(model, structure, batches())
    plan = make_plan(model, structure, Target(0.5), scores=scores, speed_options=QUICK)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    again = make_plan(model, structure, Target(0.5), scores=scores, measures_speed=False)
    assert [item.shape for item in plan.rounds] == [item.shape for item in again.rounds]
    assert plan.final.selection == scores.select(plan.final.shape)
    assert plan.final.cost.non_embedding <= 0.5 * plan.original.cost.non_embedding
    damage = [item.damage for item in (plan.original, *plan.rounds)]
    assert damage == sorted(damage) and damage[0] == 0 < damage[1]
    assert all(item.speed.tokens_per_second > 0 for item in (plan.original, *plan.rounds))
    assert json.loads(json.dumps(plan.to_json()))["rounds"][-1]["parameters"] == plan.final.cost.parameters
    print_plan(plan)
    shown = capsys.readouterr().out
    assert f"round {len(plan.rounds)}" in shown and "tokens/s" in shown and "█" in shown and "…" not in shown
    assert f"{plan.final.cost.non_embedding / plan.original.cost.non_embedding:.1%}" in shown
    print_plan(replace(again, scores=None))
    shown = capsys.readouterr().out
    assert "tokens/s" not in shown and "No text was given" in shown


def test_a_latency_target_is_planned_with_measured_times():
    model = tiny_model("qwen3")
    structure = structure_of(model)
    plan = make_plan(model, structure, Target(latency=0.95), measures_speed=False, speed_options=QUICK)
    assert plan.latency is not None
    assert plan.latency.seconds(plan.final.shape) <= 0.95 * plan.latency.seconds(structure.shape)


def test_probes_are_legal_and_vary_each_size():
    for name in FAMILIES:
        structure = structure_of(tiny_model(name))
        probes = probe_shapes(structure)
        assert probes[0] == structure.shape and len(probes) == (3 if structure.ties_hidden_to_heads else 5)
        for probe in probes:
            meta_model(structure, probe)


def test_models_take_turns_and_the_median_counts(monkeypatch):
    from pia.ipad import speed

    calls, rates = [], {"a": [1.0, 5.0, 3.0, 100.0], "b": [1.0, 2.0, 2.0, 2.0]}

    def decode(model, prompt_tokens, new_tokens):
        calls.append(model)
        return rates[model].pop(0)

    monkeypatch.setattr(speed, "_decode", decode)
    found = measure_speeds({"a": "a", "b": "b"}, rounds=3)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert found["a"].tokens_per_second == 5.0 and (found["a"].slowest, found["a"].fastest) == (3.0, 100.0)


def test_a_timed_model_is_what_it_stands_for():
    model = tiny_model("llama").bfloat16()
    structure = structure_of(model)
    shape = Shape(1, 1, 16, 32)
    state = torch.random.get_rng_state()
    small = random_model(structure, shape, model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert structure_of(small).shape == shape and small.dtype == torch.bfloat16 and not small.training
    seen = []
    model.register_forward_hook(lambda _module, args, kwargs, _output: seen.append(args[0].shape), with_kwargs=True)
    speeds = measure_shapes(structure, [structure.shape, shape], model, **QUICK)
    assert set(speeds) == {structure.shape, shape}
    assert [tuple(size) for size in seen] == ([(1, 4)] + [(1, 1)] * 3) * 3


def test_weights_are_the_kl_of_models_cut_along_one_axis():
    model = tiny_model("llama").eval()
    structure = structure_of(model)
    scores = measure_importance(model, structure, batches())
    weights = measure_weights(model, structure, scores, batches())
    assert set(weights) == {"layers", "kv_heads", "ffn"} and all(weight > 0 for weight in weights.values())
    shape = replace(structure.shape, num_kv_heads=1)
    small = cut(model, scores.select(shape))
    with torch.no_grad():
        known, ours = (
            torch.cat([m(batch["input_ids"]).logits[:, :-1].log_softmax(-1).flatten(0, 1) for batch in batches()])
            for m in (model, small)
        )
    kl = float((known.exp() * (known - ours)).sum(-1).mean())
    assert weights["kv_heads"] * Damage(scores, structure.shape).loss("kv_heads", 1) == pytest.approx(kl, rel=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_small_things_of_the_screen():
    assert millions(1.5e9) == "1.50 B" and millions(2_500_000) == "2.50 M"
    assert memory(2.5e9) == "2.5 GB" and memory(8192) == "8.2 kB" and memory(12) == "12 B"
    assert len(bar_of(1.0)) == 24 and bar_of(0.0) == "▏"


def test_batches_of_training_data_are_understood():
    """Rows padded on the right, with a weight for each token as a target."""
    model = tiny_model("llama")
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[1, 6:] = 0
    weights = torch.ones(2, 9)
    weights[:, 0] = 0
    weights[1, 6:] = 0
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    structure = structure_of(model)
    for method in ("taylor", "activation"):
        one = measure_importance(model, structure, [SimpleNamespace(ids=ids, weights=weights)], method=method)
        other = measure_importance(model, structure, [{"input_ids": ids, "attention_mask": mask}], method=method)
        for name in ("layers", "kv_groups", "ffn", "hidden"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-3)


def test_latency_models_predict_no_slower_smaller_model():
    noisy = {Shape(8, 2, 64, 32): 1.0, Shape(4, 2, 64, 32): 1.1, Shape(8, 1, 64, 32): 1.2, Shape(8, 2, 32, 32): 0.6}
    fitted = LatencyModel.fit(noisy)
    assert min(fitted.to_json().values()) >= 0
    assert fitted.seconds(Shape(4, 1, 32, 32)) <= fitted.seconds(Shape(8, 2, 64, 32))
