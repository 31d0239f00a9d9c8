"""Structure maps: found for each family, complete, and right about where the parts of a model are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shrink_models import MODELS, shrinkable, token_ids

from pia.assets import load_demo
from pia.errors import ShrinkError
from pia.ipad.shape import Shape
from pia.ipad.structure import structure_of, supported_families


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return shrinkable(request.param)


def inputs_and_outputs(model, modules):
    """First input and output of each module in one forward pass."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda m, args, out: seen.update({m: (args[0], out)})) for module in modules
    ]
    with torch.no_grad():
        model(token_ids(2, 9), use_cache=False)
    for handle in handles:
        handle.remove()
    return [seen[module] for module in modules]


def test_every_supported_family_is_tested():
    assert {structure_of(shrinkable(name)).family for name in MODELS} == set(supported_families())


def test_sizes_are_those_that_the_modules_see(model):
    structure = structure_of(model)
    shape, layers = structure.shape, structure.layers(model)
    assert len(layers) == shape.num_layers == 3
    heads = shape.num_kv_heads * structure.queries_per_group
    for seen, _ in inputs_and_outputs(model, [structure.attention_output(layer) for layer in layers]):
        assert seen.shape == (2, 9, heads * structure.head_dim)
    for seen, _ in inputs_and_outputs(model, [structure.ffn_output(layer) for layer in layers]):
        assert seen.shape[-1] == shape.ffn_size and seen.numel() == 2 * 9 * shape.ffn_size
    norms = structure.norms(model) + structure.branch_norms(model)
    for _, out in inputs_and_outputs(model, norms):
        assert out.shape[-1] == shape.hidden_size


def test_norms_are_all_that_run_over_hidden_channels(model):
    structure = structure_of(model)
    found = structure.norms(model) + structure.branch_norms(model)
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    assert set(found) == {norm for norm in norms if norm.weight.numel() == structure.shape.hidden_size}


def test_the_stream_starts_where_the_map_says(model):
    structure = structure_of(model)
    starts = inputs_and_outputs(model, structure.stream_starts(model))
    (seen, _), *_ = inputs_and_outputs(model, [structure.layers(model)[0]])
    torch.testing.assert_close(sum(out for _, out in starts).expand_as(seen), seen)


def test_logits_are_those_of_the_model(model):
    structure, ids = structure_of(model), token_ids(2, 9)
    with torch.no_grad():
        hidden = structure.backbone(model)(ids).last_hidden_state
        assert torch.equal(structure.logits(model, hidden), model(ids).logits)
        assert structure.head(model) is model.get_output_embeddings()


def test_configurations_hold_the_model_itself(model):
    structure = structure_of(model)
    config = structure.config_for(structure.shape)
    ours, theirs = config.to_dict(), model.config.to_dict()
    changed = {key for key in ours if ours[key] != theirs.get(key)}
    assert changed <= {"head_dim", "n_inner", "num_key_value_heads", "max_window_layers", "tie_word_embeddings"}
    structure.check(structure.shape)


def test_per_layer_fields_follow_the_layers_that_stay():
    structure = structure_of(shrinkable("qwen2 (windows)"))
    shape = replace(structure.shape, num_layers=2)
    config = structure.config_for(shape, (1, 2))
    assert config.layer_types == structure.config.layer_types[1:]
    assert (structure.config.max_window_layers, config.max_window_layers) == (1, 0)
    assert structure.config_for(shape).layer_types == structure.config.layer_types[:2]


def test_the_demo_model_has_one_weight_for_head_and_embedding():
    model, _ = load_demo()
    structure = structure_of(model)
    assert structure.is_tied and not structure.ties_hidden_to_heads
    assert structure.shape == Shape(8, 2, 672, 256) and (structure.head_dim, structure.queries_per_group) == (64, 2)


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_hidden_follows_heads_where_the_configuration_has_no_head_size(name):
    structure = structure_of(shrinkable(name))
    assert structure.ties_hidden_to_heads
    structure.check(replace(structure.shape, num_kv_heads=3, hidden_size=24))
    with pytest.raises(ShrinkError, match="3 heads need hidden=24, not 32"):
        structure.check(replace(structure.shape, num_kv_heads=3))


def test_projected_embeddings_stay_narrower_than_the_stream():
    structure = structure_of(shrinkable("opt (projected, norms after)", word_embed_proj_dim=24))
    structure.check(replace(structure.shape, num_kv_heads=2, hidden_size=16))
    with pytest.raises(ShrinkError, match="projections would be lost"):
        structure.check(replace(structure.shape, num_kv_heads=3, hidden_size=24))


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(hidden_size=30), "not a multiple of the number of attention heads"), (dict(ffn_size=49), "larger than")],
)
def test_shapes_that_the_configuration_cannot_hold(change, message):
    structure = structure_of(shrinkable("llama"))
    with pytest.raises(ShrinkError, match=message):
        structure.check(replace(structure.shape, **change))


def test_what_vllm_makes_of_a_shape():
    narrow = dict(hidden_size=16)
    qwen, llama = structure_of(shrinkable("qwen2")), structure_of(shrinkable("llama"))
    assert "need hidden=32" in qwen.vllm_problem(replace(qwen.shape, **narrow))
    assert qwen.vllm_problem(replace(qwen.shape, num_kv_heads=1, **narrow)) is None
    assert llama.vllm_problem(replace(llama.shape, **narrow)) is None
