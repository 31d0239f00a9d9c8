"""Importance: what it scores, that it sums over the whole set, and that it leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ipad_stand_in import llama_map
from pia.errors import ShrinkError
from pia.ipad.importance import LAYER_METHODS, METHODS, measure_importance, sampled_teacher_loss
from pia.ipad.shape import Shape

KINDS = ("layers", "kv_groups", "ffn", "hidden")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, tie_word_embeddings=False, attention_dropout=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def batches(num=3, *, rows=2, length=12):
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(num):
        ids = torch.randint(3, 61, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, length - 4 :] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def measure(model, given, **options):
    return measure_importance(model, llama_map(model), given, **options)


def assert_same(one, other, tolerance=1e-12):
    for kind in KINDS:
        np.testing.assert_allclose(getattr(one, kind), getattr(other, kind), rtol=tolerance, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer_method", LAYER_METHODS)
def test_shapes_dtype_and_no_traces(model, method, layer_method):
    model.model.norm.weight.requires_grad_(False)
    scores = measure(model, batches(), method=method, layer_method=layer_method)
    assert scores.layers.shape == (3,) and scores.kv_groups.shape == (3, 2)
    assert scores.ffn.shape == (3, 48) and scores.hidden.shape == (32,)
    for kind in KINDS:
        values = getattr(scores, kind)
        assert values.dtype == np.float64 and (values > 0).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert scores.select(Shape(2, 1, 16, 24)).shape == Shape(2, 1, 16, 24)


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_set_counts_and_its_order_does_not(model, method):
    given = batches(4)
    scores = measure(model, given, method=method)
    assert_same(scores, measure(model, given[::-1], method=method))
    for left_out in range(4):
        fewer = measure(model, given[:left_out] + given[left_out + 1 :], method=method)
        for kind in KINDS:
            assert not np.allclose(getattr(fewer, kind), getattr(scores, kind), rtol=1e-6)


def test_rows_count_the_same_alone_and_together(model):
    given = batches(2)
    alone = [{name: values[i : i + 1] for name, values in batch.items()} for batch in given for i in range(2)]

    def next_token_loss(batch):
        logits = model(**batch).logits[:, :-1]
        mask = batch["attention_mask"]
        is_predicted = (mask[:, :-1] * mask[:, 1:]).bool()
        return torch.nn.functional.cross_entropy(
            logits[is_predicted], batch["input_ids"][:, 1:][is_predicted], reduction="sum"
        )

    model.double()
    together = measure(model, given, loss=next_token_loss, layer_method="influence")
    assert_same(together, measure(model, alone, loss=next_token_loss, layer_method="influence"), 1e-5)


@torch.no_grad()
def silence(model):
    """Takes away all outgoing weights of a neuron, a group and a channel."""
    layer = model.model.layers[1]
    layer.mlp.down_proj.weight[:, 7] = 0
    layer.self_attn.o_proj.weight[:, 16:] = 0
    for block in model.model.layers:
        for reader in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            reader.weight[:, 5] = 0
        block.mlp.gate_proj.weight[:, 5] = 0
        block.mlp.up_proj.weight[:, 5] = 0
    model.lm_head.weight[:, 5] = 0


def test_units_without_effect_score_zero_and_go_first(model):
    silence(model)
    scores = measure(model, batches(), method="taylor")
    assert scores.ffn[1, 7] == scores.kv_groups[1, 1] == scores.hidden[5] == 0
    assert (scores.ffn == 0).sum() == (scores.kv_groups == 0).sum() == (scores.hidden == 0).sum() == 1
    kept = scores.select(Shape(3, 1, 47, 31))
    assert 7 not in kept.ffn[1] and kept.kv_groups[1] == (0,) and 5 not in kept.hidden
    by_size = measure(model, batches(), method="activation")
    assert by_size.ffn[1, 7] == 0  # what it writes has no length, though the neuron is active


@pytest.mark.parametrize("layer_method", LAYER_METHODS)
def test_a_layer_that_is_identity_has_no_influence(model, layer_method):
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    scores = measure(model, batches(), layer_method=layer_method)
    assert scores.layers[1] == pytest.approx(0, abs=1e-15) and (scores.layers[[0, 2]] > 1e-3).all()


def test_leave_one_out_is_the_loss_of_the_model_without_the_layer(model):
    from pia.ipad.importance.layers import leave_one_out

    model.eval()
    given = batches(1)

    def loss(batch):
        return model(**batch).logits.square().mean()

    with torch.no_grad():
        whole = float(loss(given[0]))
        costs = leave_one_out(model, llama_map(model), given, loss)
        layers = model.model.layers
        for index in range(3):
            model.model.layers = torch.nn.ModuleList([layer for i, layer in enumerate(layers) if i != index])
            assert costs[index] == pytest.approx(float(loss(given[0])) - whole, abs=1e-6)


def test_taylor_predicts_what_masking_does_to_the_loss(model):
    """The score is the first-order change: it must agree with a difference quotient."""
    model.double().eval()
    batch = {name: values[:1] for name, values in batches(1)[0].items()}

    def loss(given):
        return model(**given).logits[..., 3].exp().mean()

    scores = measure(model, [batch], loss=loss)
    ffn = model.model.layers[2].mlp.down_proj
    step = 0.01  # norms are of float32 inside

    def scaled(neuron, by):
        scale = torch.ones(48, dtype=torch.float64)
        scale[neuron] = by
        handle = ffn.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * scale,))
        with torch.no_grad():
            value = float(loss(batch))
        handle.remove()
        return value

    for neuron in range(0, 48, 7):
        slope = abs(scaled(neuron, 1 + step) - scaled(neuron, 1 - step)) / (2 * step)
        assert scores.ffn[2, neuron] == pytest.approx(slope, rel=0.01)


def test_padding_changes_nothing(model):
    ids = batches(1, rows=1, length=9)[0]["input_ids"]
    padded = torch.cat([ids, torch.full((1, 5), 2)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 5, dtype=torch.int64)], dim=1)
    for method, layer_method in zip(METHODS, LAYER_METHODS, strict=True):
        options = dict(method=method, layer_method=layer_method)
        if method == "taylor":
            options["loss"] = lambda batch: model(**batch).logits[:, :9].logsumexp(-1).sum()
        alone = measure(model, [{"input_ids": ids}], **options)
        assert_same(alone, measure(model, [{"input_ids": padded, "attention_mask": mask}], **options), 2e-3)


def test_the_seed_draws_the_labels(model):
    given = batches()
    one, again, other = (measure(model, given, seed=seed) for seed in (1, 1, 2))
    assert_same(one, again, 0)
    assert not np.allclose(one.ffn, other.ffn, rtol=1e-3)


def test_the_default_loss_is_unbiased_for_distillation(model):
    """Its mean over draws is the cross-entropy with the teacher, whose gradient is that of the KL."""
    import copy

    model.eval()
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.7)
    batch = batches(1)[0]
    with torch.no_grad():
        draws = [float(sampled_teacher_loss(model, teacher, seed=seed)(batch)) for seed in range(150)]
        mask = batch["attention_mask"]
        weights = (mask[:, :-1] * mask[:, 1:])[..., None]
        known, ours = (m(**batch).logits[:, :-1].log_softmax(-1) for m in (teacher, model))
        expected = float(-(known.exp() * ours * weights).sum())
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - expected) < 4 * error


def test_bad_input_is_named(model):
    with pytest.raises(ShrinkError, match="no batch"):
        measure(model, [])
    with pytest.raises(ShrinkError, match="magic"):
        measure(model, batches(1), method="magic")
    with pytest.raises(ShrinkError, match="magic"):
        measure(model, batches(1), layer_method="magic")

    def kl_to_itself(batch):
        logits = model(**batch).logits.log_softmax(-1)
        return torch.nn.functional.kl_div(logits, logits.detach(), reduction="batchmean", log_target=True)

    with pytest.raises(ShrinkError, match="no gradient"):
        measure(model, batches(1), loss=kl_to_itself)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("inf"))
    with pytest.raises(ShrinkError, match="not finite"):
        measure(model, batches(1), method="activation")
